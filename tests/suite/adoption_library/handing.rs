//! State that a process hands over or receives, from the view of its supervisor.

use std::os::fd::{AsFd, OwnedFd};

use handoff::sys::sealed::{read_from_start, sealed_file};
use handoff::sys::wire::recv_message;
use handoff_protocol::message::{Adopt, Begin, Commit, FromService, Mode, Prepare, Ready, Seal, ToService};
use handoff_protocol::state::State;
use handoff_protocol::version::VersionRange;

use super::played::{LEASE_MS, Process, SILENCE_MS, Supervisor, rig};
use crate::support::{ask, version, wait_for};

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// Sends a state message that announces 40,000 bytes, with `file`, whose content may differ.
fn give(supervisor: &Supervisor, file: OwnedFd) {
    let state = State::new(5, &content(40_000)).unwrap();
    supervisor.say_with(ToService::State(state), &[file.as_fd()]);
}

/// Files that do not match the announcement, and the error text for each.
fn unsound() -> [(OwnedFd, &'static str); 4] {
    [
        (tempfile::tempfile().unwrap().into(), "not sealed"),
        (sealed_file(&content(39_999)).unwrap(), "has 39999 bytes; 40000 were announced"),
        (sealed_file(&content(40_001)).unwrap(), "has 40001 bytes; 40000 were announced"),
        (sealed_file(&[7; 40_000]).unwrap(), "CRC-32"),
    ]
}

#[test]
fn a_parked_process_that_is_given_something_unsound_is_not_healthy() {
    for (file, told) in unsound() {
        let rig = rig();
        let (process, supervisor) = Process::start(&rig, "1", "", Mode::Exclusive);
        give(&supervisor, file);
        let FromService::Ready(Ready { healthy: false, reason }) = supervisor.hear() else {
            panic!("it is healthy")
        };
        assert!(reason.contains(told), "{reason}");
        assert_eq!(process.end().code, Some(1));
    }
}

#[test]
fn a_process_that_serves_and_is_given_something_unsound_serves_on() {
    let rig = rig();
    let (process, supervisor) = Process::serve(&rig, Mode::Overlap);
    for (file, told) in unsound() {
        give(&supervisor, file);
        wait_for("the log line", || {
            std::fs::read_to_string(&process.log).unwrap().contains(told).then_some(())
        });
        assert_eq!(ask(process.address, "state").unwrap(), "1 none");
    }
    give(&supervisor, sealed_file(&content(40_000)).unwrap());
    let taken = || ask(process.address, "state").unwrap() == "1 format 5, 40000 bytes, sound true";
    wait_for("the state", || taken().then_some(()));
    supervisor.drain();
}

#[test]
fn the_last_one_counts_and_an_incumbent_in_exclusive_mode_takes_none() {
    let rig = rig();
    let (process, supervisor) = Process::start(&rig, "1", "", Mode::Exclusive);
    for length in [1, 2, 3] {
        supervisor.say(ToService::State(State::new(length, &content(length as usize)).unwrap()));
    }
    supervisor.say(ToService::Begin(Begin {}));
    assert!(matches!(supervisor.hear(), FromService::Ready(Ready { healthy: true, .. })));
    supervisor.say(ToService::Commit(Commit {}));
    assert_eq!(ask(process.address, "state").unwrap(), "1 format 3, 3 bytes, sound true");
    supervisor.say(ToService::State(State::new(4, &[]).unwrap()));
    assert!(supervisor.is_left());
    assert_eq!(version(process.address), "1");
}

/// Receives the next state. Returns its format and content.
fn next_state(supervisor: &Supervisor) -> (u32, Vec<u8>) {
    loop {
        match recv_message::<FromService>(&supervisor.channel, supervisor.version).unwrap().unwrap() {
            (_, FromService::Progress(_), _) => {}
            (_, FromService::State(state), fds) => {
                let content = read_from_start(&fds[0], state.length() as usize).unwrap();
                assert_eq!(state.check(&content), Ok(()));
                return (state.format(), content);
            }
            (_, other, _) => panic!("{other:?}"),
        }
    }
}

#[test]
fn it_is_handed_over_before_drained_and_before_sealed() {
    let rig = rig();
    let (process, supervisor) = Process::start(&rig, "1", "hands-over-40000", Mode::Exclusive);
    supervisor.say(ToService::Begin(Begin {}));
    assert!(matches!(supervisor.hear(), FromService::Ready(Ready { healthy: true, .. })));
    supervisor.say(ToService::Commit(Commit {}));
    supervisor.say(ToService::Prepare(Prepare { grace_ms: LEASE_MS, lease_ms: LEASE_MS }));
    assert_eq!(next_state(&supervisor), (1, content(40_000)));
    assert!(matches!(supervisor.hear(), FromService::Drained(_)));
    supervisor.say(ToService::Seal(Seal { lease_ms: LEASE_MS, cut: false }));
    assert_eq!(next_state(&supervisor), (2, content(40_000)));
    assert!(matches!(supervisor.hear(), FromService::Sealed(_)));
    supervisor.say(ToService::Commit(Commit {}));
    assert_eq!(process.end().code, Some(0));
}

#[test]
fn a_supervisor_of_version_1_gets_no_state() {
    let rig = rig();
    let (process, first) = Process::start(&rig, "1", "hands-over-40000", Mode::Exclusive);
    first.say(ToService::Begin(Begin {}));
    assert!(matches!(first.hear(), FromService::Ready(Ready { healthy: true, .. })));
    drop(first);
    let mut second = process.call();
    second.version = 1;
    let versions = VersionRange { minimum: 1, current: 1 };
    second.say(ToService::Adopt(Adopt { versions, lease_ms: SILENCE_MS }));
    process.answer(&second);
    second.seal();
}
