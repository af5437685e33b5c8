//! State that a process hands over to the next one, with the real daemon, in both modes.

use std::net::SocketAddr;

use crate::support::{Rig, ask, version, wait_for};
use handoff::control::api::Ending;

const OVERLAP: &str = "mode = \"overlap\"";
const FIVE_MIB: usize = 5 * 1024 * 1024;

fn state(address: SocketAddr) -> String {
    let answer = ask(address, "state").unwrap();
    answer.split_once(' ').unwrap().1.to_owned()
}

/// The description of a state of `length` bytes that was handed over during the seal.
fn sealed_with(length: usize) -> String {
    format!("format 2, {length} bytes, sound true")
}

fn log(rig: &Rig) -> String {
    std::fs::read_to_string(rig.path("state/services/s/log/current")).unwrap_or_default()
}

#[test]
fn the_last_state_before_the_seal_is_there_when_the_new_process_begins() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "hands-over-100", "");
    assert_eq!(state(address), "none");
    let lengths = [100, FIVE_MIB, 0, 32 * 1024, 32 * 1024 + 1];
    for (n, length) in lengths.into_iter().enumerate() {
        let next = lengths.get(n + 1).map_or(String::new(), |next| format!("hands-over-{next}"));
        let outcome = rig.upgrade("s", &rig.release(&(n + 2).to_string(), &next)).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
        assert_eq!(state(address), sealed_with(length));
    }
    rig.upgrade("s", &rig.release("last", "")).unwrap();
    assert_eq!((version(address), state(address)), ("last".to_owned(), "none".to_owned()));
}

#[test]
fn in_overlap_mode_the_new_process_gets_it_while_it_serves() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "hands-over-100", OVERLAP);
    for (n, length) in [100, FIVE_MIB].into_iter().enumerate() {
        let outcome = rig.upgrade("s", &rig.release(&(n + 2).to_string(), "hands-over-5242880")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
        wait_for("the state", || (state(address) == sealed_with(length)).then_some(()));
        assert_eq!(version(address), (n + 2).to_string());
    }
}

#[test]
fn a_process_that_cannot_take_it_over_is_rolled_back_or_serves_without() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "hands-over-5242880", "");
    let old = rig.status("s").pid;
    let outcome = rig.upgrade("s", &rig.release("2", "refuses-state")).unwrap();
    assert_eq!((outcome.outcome, outcome.pid), (Ending::RolledBack, old), "{outcome:?}");
    assert!(outcome.reason.as_ref().unwrap().contains("told to refuse format 2"), "{outcome:?}");
    assert_eq!(version(address), "1");
    // The old process hands the state over again.
    assert_eq!(rig.upgrade("s", &rig.release("3", "")).unwrap().outcome, Ending::Committed);
    assert_eq!(state(address), sealed_with(FIVE_MIB));

    let rig = Rig::new();
    let address = rig.serve("s", "1", "hands-over-100", OVERLAP);
    let outcome = rig.upgrade("s", &rig.release("2", "refuses-state")).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    wait_for("the log line", || log(&rig).contains("told to refuse format 2").then_some(()));
    assert_eq!((version(address), state(address)), ("2".to_owned(), "none".to_owned()));
}

#[test]
fn what_was_handed_over_before_a_death_is_there_all_the_same() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "hands-over-and-exits-100", "");
    let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert_eq!(state(address), "format 1, 100 bytes, sound true", "that of the drain");
    // A process that is started after a crash has no predecessor.
    crate::support::signal(rig.status("s").pid.unwrap(), handoff::sys::process::Signal::SIGKILL);
    assert_eq!((version(address), state(address)), ("2".to_owned(), "none".to_owned()));
}

#[test]
fn at_a_stop_it_has_no_receiver_and_does_no_harm() {
    for mode in ["", OVERLAP] {
        let rig = Rig::new();
        rig.serve("s", "1", "hands-over-5242880", mode);
        rig.call(handoff::control::api::Request::Stop(crate::support::service("s"))).unwrap();
        wait_for("the log line", || log(&rig).contains("testee 1 ends").then_some(()));
    }
}

#[test]
fn a_burst_of_them_is_handed_over_whole() {
    const COUNT: usize = 3_000;
    for (mode, bytes) in [("", 1_000), (OVERLAP, 1_000), ("", 40_000)] {
        let count = if bytes > 32 * 1024 { COUNT / 20 } else { COUNT };
        let rig = Rig::new();
        let address = rig.serve("s", "1", &format!("hands-over-burst-{count}-{bytes}"), mode);
        let old = rig.status("s").pid;
        let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{mode} {bytes}: {outcome:?}");
        assert_ne!(outcome.pid, old);
        wait_for("the last state", || (state(address) == sealed_with(bytes)).then_some(()));
        if mode == OVERLAP {
            let count = (count + 2).to_string();
            wait_for("all of them", || ask(address, "states").unwrap().ends_with(&count).then_some(()));
        }
    }
}
