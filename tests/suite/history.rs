//! What a daemon reports about its services, and later about past attempts.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{Rig, kill, processes_of, service, signal, version, wait_for};
use handoff::control::api::{self, Request, Response, ServiceStatus, State};
use handoff::control::{ClientError, Kind};
use handoff::history::{Ending, Entry, Operation};
use handoff::sys::user::effective_user;

fn history(rig: &Rig, name: Option<&str>, limit: Option<u64>) -> Vec<Entry> {
    match rig.call(Request::History(api::History { service: name.map(service), limit })).unwrap() {
        Response::History(entries) => entries,
        other => panic!("{other:?}"),
    }
}

fn told(rig: &Rig) -> Vec<(Operation, Ending)> {
    history(rig, Some("s"), None).iter().map(|entry| (entry.operation, entry.outcome)).collect()
}

#[test]
fn every_operation_is_reported_with_its_caller_and_its_outcome() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    let (second, bad) = (rig.release("2", ""), rig.release("3", "exit-after-begin"));
    let run = rig.run(&["upgrade", "s", "--binary", second.to_str().unwrap()]);
    assert!(run.status.success(), "{run:?}");
    let outcome = rig.upgrade("s", &bad).unwrap();
    rig.call(Request::Restart(service("s"))).unwrap();
    rig.call(Request::Stop(service("s"))).unwrap();

    let entries = history(&rig, Some("s"), None);
    assert_eq!(
        told(&rig),
        [
            (Operation::Start, Ending::Started),
            (Operation::Upgrade, Ending::Committed),
            (Operation::Upgrade, Ending::RolledBack),
            (Operation::Restart, Ending::Committed),
            (Operation::Stop, Ending::Stopped),
        ]
    );
    let path = |version: &Option<handoff::history::Version>| version.as_ref().map(|it| it.path.clone());
    let first = rig.path("testee-1");
    let paths: Vec<_> = entries.iter().map(|entry| (path(&entry.from), path(&entry.to))).collect();
    let some = |path: &std::path::Path| Some(path.to_owned());
    assert_eq!(
        paths,
        [
            (None, some(&first)),
            (some(&first), some(&second)),
            (some(&second), some(&bad)),
            (some(&second), some(&second)),
            (some(&second), None),
        ]
    );
    let (upgrade, rolled_back) = (&entries[1], &entries[2]);
    assert_eq!(upgrade.by.uid, effective_user());
    assert!(upgrade.by.command.contains("upgrade s --binary"), "{:?}", upgrade.by);
    assert_eq!(entries[0].by.pid, std::process::id(), "the start came from this test");
    assert!(upgrade.accept_gap_us.is_some() && upgrade.generation.0 == 2, "{upgrade:?}");
    assert!(upgrade.to.as_ref().unwrap().sha256.is_some() && upgrade.reason.is_none());
    let phases: Vec<&str> = upgrade.phases.iter().map(|phase| phase.phase.as_str()).collect();
    assert!(phases.starts_with(&["greeting", "warming", "draining", "sealing", "beginning"]), "{phases:?}");
    assert_eq!((Some(rolled_back.id), &rolled_back.reason), (outcome.handoff, &outcome.reason));
    assert_eq!((rolled_back.took_us, &rolled_back.phases), (outcome.took_us, &outcome.phases), "one source");
    assert!(rolled_back.phases.iter().any(|phase| phase.phase == "resuming"), "{rolled_back:?}");
    assert_eq!(history(&rig, None, Some(2)), entries[3..]);
}

#[test]
fn a_request_that_is_refused_leaves_nothing() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    let again = rig.call(Request::Start(service("s")));
    assert!(matches!(again, Err(ClientError::Refused(_))));
    assert_eq!(told(&rig), [(Operation::Start, Ending::Started)]);
    assert!(rig.call(Request::History(api::History { service: Some(service("t")), limit: None })).is_err());
}

#[test]
fn it_is_kept_across_restarts_of_the_daemon() {
    let mut rig = Rig::new();
    rig.serve("s", "1", "", "");
    rig.upgrade("s", &rig.release("2", "")).unwrap();
    rig.stop_daemon().unwrap();
    rig.start_daemon();
    let entries = history(&rig, Some("s"), None);
    assert_eq!(
        told(&rig),
        [
            (Operation::Start, Ending::Started),
            (Operation::Upgrade, Ending::Committed),
            (Operation::Stop, Ending::Stopped),
        ]
    );
    assert_eq!(entries[2].by.command, "the daemon ends");
}

