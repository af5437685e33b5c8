//! What a daemon tells afterwards of what was attempted.
#![cfg(feature = "supervisor")]

mod support;

use std::process::Command;

use handoff::control::ClientError;
use handoff::control::api::{self, Request, Response};
use handoff::history::{Ending, Entry, Operation};
use support::{Rig, service, signal, version, wait_for};

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
fn every_operation_is_told_with_who_asked_and_how_it_ended() {
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
    assert_eq!(upgrade.by.uid, rustix::process::geteuid().as_raw());
    assert!(upgrade.by.command.contains("upgrade s --binary"), "{:?}", upgrade.by);
    assert_eq!(entries[0].by.pid, std::process::id(), "the start came from this test");
    assert!(upgrade.accept_gap_us.is_some() && upgrade.generation.0 == 2, "{upgrade:?}");
    assert!(upgrade.to.as_ref().unwrap().sha256.is_some() && upgrade.reason.is_none());
    let phases: Vec<&str> = upgrade.phases.iter().map(|phase| phase.phase.as_str()).collect();
    assert!(phases.starts_with(&["greeting", "warming", "draining", "sealing", "beginning"]), "{phases:?}");
    assert_eq!((rolled_back.id, &rolled_back.reason), (outcome.handoff, &outcome.reason));
    assert!(rolled_back.took_us >= outcome.took_us, "it counts from the request on");
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

/// Kills the daemon while the new process has `fault`, and starts another one.
fn lost_in_the_middle(fault: &str, phase: &str) -> (Rig, std::net::SocketAddr) {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let mut upgrade = rig.handoff(&["upgrade", "s", "--binary"]);
    let mut upgrade = upgrade.arg(rig.release("2", fault)).spawn().unwrap();
    wait_for(phase, || (rig.status("s").phase.as_deref() == Some(phase)).then_some(()));
    let mut daemon = rig.daemon.take().unwrap();
    signal(daemon.id(), rustix::process::Signal::KILL);
    daemon.wait().unwrap();
    upgrade.wait().unwrap();
    rig.start_daemon();
    wait_for("the service to rest", || {
        (rig.status("s").state == handoff::control::api::State::Serving).then_some(())
    });
    (rig, address)
}

#[test]
fn an_upgrade_whose_daemon_was_lost_is_told_with_who_asked() {
    let (rig, address) = lost_in_the_middle("slow-start-5000", "warming");
    assert_eq!(version(address), "1");
    let last = history(&rig, Some("s"), None).pop().unwrap();
    assert_eq!((last.operation, last.outcome), (Operation::Upgrade, Ending::RolledBack), "{last:?}");
    assert!(last.by.command.contains("upgrade s --binary"), "{last:?}");
    assert!(last.reason.unwrap().contains("supervisor ended in the middle"));
    assert_eq!(last.to.unwrap().path, rig.path("testee-2"));
}

#[test]
fn an_upgrade_that_another_daemon_completes_is_told_as_committed() {
    let (rig, address) = lost_in_the_middle("slow-begin-4000", "beginning");
    let last = history(&rig, Some("s"), None).pop().unwrap();
    assert_eq!(version(address), "2", "{last:?}");
    assert_eq!((last.operation, last.outcome), (Operation::Upgrade, Ending::Committed), "{last:?}");
    assert!(last.by.command.contains("upgrade s --binary"), "{last:?}");
    assert!(last.reason.as_ref().unwrap().contains("was lost"), "{last:?}");
    assert_eq!(told(&rig).len(), 2, "the attempt is there once");
}

#[test]
fn an_attempt_under_way_is_told_as_such() {
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
    // It is told from memory meanwhile, and is written when there is room.
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
    let (code, table, _) = run(&["history"]);
    assert_eq!(code, Some(0));
    let row = table.lines().find(|line| line.contains("upgrade")).unwrap();
    assert!(row.contains("committed") && row.contains("testee-2") && row.contains("ms"), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");

    let (_, picture, _) = run(&["history", "s", "--last"]);
    for word in ["upgrade s: committed after", "supervisor", "incumbent", "successor", "sealing", "█", "+"]
    {
        assert!(picture.contains(word), "{word} is not in\n{picture}");
    }
    assert!(
        !picture.contains('\x1b') && picture.lines().all(|line| line.chars().count() <= 110),
        "{picture}"
    );

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
