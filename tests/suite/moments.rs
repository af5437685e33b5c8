//! Requests, crashes and ends at awkward moments: each has its necessary cost only.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::support::{Rig, close, kill, processes_of, service, signal, version, wait_for};
use handoff::control::api::{Ending, Request, Response, State};
use handoff::control::{ClientError, Kind};
use handoff::sys::process::Signal;

fn is_in(rig: &Rig, phase: &str) -> Option<()> {
    (rig.status("s").phase.as_deref() == Some(phase)).then_some(())
}

fn kind(error: ClientError) -> Kind {
    match error {
        ClientError::Refused(error) => error.kind,
        other => panic!("{other:?}"),
    }
}

fn edit(rig: &Rig, name: &str, from: &str, to: &str) {
    let file = rig.path(&format!("config/services/{name}.toml"));
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&file, text.replace(from, to)).unwrap();
}

/// A service with autostart and its own data directory, whose address is in use.
fn waits_for_its_address(rig: &Rig, name: &str) -> (SocketAddr, TcpListener) {
    let address = rig.write_service(name, &rig.release(name, ""), "");
    edit(rig, name, "autostart = false", "autostart = true");
    edit(rig, name, &format!("{:?}", rig.path("data")), &format!("{:?}", rig.path(&format!("data-{name}"))));
    fs::create_dir_all(rig.path(&format!("data-{name}"))).unwrap();
    (address, TcpListener::bind(address).unwrap())
}

/// Waits until the service waits for its address. The daemon searches all processes for the owner of the address, which
/// may take long.
fn it_waits(rig: &Rig, name: &str) {
    wait_for("it to wait", || match rig.call(Request::Status(service(name))) {
        Ok(Response::Status(status)) => (status.state == State::Backoff).then_some(()),
        _ => None,
    });
}

#[test]
fn a_request_that_is_refused_changes_nothing_of_the_upgrade_under_way() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let next = rig.release("2", "slow-begin-3000");
    let outcome = rig.upgrade_and("s", &next, "beginning", || {
        assert_eq!(kind(rig.call(Request::Stop(service("s"))).unwrap_err()), Kind::Busy);
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome.outcome, Ending::Committed);
    let phases: Vec<&str> = outcome.phases.iter().map(|phase| phase.phase.as_str()).collect();
    assert_eq!(
        (phases[0], phases.iter().filter(|it| **it == "beginning").count()),
        ("greeting", 1),
        "{phases:?}"
    );
    assert!(outcome.accept_gap_us.is_some_and(|gap| gap >= 2_500_000), "{outcome:?}");
    assert!(outcome.took_us >= 3_000_000, "{outcome:?}");
    assert_eq!(version(address), "2");
}

#[test]
fn a_start_of_a_service_that_runs_leaves_its_problem() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    fs::remove_file(rig.path("state/services/s/journal")).unwrap();
    let problem = wait_for("it to be noticed", || rig.status("s").problem);
    assert!(problem.contains("journal"), "{problem}");
    assert_eq!(kind(rig.call(Request::Start(service("s"))).unwrap_err()), Kind::AlreadyRunning);
    assert_eq!(rig.status("s").problem, Some(problem));
}

#[test]
fn a_staged_version_whose_start_is_stopped_waits_for_the_next_one() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    rig.call(Request::Stop(service("s"))).unwrap();
    let next = rig.release("2", "hang-while-warming");
    assert_eq!(rig.run(&["installed", "s", next.to_str().unwrap()]).status.code(), Some(0));
    std::thread::scope(|scope| {
        let start = scope.spawn(|| rig.call(Request::Start(service("s"))));
        wait_for("it to be warming", || is_in(&rig, "warming"));
        rig.call(Request::Stop(service("s"))).unwrap();
        drop(start.join().unwrap());
    });
    let status = rig.status("s");
    assert_eq!(status.state, State::Stopped);
    assert_eq!(status.staged.map(|staged| staged.binary), Some(next));
}

#[test]
fn nothing_is_started_while_the_daemon_ends() {
    let mut rig = Rig::new();
    assert!(rig.stop_daemon().unwrap().success());
    let (_, taken) = waits_for_its_address(&rig, "late");
    rig.start_daemon();
    it_waits(&rig, "late");
    rig.serve("s", "1", "slow-seal-3000", "");
    let mut daemon = rig.daemon.take().unwrap();
    signal(daemon.id(), Signal::SIGTERM);
    wait_for("it to end", || rig.daemon_log().contains("stopping all services").then_some(()));
    drop(taken);
    let status = wait_for("its end", || daemon.try_wait().unwrap());
    assert!(status.success(), "{status:?}");
    assert!(processes_of(&rig.path("testee-late")).is_empty(), "a process is left without a daemon");
}

#[test]
fn a_service_that_waits_for_its_address_can_be_stopped_and_is_passed_over() {
    let mut rig = Rig::new();
    assert!(rig.stop_daemon().unwrap().success());
    let (address, taken) = waits_for_its_address(&rig, "late");
    rig.start_daemon();
    it_waits(&rig, "late");
    let all = rig.run(&["upgrade", "--all"]);
    let said = String::from_utf8_lossy(&all.stdout).into_owned();
    assert_eq!(all.status.code(), Some(0), "{all:?}");
    assert!(said.contains("passed over: late"), "{said}");
    let stop = rig.run(&["stop", "late"]);
    assert_eq!(stop.status.code(), Some(0), "{stop:?}");
    assert_eq!(rig.status("late").state, State::Stopped);
    close(taken);
    assert!(String::from_utf8_lossy(&rig.run(&["history", "late"]).stdout).contains("stop"));
    assert!(TcpStream::connect(address).is_err());
    assert_eq!(rig.run(&["stop", "late"]).status.code(), Some(0), "it does not run, as was asked");
}

#[test]
fn an_address_that_was_edited_while_nothing_ran_is_the_one_that_serves() {
    for mode in ["exclusive", "overlap"] {
        let mut rig = Rig::new();
        let old = rig.serve("s", "1", "", &format!("mode = \"{mode}\""));
        let pid = rig.status("s").pid.unwrap();
        signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
        rig.daemon.take().unwrap().wait().unwrap();
        kill(pid);
        let new = crate::support::free_address();
        edit(&rig, "s", &old.to_string(), &new.to_string());
        rig.start_daemon();
        rig.settled("s");
        assert!(TcpStream::connect_timeout(&new, Duration::from_secs(5)).is_ok(), "{mode}: it is not bound");
        assert_eq!(version(new), "1", "{mode}");
        assert!(TcpStream::connect(old).is_err(), "{mode}: the old address is still bound");
        assert_eq!(rig.upgrade("s", &rig.release("2", "")).unwrap().outcome, Ending::Committed);
        assert_eq!(version(new), "2", "{mode}");
    }
}

#[test]
fn an_upgrade_of_a_service_that_is_stopped_meanwhile_is_not_kept_for_later() {
    let rig = Rig::new();
    let go_on = rig.path("go-on");
    let command = format!("until [ -e {} ]; do sleep 0.05; done", go_on.display());
    rig.serve("s", "1", "", &format!("preflight = [\"/bin/sh\", \"-c\", {command:?}]"));
    let next = rig.release("2", "");
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| rig.upgrade("s", &next));
        wait_for("the preflight", || (!processes_of(&go_on).is_empty()).then_some(()));
        rig.call(Request::Stop(service("s"))).unwrap();
        fs::write(&go_on, "").unwrap();
        assert_eq!(kind(upgrade.join().unwrap().unwrap_err()), Kind::NotRunning);
    });
    assert_eq!(rig.status("s").staged, None);
}
