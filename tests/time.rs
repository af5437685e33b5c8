//! Time that passes slowly, and clocks that are wrong.
#![cfg(feature = "supervisor")]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use handoff::control::api::Ending;
use handoff_protocol::log_image::{self, HEADER_LEN, PROVEN_AT};
use rustix::process::Signal;
use support::{Rig, signal, version};

/// Warm-up and begin take six leases each. The library gives the signs of life, whatever the service is busy with.
#[test]
fn a_start_may_take_many_leases_as_long_as_the_deadline_allows_it() {
    for mode in ["exclusive", "overlap"] {
        let rig = Rig::new();
        let limits = "lease = \"400ms\"\ndrain_grace = \"1s\"\nresume_limit = \"1s\"";
        let address = rig.serve("s", "1", "", &format!("mode = \"{mode}\"\n{limits}"));
        let began = Instant::now();
        let outcome = rig.upgrade("s", &rig.release("2", "slow-start-2400")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{mode}: {outcome:?}");
        assert!(began.elapsed() >= Duration::from_millis(4800));
        assert_eq!(version(address), "2");
        assert_eq!(rig.status("s").generation.0, 2);

        let late =
            rig.upgrade_with("s", &rig.release("3", "slow-start-2400"), Some(3000), Some(1000)).unwrap();
        assert_eq!(late.outcome, Ending::RolledBack, "{mode}: the deadline does not allow it");
        assert_eq!(version(address), "2");
    }
}

/// Every record was written at another time than it says: the clock was far ahead, at its beginning, or ran backwards.
#[test]
fn a_clock_that_was_wrong_changes_nothing() {
    let clocks: [fn(u64) -> u64; 4] = [
        |_| 0,
        |_| u64::MAX,
        |record| 4_000_000_000_000 + record,
        |record| 4_000_000_000_000 - 86_400_000 * record,
    ];
    let mut rig = Rig::new();
    let address = rig.serve("s", "0", "", "lease = \"500ms\"");
    for (n, clock) in clocks.into_iter().enumerate() {
        let version_now = (n + 1).to_string();
        let outcome = rig.upgrade("s", &rig.release(&version_now, "")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
        let before = rig.settled("s");
        signal(rig.daemon.as_ref().unwrap().id(), Signal::KILL);
        rig.daemon.take().unwrap().wait().unwrap();
        let journal = rig.path("state/services/s/journal");
        fs::write(&journal, with_clock(&fs::read(&journal).unwrap(), clock)).unwrap();
        rig.start_daemon();

        let after = rig.settled("s");
        assert_eq!((after.pid, after.generation), (before.pid, before.generation));
        assert_eq!((after.binary, after.restarts), (before.binary, before.restarts));
        assert_eq!(version(address), version_now);
        assert!(rig.run(&["status", "s"]).status.success(), "people are told a strange time, but told");
        assert!(rig.run(&["list"]).status.success());
    }
    assert_eq!(rig.upgrade("s", &rig.release("last", "")).unwrap().outcome, Ending::Committed);
    assert_eq!(version(address), "last");
}

/// The journal, with other times in it.
fn with_clock(journal: &[u8], clock: fn(u64) -> u64) -> Vec<u8> {
    let mut records = log_image::parse(journal).unwrap().records;
    let mut bytes = log_image::header().to_vec();
    bytes[PROVEN_AT..].copy_from_slice(&journal[PROVEN_AT..HEADER_LEN]);
    for (sequence, record) in (1..).zip(&mut records) {
        record.at_unix_ms = clock(sequence);
        bytes.extend(log_image::encode(sequence, record).unwrap());
    }
    bytes
}
