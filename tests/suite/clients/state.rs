//! State that a process hands over to the next one.

use std::net::SocketAddr;

use handoff::control::api::Ending;

use super::rig::{ALL, BLOCKING, Kind, LOOP, SCRIPT, get, under_load, version};
use crate::support::{Rig, wait_for};

const SETTINGS: &str = "deadline = \"20s\"\ndrain_grace = \"5s\"";
const SHORT: usize = 32 * 1024;
const FIVE_MIB: usize = 5 * 1024 * 1024;

fn state(address: SocketAddr) -> String {
    get(address, "/state").unwrap().0
}

/// In overlap mode the state may arrive after the process has begun to serve.
fn state_becomes(address: SocketAddr, expected: &str) {
    wait_for(expected, || (state(address) == expected).then_some(()));
}

/// Each release hands over state of the given length while it seals.
fn is_handed_over(kind: Kind, lengths: &[usize]) {
    let rig = Rig::new();
    let fault = |length: &usize| format!("hands-{length}");
    let address = kind.serve(&rig, "0", &fault(&lengths[0]), SETTINGS);
    assert_eq!(state(address), "none", "{kind:?}");
    let ((), seen) = under_load(address, || {
        for (n, length) in lengths.iter().enumerate() {
            let next = kind.release(&rig, &(n + 1).to_string(), &lengths.get(n + 1).map_or("".into(), fault));
            let outcome = rig.upgrade("s", &next).unwrap();
            assert_eq!(outcome.outcome, Ending::Committed, "{kind:?}: {outcome:?}");
            let expected = format!("2:{length}:sound");
            if kind.is_exclusive() {
                assert_eq!(state(address), expected, "{kind:?}");
            }
            state_becomes(address, &expected);
            assert_eq!(version(address), (n + 1).to_string());
        }
        // The previous release handed nothing over.
        rig.upgrade("s", &kind.release(&rig, "last", "")).unwrap();
        assert_eq!((version(address), state(address)), ("last".to_owned(), "none".to_owned()), "{kind:?}");
    });
    assert_eq!(seen.failures, Vec::<String>::new(), "{kind:?}, of {} requests", seen.answers);
}

#[test]
fn the_blocking_python_server_hands_over_what_is_short_and_what_is_long() {
    is_handed_over(BLOCKING, &[100, FIVE_MIB, 0, SHORT, SHORT + 1]);
}

#[test]
fn the_asyncio_server_hands_over_what_is_short_and_what_is_long() {
    is_handed_over(LOOP, &[100, FIVE_MIB, 0]);
}

#[test]
fn the_node_server_hands_over_what_a_stream_carries() {
    is_handed_over(SCRIPT, &[100, SHORT, 0]);
}

#[test]
fn a_process_that_cannot_take_it_over_is_rolled_back_or_serves_without() {
    for kind in ALL {
        let rig = Rig::new();
        let address = kind.serve(&rig, "1", "hands-100", SETTINGS);
        let old = rig.status("s").pid;
        let outcome = rig.upgrade("s", &kind.release(&rig, "2", "fail-take")).unwrap();
        if kind.is_exclusive() {
            assert_eq!((outcome.outcome, outcome.pid), (Ending::RolledBack, old), "{kind:?}: {outcome:?}");
            let reason = format!("{:?}", outcome.reason);
            assert!(reason.contains("this release fails in take"), "{kind:?}: {reason}");
            assert_eq!(version(address), "1");
            // The old process serves again, and hands its state over again.
            let outcome = rig.upgrade("s", &kind.release(&rig, "3", "")).unwrap();
            assert_eq!(outcome.outcome, Ending::Committed, "{kind:?}: {outcome:?}");
            assert_eq!(state(address), "2:100:sound");
        } else {
            assert_eq!(outcome.outcome, Ending::Committed, "{kind:?}: {outcome:?}");
            wait_for("the log line", || {
                let log =
                    std::fs::read_to_string(rig.path("state/services/s/log/current")).unwrap_or_default();
                log.contains("this release fails in take").then_some(())
            });
            assert_eq!((version(address), state(address)), ("2".to_owned(), "none".to_owned()), "{kind:?}");
        }
    }
}
