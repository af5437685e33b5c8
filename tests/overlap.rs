//! Upgrades of a service whose generations may overlap: the new one is steered to, the old one serves out its queue.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use handoff::control::api::Ending;
use support::{Rig, ask, version};

const OVERLAP: &str = "mode = \"overlap\"";

#[test]
fn there_is_no_gap_and_no_failed_request() {
    let rig = Rig::new();
    let address = rig.serve("s", "0", "", OVERLAP);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut count = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    ask(address, "x").unwrap_or_else(|error| panic!("request {count}: {error}"));
                    count += 1;
                }
                count
            })
        })
        .collect();
    for n in 1..=10 {
        let outcome = rig.upgrade("s", &rig.release(&n.to_string(), "slow-begin-50")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
        assert_eq!(outcome.accept_gap_us, None, "somebody accepts at all times");
        assert_eq!(version(address), n.to_string());
    }
    stop.store(true, Ordering::Relaxed);
    assert!(clients.into_iter().map(|client| client.join().unwrap()).all(|count| count > 0));
}

#[test]
fn a_bad_version_is_never_noticed() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", OVERLAP);
    let old = rig.status("s").pid;
    for (n, fault) in
        ["exit-at-once", "unhealthy-after-begin", "exit-after-begin", "rude-twice"].iter().enumerate()
    {
        let outcome = rig.upgrade("s", &rig.release(&format!("bad-{n}"), fault)).unwrap();
        assert_eq!((outcome.outcome, outcome.pid), (Ending::RolledBack, old), "{fault}: {outcome:?}");
        for _ in 0..20 {
            assert_eq!(version(address), "1", "{fault}");
        }
    }
    assert_eq!(rig.upgrade("s", &rig.release("2", "")).unwrap().outcome, Ending::Committed);
    assert_eq!(version(address), "2");
}

#[test]
fn a_long_request_is_finished_by_the_old_process_while_the_new_one_serves() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", OVERLAP);
    let slow = std::thread::spawn(move || ask(address, "slow 1500").unwrap());
    support::wait_for("the slow request to be accepted", || (version(address) == "1").then_some(()));
    std::thread::scope(|scope| {
        let binary = rig.release("2", "");
        let rig = &rig;
        let upgrade = scope.spawn(move || rig.upgrade("s", &binary).unwrap());
        support::wait_for("the new version", || (version(address) == "2").then_some(()));
        assert!(!slow.is_finished(), "the new one serves while the old one is busy");
        assert_eq!(upgrade.join().unwrap().outcome, Ending::Committed);
    });
    assert_eq!(slow.join().unwrap(), "1 slow 1500");
}

#[test]
fn a_crash_after_many_generations_is_mended_on_the_same_slot() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", OVERLAP);
    for n in 2..=4 {
        rig.upgrade("s", &rig.release(&n.to_string(), "")).unwrap();
    }
    let pid = rig.status("s").pid.unwrap();
    support::signal(pid, rustix::process::Signal::KILL);
    assert_eq!(version(address), "4", "the connection waits in the queue for the next process");
    assert_eq!(rig.status("s").restarts, 1);
}