/// Kills the daemon while the new process has `fault`, and starts another daemon.
fn lost_in_the_middle(fault: &str, phase: &str) -> (Rig, std::net::SocketAddr) {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let mut upgrade = rig.handoff(&["upgrade", "s", "--binary"]);
    let mut upgrade = upgrade.arg(rig.release("2", fault)).spawn().unwrap();
    wait_for(phase, || (rig.status("s").phase.as_deref() == Some(phase)).then_some(()));
    // A new process logs that it begins when it has the data lock. Before that, the old process could take the lock
    // back.
    let log = rig.path("state/services/s/log/current");
    let has_begun = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("testee 2 begins"));
    wait_for("the data lock", || (phase != "beginning" || has_begun()).then_some(()));
    let mut daemon = rig.daemon.take().unwrap();
    signal(daemon.id(), handoff::sys::process::Signal::SIGKILL);
    daemon.wait().unwrap();
    upgrade.wait().unwrap();
    rig.start_daemon();
    rig.settled("s");
    (rig, address)
}

#[test]
fn an_upgrade_whose_daemon_was_lost_is_reported_with_its_caller() {
    let (rig, address) = lost_in_the_middle("slow-start-5000", "warming");
    assert_eq!(version(address), "1");
    let last = history(&rig, Some("s"), None).pop().unwrap();
    assert_eq!((last.operation, last.outcome), (Operation::Upgrade, Ending::RolledBack), "{last:?}");
    assert!(last.by.command.contains("upgrade s --binary"), "{last:?}");
    assert!(last.reason.unwrap().contains("supervisor ended in the middle"));
    assert_eq!(last.to.unwrap().path, rig.path("testee-2"));
}

#[test]
fn an_upgrade_that_another_daemon_completes_is_reported_as_committed() {
    let (rig, address) = lost_in_the_middle("slow-begin-6000", "beginning");
    let last = history(&rig, Some("s"), None).pop().unwrap();
    assert_eq!(version(address), "2", "{last:?}");
    assert_eq!((last.operation, last.outcome), (Operation::Upgrade, Ending::Committed), "{last:?}");
    assert!(last.by.command.contains("upgrade s --binary"), "{last:?}");
    assert!(last.reason.as_ref().unwrap().contains("was lost"), "{last:?}");
    assert_eq!(told(&rig).len(), 2, "the attempt is there once");
}

#[test]
fn an_attempt_under_way_is_reported_as_such() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    let mut upgrade = rig.handoff(&["upgrade", "s", "--binary"]);
    let mut upgrade = upgrade.arg(rig.release("2", "hang-while-warming")).spawn().unwrap();
    let entry = wait_for("the attempt", || {
        history(&rig, Some("s"), None).pop().filter(|entry| entry.operation == Operation::Upgrade)
    });
    assert_eq!(entry.outcome, Ending::UnderWay);
    rig.call(Request::Cancel(service("s"))).unwrap();
    upgrade.wait().unwrap();
    assert_eq!(told(&rig), [(Operation::Start, Ending::Started), (Operation::Upgrade, Ending::RolledBack)]);
}

#[test]
fn a_history_that_cannot_be_written_stops_nothing() {
    let rig = Rig::new();
    let state = rig.path("state/services/s");
    std::fs::create_dir_all(&state).unwrap();
    std::os::unix::fs::symlink("/dev/full", state.join("history")).unwrap();
    let address = rig.serve("s", "1", "", "");
    rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(version(address), "2");
    // Meanwhile the daemon reports the entry from memory. It writes the entry when there is room.
    assert_eq!(told(&rig).last(), Some(&(Operation::Upgrade, Ending::Committed)));
    wait_for("the log", || rig.daemon_log().contains("is not written").then_some(()));
    std::fs::remove_file(state.join("history")).unwrap();
    rig.upgrade("s", &rig.release("3", "")).unwrap();
    assert_eq!(told(&rig).len(), 3);
    let lines = std::fs::read_to_string(state.join("history")).unwrap();
    assert!(lines.contains("testee-2") && lines.contains("testee-3"), "{lines}");
}

