//! Changes of service files while no daemon runs.

use std::fs;
use std::path::PathBuf;

use handoff::control::api::{Ending, Request, Response, ServiceStatus, State};
use handoff::sys::process::Signal;

use super::hanging::write;
use crate::support::{Rig, service, signal, version, wait_for};

fn file(rig: &Rig, name: &str) -> PathBuf {
    rig.path(&format!("config/services/{name}.toml"))
}

/// The daemon ends, and its services run on.
fn leave(rig: &mut Rig) {
    let mut daemon = rig.daemon.take().unwrap();
    signal(daemon.id(), Signal::SIGQUIT);
    wait_for("the daemon to leave", || daemon.try_wait().unwrap());
}

fn list(rig: &Rig) -> Vec<ServiceStatus> {
    match rig.call(Request::List).unwrap() {
        Response::List(all) => all,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_broken_file_hides_no_service_from_a_new_daemon_and_keeps_its_address() {
    let mut rig = Rig::new();
    let address = rig.serve("runs", "1", "", "");
    let idle = write(&rig, "idle", &rig.release("2", ""), "");
    rig.call(Request::Start(service("idle"))).unwrap();
    rig.call(Request::Stop(service("idle"))).unwrap();
    let pid = rig.status("runs").pid;
    leave(&mut rig);
    let texts = ["runs", "idle"].map(|name| fs::read_to_string(file(&rig, name)).unwrap());
    for (name, text) in ["runs", "idle"].into_iter().zip(&texts) {
        fs::write(file(&rig, name), text.replace("autostart = false", "autostart = maybe")).unwrap();
    }
    // The new names sort first.
    for (name, address) in [("a", address), ("b", idle)] {
        let text = format!(
            "binary = {:?}\nargs = [{:?}]\nautostart = true\nstore = false\n[listen]\nmain = \"{address}\"\n",
            rig.release("3", ""),
            rig.path("data")
        );
        fs::write(file(&rig, name), text).unwrap();
    }
    rig.start_daemon();
    rig.settled("runs");
    let all = list(&rig);
    let of = |name: &str| {
        all.iter().find(|it| it.service == service(name)).unwrap_or_else(|| panic!("{name}: {all:?}"))
    };
    assert_eq!((of("runs").pid, of("runs").state), (pid, State::Serving));
    assert_eq!(of("idle").state, State::Failed);
    for name in ["runs", "idle"] {
        let problem = of(name).problem.clone().unwrap();
        assert!(problem.contains(&format!("{name}.toml:3:13")), "{problem}");
        assert_eq!(rig.status(name).problem, Some(problem));
    }
    for (name, of_whom) in [("a", "runs"), ("b", "idle")] {
        let problem = of(name).problem.clone().unwrap();
        assert!(problem.contains(&format!("is an address of \"{of_whom}\" too")), "{problem}");
        let error = rig.call(Request::Start(service(name))).unwrap_err().to_string();
        assert!(error.contains(of_whom), "{error}");
    }
    assert_eq!(version(address), "1");

    for (name, text) in ["runs", "idle"].into_iter().zip(&texts) {
        fs::write(file(&rig, name), text).unwrap();
    }
    assert_eq!(rig.status("runs").problem, None);
    assert_eq!(rig.upgrade("runs", &rig.release("4", "")).unwrap().outcome, Ending::Committed);
    rig.call(Request::Start(service("idle"))).unwrap();
    assert_eq!(version(idle), "2");
}

#[test]
fn an_address_that_is_in_two_files_stays_with_the_service_that_was_there_before() {
    let mut rig = Rig::new();
    let address = rig.write_service("later", &rig.release("1", ""), "");
    fs::write(
        file(&rig, "later"),
        fs::read_to_string(file(&rig, "later")).unwrap().replace("autostart = false", ""),
    )
    .unwrap();
    rig.call(Request::Start(service("later"))).unwrap();
    // A stop in order, so that no process is left.
    assert!(rig.stop_daemon().unwrap().success());
    fs::copy(file(&rig, "later"), file(&rig, "a")).unwrap();
    rig.start_daemon();
    wait_for("it to serve", || (rig.status("later").state == State::Serving).then_some(()));
    assert_eq!(version(address), "1");
    let newcomer = rig.status("a");
    assert_eq!(newcomer.state, State::Failed);
    assert!(newcomer.problem.unwrap().contains("later"));
}

#[test]
fn a_removed_service_is_remembered_by_the_next_daemon() {
    for noticed in [true, false] {
        let mut rig = Rig::new();
        let text = |rig: &Rig| fs::read_to_string(file(rig, "s")).unwrap();
        rig.serve("s", "1", "", "");
        rig.call(Request::Stop(service("s"))).unwrap();
        let same = text(&rig);
        let generation = rig.status("s").generation;
        let remove = |rig: &mut Rig| {
            if noticed {
                fs::remove_file(file(rig, "s")).unwrap();
                assert!(list(rig).is_empty());
                leave(rig);
            } else {
                leave(rig);
                fs::remove_file(file(rig, "s")).unwrap();
            }
            rig.start_daemon();
            assert!(list(rig).is_empty());
            leave(rig);
        };
        // The same file brings the service back.
        remove(&mut rig);
        fs::write(file(&rig, "s"), &same).unwrap();
        rig.start_daemon();
        rig.call(Request::Start(service("s"))).unwrap();
        assert!(rig.status("s").generation > generation, "noticed: {noticed}");
        rig.call(Request::Stop(service("s"))).unwrap();
        assert!(!rig.path("state/removed").exists());
        // A different file is a new service.
        remove(&mut rig);
        fs::write(file(&rig, "s"), same.replace("autostart", "deadline = \"50s\"\nautostart")).unwrap();
        rig.start_daemon();
        rig.call(Request::Start(service("s"))).unwrap();
        assert_eq!(rig.status("s").generation.0, 1, "noticed: {noticed}");
        assert!(rig.path("state/removed/s/journal").exists());
    }
}

#[test]
fn a_link_that_leads_nowhere_is_reported_and_not_taken_for_a_removed_file() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let (place, pid) = (rig.path("s.toml"), rig.status("s").pid);
    fs::rename(file(&rig, "s"), &place).unwrap();
    for name in ["s", "new"] {
        std::os::unix::fs::symlink(&place, file(&rig, name)).unwrap();
    }
    fs::rename(&place, rig.path("aside")).unwrap();
    let problem = rig.status("s").problem.unwrap();
    assert!(problem.contains("its link leads nowhere"), "{problem}");
    let all = list(&rig);
    let new = all.iter().find(|it| it.service == service("new")).expect("it is listed");
    assert!(new.state == State::Failed && new.problem.as_ref().unwrap().contains("leads nowhere"), "{new:?}");
    assert_eq!((rig.status("s").pid, version(address).as_str()), (pid, "1"));
    rig.call(Request::Stop(service("s"))).unwrap();
    assert!(list(&rig).iter().any(|it| it.service == service("s")), "it is not forgotten");
    fs::remove_file(file(&rig, "new")).unwrap();
    fs::rename(rig.path("aside"), &place).unwrap();
    assert_eq!(rig.status("s").problem, None);
    rig.call(Request::Start(service("s"))).unwrap();
}
