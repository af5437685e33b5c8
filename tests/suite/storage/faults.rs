//! Every operation on the journal fails once, in the whole life of a real service under the real daemon.

use std::fs;

use handoff::control::api::Ending;
use handoff::sys::process::Signal;
use handoff_protocol::log_image;
use handoff_protocol::record::{Fact, Record};

use super::disk::{Disk, Fault};
use crate::support::{Rig, all_or, signal, version, wait_for};

const FAULTS: [Fault; 3] = [Fault::Full, Fault::Broken, Fault::Short];

/// The faults of operation `number`: all of them, or one in turn.
fn faults_of(number: usize) -> impl Iterator<Item = Fault> {
    FAULTS.into_iter().cycle().skip(number).take(all_or(FAULTS.len(), 1))
}

/// A rig whose service `s` has its state on a disk that can fail. Returns `None` if this user cannot mount the disk.
fn rig() -> Option<(Rig, Disk)> {
    let mut rig = Rig::new();
    rig.stop_daemon();
    let (state, backing) = (rig.path("state/services/s"), rig.path("backing"));
    fs::create_dir_all(&state).unwrap();
    fs::create_dir(&backing).unwrap();
    let Some(disk) = Disk::mount(&state, &backing) else {
        eprintln!("not run: it needs root and /dev/fuse");
        return None;
    };
    Some((rig, disk))
}

fn restart_daemon(rig: &mut Rig) {
    signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
    rig.daemon.take().unwrap().wait().unwrap();
    rig.start_daemon();
}

#[test]
fn every_operation_of_an_upgrade_fails_once() {
    let Some((mut rig, disk)) = rig() else { return };
    rig.start_daemon();
    let address = rig.serve("s", "0", "", "lease = \"2s\"");
    let releases = ["1", "2"].map(|version| rig.release(version, ""));
    for release in &releases {
        rig.upgrade("s", release).unwrap();
    }
    rig.settled("s");
    disk.seen();
    let mut next = releases.iter().cycle();
    rig.upgrade("s", next.next().unwrap()).unwrap();
    rig.settled("s");
    let operations = disk.seen();
    println!("an upgrade: {operations:?}");
    assert!(operations.len() >= 6);
    let waits = operations.iter().filter(|operation| operation.starts_with("fsync"));
    assert_eq!(waits.count(), 1, "an upgrade waits for the disk once");

    for (number, operation) in operations.iter().enumerate() {
        for fault in faults_of(number) {
            let what = format!("{number}, {operation}: {fault:?}");
            let before = version(address);
            let release = next.next().unwrap();
            disk.fail(number, fault);
            let outcome = rig.upgrade("s", release).unwrap();
            rig.settled("s");
            disk.heal();
            let expected = match outcome.outcome {
                Ending::Committed => release.display().to_string().rsplit('-').next().unwrap().to_owned(),
                _ => before,
            };
            assert_eq!(version(address), expected, "{what}: {outcome:?}");
            if let Some(reason) = &outcome.reason {
                assert!(reason.contains("journal"), "{what}: {reason}");
            }

            // If the same daemon cannot mend the journal, the next one does.
            let again = rig.upgrade("s", next.next().unwrap()).unwrap();
            if again.outcome != Ending::Committed {
                assert!(operation.starts_with("fsync"), "{what}: {again:?}");
                let pid = rig.status("s").pid;
                restart_daemon(&mut rig);
                rig.settled("s");
                assert_eq!(rig.status("s").pid, pid, "{what}");
                let last = rig.upgrade("s", next.next().unwrap()).unwrap();
                assert_eq!(last.outcome, Ending::Committed, "{what}: {last:?}");
            }
            rig.settled("s");
        }
    }
    rig.stop_daemon();
}

/// An overlong journal of a service that has never run.
fn long_journal() -> Vec<u8> {
    let mut bytes = log_image::header().to_vec();
    for sequence in (1..).take_while(|sequence| sequence * 29 < 70_000) {
        let record = Record { at_unix_ms: 0, fact: Fact::Wanted { up: false } };
        bytes.extend(log_image::encode(sequence, &record).unwrap());
    }
    bytes
}

#[test]
fn every_operation_of_a_start_and_of_a_shorter_journal_fails_once() {
    let Some((mut rig, disk)) = rig() else { return };
    let releases = ["1", "2"].map(|version| rig.release(version, ""));
    let address = rig.write_service("s", &releases[0], "");
    let journal = rig.path("backing/journal");
    let mut life = |fault: Option<(usize, Fault)>| {
        fs::write(&journal, long_journal()).unwrap();
        disk.seen();
        if let Some((number, fault)) = fault {
            disk.fail(number, fault);
        }
        rig.start_daemon();
        let started = rig.run(&["start", "s"]).status.success();
        if started {
            assert_eq!(version(address), "1", "{fault:?}");
            rig.settled("s");
            // The last two operations of a compaction; or the fault, which may be one of them.
            let through = || disk.count("fsync journal's directory") == 2;
            wait_for("the operation to happen", || {
                (if fault.is_some() { !disk.is_faulty() } else { through() }).then_some(())
            });
        }
        assert!(!disk.is_faulty(), "{fault:?} was not reached");
        disk.heal();
        let seen = disk.seen();
        assert!(rig.stop_daemon().expect("it ends by itself").success(), "{fault:?}");
        rig.start_daemon();
        assert!(rig.run(&["start", "s"]).status.success(), "{fault:?}");
        rig.settled("s");
        let outcome = rig.upgrade("s", &releases[1]).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{fault:?}: {outcome:?}");
        assert_eq!(version(address), "2");
        rig.settled("s");
        wait_for("the journal to get shorter", || is_short(&rig).then_some(()));
        assert!(!rig.path("backing/journal.new").exists());
        rig.stop_daemon();
        seen
    };
    let operations = life(None);
    println!("a start: {operations:?}");
    for operation in ["read journal", "create journal.new", "rename journal.new", "fsync journal's directory"]
    {
        assert!(operations.iter().any(|seen| seen == operation), "no {operation}");
    }
    for number in 0..operations.len() {
        for fault in faults_of(number) {
            life(Some((number, fault)));
        }
    }
}

fn is_short(rig: &Rig) -> bool {
    fs::metadata(rig.path("backing/journal")).unwrap().len() < 64 * 1024
}