#[test]
fn the_verb_shows_a_table_a_picture_and_objects() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    rig.upgrade("s", &rig.release("2", "")).unwrap();
    let run = |args: &[&str]| {
        let output = Command::output(rig.handoff(args).env("COLUMNS", "110")).unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let table = rig.run(&["history"]);
    assert_eq!(table.status.code(), Some(0));
    let table = String::from_utf8(table.stdout).unwrap();
    let row = table.lines().find(|line| line.contains("upgrade")).unwrap();
    assert!(row.contains("committed") && row.contains("testee-2"), "{table}");
    // On a busy machine an upgrade may take seconds.
    let took = table.lines().next().and_then(|head| row.get(head.find("TOOK")?..)).unwrap();
    assert!(["ms", "s"].map(Some).contains(&took.split_whitespace().nth(1)), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");

    let (_, picture, _) = run(&["history", "s", "--last"]);
    for word in ["upgrade s: committed after", "supervisor", "incumbent", "successor", "sealing", "█", "+"]
    {
        assert!(picture.contains(word), "{word} is not in\n{picture}");
    }
    assert!(!picture.contains('\x1b'), "{picture}");
    // Text such as the caller is printed in full. Only the drawn lines have a limited width.
    let drawn: Vec<&str> = picture.lines().filter(|line| line.contains(['|', '█', '▒', '·'])).collect();
    assert!(drawn.len() > 4 && drawn.iter().all(|line| line.chars().count() <= 110), "{picture}");

    let (_, objects, _) = run(&["history", "s", "--json"]);
    let entries: Vec<Entry> = objects.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries, history(&rig, Some("s"), None));
    let id = entries[0].id.to_string();
    let (_, first, _) = run(&["history", "--id", &id[id.len() - 8..], "--json"]);
    assert_eq!(serde_json::from_str::<Entry>(&first).unwrap(), entries[0]);
    let (code, _, stderr) = run(&["history", "--id", "0123456789"]);
    assert!(code == Some(1) && stderr.contains("There is no attempt"), "{stderr}");
    let (code, _, stderr) = run(&["history", "--id", "-"]);
    assert!(code == Some(1) && stderr.contains("2 attempts"), "{stderr}");
}

/// The status between two tries.
fn waits(rig: &Rig) -> ServiceStatus {
    wait_for("a pause between two tries", || Some(rig.status("s")).filter(|it| it.state == State::Backoff))
}

#[test]
fn a_first_start_that_fails_is_reported_with_its_cause_and_the_next_try() {
    let rig = Rig::new();
    let bad = rig.release("1", "exit-at-once");
    let address = rig.write_service("s", &bad, "");
    let start = rig.run(&["start", "s"]);
    assert_eq!(start.status.code(), Some(1), "{start:?}");
    let status = waits(&rig);
    let problem = status.problem.unwrap();
    assert!(problem.starts_with("It could not be started: the new process exited with code 1"), "{problem}");
    assert!(problem.ends_with("it is tried again."), "{problem}");
    assert!(status.next_try_at.is_some() && status.restarts >= 2, "{:?}", status.restarts);
    let last = status.last_handoff.unwrap();
    assert_eq!((last.outcome, last.handoff.is_some()), (api::Ending::Failed, true), "{last:?}");
    assert_eq!(told(&rig), [(Operation::Start, Ending::Failed)]);
    wait_for("a pause between two tries to be shown", || {
        let shown = String::from_utf8(rig.run(&["status", "s"]).stdout).unwrap();
        assert!(shown.contains("s failed after") || shown.contains("starting"), "{shown}");
        shown.contains("next try").then_some(())
    });
    let tries = rig.daemon_log().matches("exited with code 1 before it was ready").count();
    assert!(tries >= 2, "each try is in the log");
    // Once the service serves, the problem is gone.
    let release = rig.release("2", "");
    let good = wait_for("a pause between two tries", || match rig.upgrade("s", &release) {
        Err(ClientError::Refused(error)) if error.kind == Kind::Busy => None,
        outcome => Some(outcome.unwrap()),
    });
    assert_eq!((good.outcome, good.reason), (api::Ending::Committed, None));
    let status = rig.looked_at("s");
    assert_eq!((status.problem, status.next_try_at), (None, None));
    assert_eq!(version(address), "2");
}

