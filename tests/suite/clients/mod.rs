//! The client libraries in other languages, each with a small server, under the real daemon.

mod crashes;
mod rig;
mod state;

use std::net::TcpStream;

use handoff::control::api::{Ending, Request};
use handoff::slots::census::Census;
use handoff::sys::process::Signal;

use crate::support::{LIMIT, Rig, service, signal, wait_for};
pub use rig::BLOCKING;
use rig::{ALL, Kind, LOOP, SCRIPT, answer_to, begin, get, under_load, version};

fn no_client_notices_five_upgrades(kind: Kind) {
    let rig = Rig::new();
    let address = kind.serve(&rig, "0", "", "deadline = \"20s\"\ndrain_grace = \"5s\"");
    assert_eq!(rig.status("s").version.as_deref(), Some("0-said"));
    let (endings, seen) = under_load(address, || {
        (1..=5)
            .map(|n| {
                let outcome = rig.upgrade("s", &kind.release(&rig, &n.to_string(), "")).unwrap();
                assert_eq!(outcome.version, Some(format!("{n}-said")));
                assert_eq!(version(address), n.to_string());
                outcome.outcome
            })
            .collect::<Vec<_>>()
    });
    assert_eq!(endings, [Ending::Committed; 5]);
    assert_eq!(seen.failures, Vec::<String>::new(), "of {} requests", seen.answers);
    rig.call(Request::Stop(service("s"))).unwrap();
}

#[test]
fn no_client_of_the_blocking_python_server_notices_an_upgrade() {
    no_client_notices_five_upgrades(BLOCKING);
}

#[test]
fn no_client_of_the_asyncio_server_notices_an_upgrade() {
    no_client_notices_five_upgrades(LOOP);
}

#[test]
fn no_client_of_the_node_server_notices_an_upgrade() {
    no_client_notices_five_upgrades(SCRIPT);
}

#[test]
fn a_version_that_fails_is_rolled_back_and_not_noticed() {
    for kind in ALL {
        let rig = Rig::new();
        // The deadline applies to the hanging release. The other releases fail earlier, even on a busy machine.
        let address = kind.serve(&rig, "1", "", "deadline = \"12s\"\ndrain_grace = \"5s\"");
        let old = rig.status("s").pid;
        // In exclusive mode the process serves before it reports readiness, so a kill there would cut accepted
        // connections.
        let at_the_end = if kind.is_exclusive() { "fail-warming" } else { "kill-ready" };
        let faults = ["fail-warming", "fail-begin", "kill-warming", "kill-begin", "hang-begin", at_the_end];
        let (_, seen) = under_load(address, || {
            for (n, fault) in faults.iter().enumerate() {
                let bad = kind.release(&rig, &format!("bad-{n}"), fault);
                let outcome = rig.upgrade("s", &bad).unwrap();
                assert_eq!((outcome.outcome, outcome.pid), (Ending::RolledBack, old), "{fault}: {outcome:?}");
                if fault.starts_with("fail") {
                    let reason = format!("{:?}", outcome.reason);
                    assert!(reason.contains("this release fails in"), "{kind:?} {fault}: {reason}");
                }
            }
        });
        assert_eq!(seen.failures, Vec::<String>::new(), "{kind:?}");
        assert_eq!(rig.upgrade("s", &kind.release(&rig, "2", "")).unwrap().outcome, Ending::Committed);
        assert_eq!(version(address), "2");
    }
}

#[test]
fn a_long_request_is_finished_and_a_stop_waits_for_it() {
    for kind in ALL {
        let rig = Rig::new();
        let address = kind.serve(&rig, "1", "", "deadline = \"20s\"\ndrain_grace = \"5s\"");
        // Returns when the service has accepted the request and read all of it.
        let slow = || {
            let connection = begin(address, "/slow/1000").unwrap();
            let client = connection.local_addr().unwrap();
            wait_for("it to be read", || Census::has_read(client, address).unwrap().then_some(()));
            std::thread::spawn(move || answer_to(connection))
        };
        let (first, pid) = (slow(), rig.status("s").pid.unwrap());
        assert_eq!(get(address, "/").unwrap(), ("1".to_owned(), pid), "after the slow request");
        let outcome = rig.upgrade("s", &kind.release(&rig, "2", "")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{kind:?}: {outcome:?}");
        assert_eq!(first.join().unwrap().unwrap(), ("1".to_owned(), pid), "{kind:?}");
        let last = slow();
        assert_eq!(version(address), "2", "after the slow request");
        rig.call(Request::Stop(service("s"))).unwrap();
        assert_eq!(last.join().unwrap().unwrap().0, "2", "{kind:?}");
    }
}

/// Work that blocks the only thread of a Node process also blocks its signs of life.
#[test]
fn a_process_that_is_busy_is_not_taken_for_frozen() {
    for fault in ["busy-warming", "busy-begin"] {
        let rig = Rig::new();
        let address = SCRIPT.serve(
            &rig,
            "1",
            "",
            "lease = \"1200ms\"\nresume_limit = \"2s\"\ndeadline = \"20s\"\ndrain_grace = \"5s\"",
        );
        let outcome = rig.upgrade("s", &SCRIPT.release(&rig, "2", fault)).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{fault}: {outcome:?}");
        assert_eq!(version(address), "2");
    }
}

/// The runtimes call listen(2) on inherited listeners, with a backlog of 100 or 511.
#[test]
fn the_queue_is_as_long_as_before_when_no_process_accepts() {
    let longest = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let clients = longest.trim().parse::<usize>().unwrap().min(700);
    for kind in ALL {
        let rig = Rig::new();
        let address = kind.serve(&rig, "1", "", "");
        let pid = rig.status("s").pid.unwrap();
        signal(pid, Signal::SIGSTOP);
        let connect = |_| TcpStream::connect_timeout(&address, LIMIT);
        let waiting = (0..clients).map(connect).collect::<Result<Vec<_>, _>>();
        signal(pid, Signal::SIGCONT);
        assert!(waiting.is_ok(), "{kind:?}: {waiting:?}");
        drop(waiting);
        assert_eq!(version(address), "1");
    }
}

#[test]
fn a_service_on_the_wrong_kind_of_channel_says_so() {
    let rig = Rig::new();
    for (kind, settings, hint) in [
        (LOOP, "channel = \"stream\"", "remove channel = \\\"stream\\\""),
        (SCRIPT, "", "channel = \\\"stream\\\""),
        (SCRIPT, "channel = \"stream\"\nmode = \"exclusive\"", "mode = \\\"overlap\\\""),
    ] {
        let wrong = kind.with(settings);
        let failed =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wrong.serve(&rig, "1", "", "")));
        let told = failed.unwrap_err().downcast_ref::<String>().unwrap().clone();
        let log = std::fs::read_to_string(rig.path("state/services/s/log/current")).unwrap_or_default();
        let found = told.contains(hint) || log.contains(&hint.replace('\\', ""));
        assert!(found, "{settings}: {told}\n{log}");
        rig.call(Request::Stop(service("s"))).ok();
        wait_for("it to be stopped", || (rig.status("s").pid.is_none()).then_some(()));
    }
}
