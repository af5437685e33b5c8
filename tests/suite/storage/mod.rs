//! The real daemon on failing storage.

mod disk;
mod faults;
mod hang;
mod hanging;
mod held;
mod limits;
mod lost;
mod own;
mod room;
mod service_files;
mod stranger;
mod unusable;

use std::fs::{self, File};
use std::process::Stdio;

use crate::support::{Rig, all_or, service, signal, version, wait_for};
use handoff::control::api::{Ending, Request, State};
use handoff::sys::limits::{Resource, UNLIMITED, set_limits};
use handoff::sys::process::Signal;
use handoff_protocol::log_image;
use handoff_protocol::record::fold;
use nix::fcntl::{FcntlArg, fcntl};

#[test]
fn a_log_that_cannot_be_written_costs_nothing() {
    let full = || File::options().write(true).open("/dev/full").unwrap().into();
    let closed = || Stdio::from(std::io::pipe().unwrap().1);
    let (_unread, log) = std::io::pipe().unwrap();
    fcntl(&log, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    for log in [full(), closed(), log.into()] {
        let mut rig = Rig::new();
        rig.stop_daemon();
        rig.start_daemon_logging_to(log);
        let address = rig.serve("s", "1", "", "");
        assert_eq!(rig.upgrade("s", &rig.release("2", "")).unwrap().outcome, Ending::Committed);
        assert_eq!(version(address), "2");
        assert!(rig.stop_daemon().expect("it ends by itself").success());
    }
}

/// Limits the size of the daemon's files. A write beyond the limit is partial, and the next one fails.
fn limit_files(rig: &Rig, bytes: Option<u64>) {
    let daemon = rig.daemon.as_ref().unwrap().id();
    set_limits(daemon, Resource::RLIMIT_FSIZE, bytes.unwrap_or(UNLIMITED), UNLIMITED).unwrap();
}

/// Checks that the serving version is the one in the journal, as far as its records are complete.
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
    let address = rig.serve("s", "0", "", "lease = \"2s\"");
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
    for (round, room) in (0..=needed).step_by(all_or(7, 31)).chain([needed]).enumerate() {
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
            signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
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
    assert!(refused > all_or(30, 8));
}

#[test]
fn a_process_that_could_not_be_recorded_is_taken_over_all_the_same() {
    for mode in ["exclusive", "overlap"] {
        let mut rig = Rig::new();
        let address = rig.serve("s", "1", "", &format!("mode = \"{mode}\"\nlease = \"2s\""));
        let first = rig.status("s").pid.unwrap();
        let journal = rig.path("state/services/s/journal");
        limit_files(&rig, Some(fs::metadata(&journal).unwrap().len()));
        signal(first, Signal::SIGKILL);
        let second = wait_for("another process", || {
            let status = rig.status("s");
            status.pid.filter(|pid| *pid != first && status.state == State::Serving)
        });
        let image = log_image::parse(&fs::read(&journal).unwrap()).unwrap();
        assert_ne!(fold(&image.records).current.unwrap().process.map(|process| process.pid), Some(second));
        signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
        rig.daemon.take().unwrap().wait().unwrap();
        rig.start_daemon();
        wait_for("it to be taken over", || {
            let status = rig.status("s");
            (status.state == State::Serving && status.pid == Some(second)).then_some(())
        });
        assert_eq!(crate::support::processes_of(&rig.path("testee-1")), [second], "{mode}");
        agrees(&rig);
        assert_eq!(rig.upgrade("s", &rig.release("2", "")).unwrap().outcome, Ending::Committed);
        assert_eq!(version(address), "2");
    }
}

/// Kills the daemon, and starts another one.
fn replace_daemon(rig: &mut Rig) {
    signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
    rig.daemon.take().unwrap().wait().unwrap();
    rig.start_daemon();
}

#[test]
fn a_journal_that_is_damaged_behind_the_commit_costs_the_process_nothing() {
    for mode in ["exclusive", "overlap"] {
        let mut rig = Rig::new();
        let address = rig.serve("s", "1", "", &format!("mode = \"{mode}\"\nlease = \"2s\""));
        let pid = rig.settled("s").pid;
        let refused = rig.upgrade("s", &rig.release("2", "unhealthy")).unwrap();
        assert_eq!(refused.outcome, Ending::RolledBack);
        // The next daemon has synced all of it, so any change is damage.
        replace_daemon(&mut rig);
        rig.settled("s");
        signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
        rig.daemon.take().unwrap().wait().unwrap();
        let journal = rig.path("state/services/s/journal");
        let mut bytes = fs::read(&journal).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&journal, bytes).unwrap();
        rig.start_daemon();
        let status = rig.settled("s");
        assert_eq!(status.pid, pid, "{mode}: {:?}", status.problem);
        assert!(status.problem.unwrap().contains("journal.aside-1"), "{mode}");
        assert_eq!(crate::support::processes_of(&rig.path("testee-1")), [pid.unwrap()], "{mode}");
        agrees(&rig);
        assert_eq!(rig.upgrade("s", &rig.release("3", "")).unwrap().outcome, Ending::Committed, "{mode}");
        assert_eq!(version(address), "3");
    }
}

#[test]
fn a_process_is_recorded_by_its_own_handoff_when_the_disk_has_room_again() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", "lease = \"2s\"");
    let first = rig.status("s").pid.unwrap();
    let journal = rig.path("state/services/s/journal");
    limit_files(&rig, Some(fs::metadata(&journal).unwrap().len()));
    signal(first, Signal::SIGKILL);
    let second = wait_for("another process", || {
        let status = rig.status("s");
        status.pid.filter(|pid| *pid != first && status.state == State::Serving)
    });
    // A later handoff, which fails.
    assert_ne!(rig.upgrade("s", &rig.release("2", "")).unwrap().outcome, Ending::Committed);
    let problem = rig.settled("s").problem.unwrap_or_default();
    assert!(problem.contains("journal"), "the missing record is reported: {problem}");
    limit_files(&rig, None);
    // A start request makes the daemon mend the journal, even if it is refused.
    assert!(rig.call(Request::Start(service("s"))).is_err());
    agrees(&rig);
    replace_daemon(&mut rig);
    assert_eq!(rig.settled("s").pid, Some(second));
    assert_eq!(rig.looked_at("s").problem, None);
    assert_eq!(rig.upgrade("s", &rig.release("3", "")).unwrap().outcome, Ending::Committed);
    assert_eq!(version(address), "3");
}

#[test]
fn a_start_that_is_not_recorded_is_reported() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    rig.call(Request::Stop(service("s"))).unwrap();
    limit_files(&rig, Some(fs::metadata(rig.path("state/services/s/journal")).unwrap().len()));
    rig.call(Request::Start(service("s"))).unwrap();
    assert_eq!(version(address), "1");
    let problem = rig.status("s").problem.unwrap_or_default();
    assert!(problem.contains("journal"), "{problem:?}");
    limit_files(&rig, None);
}