#[test]
fn a_restart_that_cannot_start_says_why_until_it_can() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "backoff = { attempts = 0 }");
    let (bad, at) = (rig.release("2", "exit-at-once"), rig.path("testee-1"));
    std::fs::rename(&at, rig.path("good")).unwrap();
    std::fs::rename(&bad, &at).unwrap();
    let pid = rig.status("s").pid.unwrap();
    kill(pid);
    let problem = wait_for("the cause", || {
        waits(&rig).problem.filter(|problem| problem.contains("could not be started again"))
    });
    let death = format!("The process {pid} was killed by signal 9");
    assert!(problem.starts_with(&death) && problem.contains("exited with code 1"), "{problem}");
    assert!(!problem.contains("it was started again"), "{problem}");
    // The next try is a start, not a replacement. The restart is requested in a long pause between two tries.
    wait_for("a long pause", || {
        let next = waits(&rig).next_try_at;
        // Measured from now, because a status may take a second.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        next.filter(|at| *at > now + 2_500)
    });
    std::fs::rename(rig.path("good"), &at).unwrap();
    rig.call(Request::Restart(service("s"))).unwrap();
    assert_eq!(told(&rig), [(Operation::Start, Ending::Started), (Operation::Restart, Ending::Started)]);
    assert_eq!((version(address), rig.status("s").problem), ("1".to_owned(), None));

    // An automatic retry has the same result, and reports it.
    std::fs::rename(&at, rig.path("good")).unwrap();
    std::fs::rename(rig.release("2", "exit-at-once"), &at).unwrap();
    let pid = rig.status("s").pid.unwrap();
    kill(pid);
    waits(&rig);
    std::fs::rename(rig.path("good"), &at).unwrap();
    let status = rig.settled("s");
    let death = format!("The process {pid} was killed by signal 9; it was started again.");
    assert_eq!((status.problem, status.next_try_at), (Some(death), None));
}

#[test]
fn the_reason_of_one_attempt_is_not_that_of_the_next() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    let reason = |name: &str, fault: &str| rig.upgrade("s", &rig.release(name, fault)).unwrap().reason;
    assert!(reason("2", "exit-at-once").unwrap().contains("exited with code 1"));
    let second = reason("3", "unhealthy").unwrap();
    assert!(second.contains("not healthy") && !second.contains("exited"), "{second}");
    assert_eq!(rig.status("s").problem, None, "the outcome reports it");
    assert_eq!(reason("4", ""), None);
    let status = rig.looked_at("s");
    assert_eq!((status.problem, status.restarts), (None, 0));
}

#[test]
fn what_came_to_no_handoff_has_no_id() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "store = true");
    let file = rig.path("testee-1");
    let same = rig.run(&["installed", "s", file.to_str().unwrap(), "--json"]);
    let told = String::from_utf8(same.stdout).unwrap();
    assert!(told.contains("\"outcome\":\"unchanged\"") && told.contains("\"handoff\":null"), "{told}");
    assert!(!told.contains("00000000-0000"), "{told}");
}

/// A process group gets a signal twice if its leader forwards it.
#[test]
fn two_signals_at_once_are_one_order_and_a_later_one_leaves_the_services() {
    use handoff::sys::process::Signal;
    let end = |rig: &mut Rig| {
        let mut daemon = rig.daemon.take().unwrap();
        let ended = wait_for("the daemon to end", || daemon.try_wait().unwrap());
        assert!(ended.success(), "{ended}");
    };
    let mut rig = Rig::new();
    rig.serve("s", "1", "", "");
    let daemon = rig.daemon.as_ref().unwrap().id();
    for order in [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM] {
        crate::support::signal(daemon, order);
    }
    end(&mut rig);
    assert_eq!(processes_of(rig.root.path()), Vec::<u32>::new());

    let mut rig = Rig::new();
    rig.serve("s", "1", "seal-hang", "");
    let (daemon, pid) = (rig.daemon.as_ref().unwrap().id(), rig.status("s").pid.unwrap());
    crate::support::signal(daemon, Signal::SIGTERM);
    wait_for("the order", || rig.daemon_log().contains("stopping all services").then_some(()));
    let ordered = std::time::Instant::now();
    let is_later = || ordered.elapsed() > std::time::Duration::from_millis(1_100);
    wait_for("the next signal to count as another order", || is_later().then_some(()));
    crate::support::signal(daemon, Signal::SIGTERM);
    end(&mut rig);
    assert!(processes_of(rig.root.path()).contains(&pid));
}

