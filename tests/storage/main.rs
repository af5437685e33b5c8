//! The real daemon on storage that fails.
#![cfg(feature = "supervisor")]

mod disk;
mod faults;
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::process::Stdio;

use handoff::control::api::{Ending, State};
use handoff_protocol::log_image;
use handoff_protocol::record::fold;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use support::{Rig, signal, version, wait_for};

#[test]
fn a_log_that_cannot_be_written_costs_nothing() {
    let full = || File::options().write(true).open("/dev/full").unwrap().into();
    let unread = || Stdio::from(std::io::pipe().unwrap().1);
    for log in [full(), unread()] {
        let mut rig = Rig::new();
        rig.stop_daemon();
        rig.start_daemon_logging_to(log);
        let address = rig.serve("s", "1", "", "");
        assert_eq!(rig.upgrade("s", &rig.release("2", "")).unwrap().outcome, Ending::Committed);
        assert_eq!(version(address), "2");
        assert!(rig.stop_daemon().expect("it ends by itself").success());
    }
}

/// Lets no file of the daemon grow over so many bytes: what is written across that is written in part, then refused.
fn limit_files(rig: &Rig, bytes: Option<u64>) {
    let daemon = Pid::from_raw(rig.daemon.as_ref().unwrap().id() as i32);
    prlimit(daemon, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
}

/// Whoever serves is the one that the journal names, as far as its records are whole.
fn agrees(rig: &Rig) {
    let image = log_image::parse(&fs::read(rig.path("state/services/s/journal")).unwrap()).unwrap();
    let status = rig.status("s");
    let current = fold(&image.records).current.unwrap();
    assert_eq!(
        (current.generation, current.binary.path),
        (status.generation, status.binary.display().to_string())
    );
}

#[test]
fn a_journal_that_is_cut_short_at_any_byte_of_an_upgrade_costs_that_upgrade() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "0", "", "lease = \"500ms\"");
    let releases = ["1", "2"].map(|version| rig.release(version, ""));
    rig.upgrade("s", &releases[0]).unwrap();
    let journal = rig.path("state/services/s/journal");
    let length = || fs::metadata(&journal).unwrap().len();
    let before = length();
    rig.upgrade("s", &releases[1]).unwrap();
    rig.settled("s");
    let needed = length() - before;

    let mut next = releases.iter().cycle();
    let mut refused = 0;
    for (round, room) in (0..=needed).step_by(7).chain([needed]).enumerate() {
        let before = version(address);
        limit_files(&rig, Some(length() + room));
        let outcome = rig.upgrade("s", next.next().unwrap()).unwrap();
        match outcome.outcome {
            Ending::Committed => assert_eq!(room, needed),
            _ => {
                refused += 1;
                let reason = outcome.reason.unwrap();
                assert!(reason.contains("journal") && reason.contains("File too large"), "{room}: {reason}");
                assert_eq!(version(address), before, "{room} bytes");
            }
        }
        agrees(&rig);
        if round % 5 == 4 {
            signal(rig.daemon.as_ref().unwrap().id(), Signal::KILL);
            rig.daemon.take().unwrap().wait().unwrap();
            rig.start_daemon();
            wait_for("it to be adopted", || (rig.status("s").state == State::Serving).then_some(()));
            agrees(&rig);
        } else {
            limit_files(&rig, None);
        }
        let outcome = rig.upgrade("s", next.next().unwrap()).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "after {room} bytes: {outcome:?}");
        agrees(&rig);
        rig.settled("s");
    }
    println!("{refused} upgrades of {needed} bytes were refused");
    assert!(refused > 30);
}

#[test]
fn a_process_that_could_not_be_recorded_is_taken_over_all_the_same() {
    for mode in ["exclusive", "overlap"] {
        let mut rig = Rig::new();
        let address = rig.serve("s", "1", "", &format!("mode = \"{mode}\"\nlease = \"500ms\""));
        let first = rig.status("s").pid.unwrap();
        let journal = rig.path("state/services/s/journal");
        limit_files(&rig, Some(fs::metadata(&journal).unwrap().len()));
        signal(first, Signal::KILL);
        let second = wait_for("another process", || {
            let status = rig.status("s");
            status.pid.filter(|pid| *pid != first && status.state == State::Serving)
        });
        let image = log_image::parse(&fs::read(&journal).unwrap()).unwrap();
        assert_ne!(fold(&image.records).current.unwrap().process.map(|process| process.pid), Some(second));
        signal(rig.daemon.as_ref().unwrap().id(), Signal::KILL);
        rig.daemon.take().unwrap().wait().unwrap();
        rig.start_daemon();
        wait_for("it to be taken over", || {
            let status = rig.status("s");
            (status.state == State::Serving && status.pid == Some(second)).then_some(())
        });
        assert_eq!(support::processes_of(&rig.path("testee-1")), [second], "{mode}");
        agrees(&rig);
        assert_eq!(rig.upgrade("s", &rig.release("2", "")).unwrap().outcome, Ending::Committed);
        assert_eq!(version(address), "2");
    }
}