fn text(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn file_of(rig: &Rig, name: &str) -> std::path::PathBuf {
    rig.path(&format!("config/services/{name}.toml"))
}

/// Writes a file for service `name`, with the address of service `like`.
fn newcomer(rig: &Rig, name: &str, like: &str) {
    let text = std::fs::read_to_string(file_of(rig, like)).unwrap();
    let right: String =
        text.lines().filter(|line| !line.starts_with("binnary")).map(|it| format!("{it}\n")).collect();
    std::fs::write(file_of(rig, name), right).unwrap();
}

#[test]
fn a_service_whose_file_is_broken_is_shown_with_the_place_and_keeps_its_address() {
    let rig = Rig::new();
    rig.write_service("old", &rig.release("1", ""), "");
    assert_eq!(rig.status("old").state, State::Stopped);
    let good = std::fs::read_to_string(file_of(&rig, "old")).unwrap();
    std::fs::write(file_of(&rig, "old"), format!("binnary = \"/x\"\n{good}")).unwrap();
    newcomer(&rig, "a-new-one", "old");
    let status = rig.status("old");
    let problem = status.problem.unwrap();
    assert!(status.state == State::Failed && problem.contains("old.toml:1:1: binnary"), "{problem}");
    assert_eq!((status.binary, status.listeners.len()), (rig.path("testee-1"), 1));
    let list = text(&rig.run(&["list"]));
    assert!(list.contains("old.toml:1:1") && list.contains("a-new-one"), "{list}");
    let start = rig.run(&["start", "a-new-one"]);
    assert_eq!(start.status.code(), Some(3), "{}", text(&start));
    assert!(text(&start).contains("an address of \"old\" too"), "{}", text(&start));
    std::fs::write(file_of(&rig, "old"), good).unwrap();
    let status = rig.status("old");
    assert_eq!((status.state, status.problem), (State::Stopped, None));

    // A file that was never valid is shown as well. Its readable addresses are not given to other services.
    std::fs::remove_file(file_of(&rig, "a-new-one")).unwrap();
    rig.write_service("worse", &rig.release("2", ""), "binnary = 1");
    let status = rig.status("worse");
    let problem = status.problem.unwrap();
    assert!(status.state == State::Failed && problem.contains("worse.toml:"), "{problem}");
    newcomer(&rig, "a-new-one", "worse");
    let start = rig.run(&["start", "a-new-one"]);
    assert!(text(&start).contains("an address of \"worse\" too"), "{}", text(&start));
    assert_eq!(rig.run(&["start", "old"]).status.code(), Some(0), "what was there before is not disturbed");
}

#[test]
fn a_removed_service_is_forgotten_and_its_name_can_be_used_again() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    rig.upgrade("s", &rig.release("2", "")).unwrap();
    let file = std::fs::read_to_string(file_of(&rig, "s")).unwrap();
    std::fs::remove_file(file_of(&rig, "s")).unwrap();
    let status = rig.status("s");
    assert!(status.state == State::Serving && status.problem.unwrap().contains("s.toml is gone"));
    rig.call(Request::Stop(service("s"))).unwrap();
    assert!(!text(&rig.run(&["list"])).contains("testee"), "it is gone with its file");
    for args in [&["status", "s"], &["start", "s"], &["check", "s"]] {
        let output = rig.run(args);
        let told = text(&output);
        assert!(output.status.code() == Some(1) && told.contains("no service \"s\""), "{args:?}: {told}");
        assert!(!told.contains("Did you mean"), "{args:?}: {told}");
    }
    // The address is free.
    std::fs::write(file_of(&rig, "t"), &file).unwrap();
    assert_eq!(rig.run(&["start", "t"]).status.code(), Some(0));
    assert_eq!(version(address), "1");
    rig.call(Request::Stop(service("t"))).unwrap();
    // The same file is the same service, with its state. A different file is a new service. The daemon is not asked
    // before the start.
    std::fs::rename(file_of(&rig, "t"), file_of(&rig, "s")).unwrap();
    assert_eq!(rig.run(&["start", "s"]).status.code(), Some(0));
    assert_eq!((version(address), rig.status("s").generation.0), ("2".to_owned(), 3));
    rig.call(Request::Stop(service("s"))).unwrap();
    std::fs::remove_file(file_of(&rig, "s")).unwrap();
    assert!(!text(&rig.run(&["list"])).contains("testee"));
    let other = rig.write_service("s", &rig.release("3", ""), "");
    assert_eq!(rig.run(&["start", "s"]).status.code(), Some(0));
    assert_eq!((version(other), rig.status("s").generation.0), ("3".to_owned(), 1));
    assert!(rig.path("state/removed/s/journal").exists(), "what the other one has left can be looked at");
}
