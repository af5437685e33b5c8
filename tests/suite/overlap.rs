//! Upgrades in overlap mode: new connections go to the new process, and the old one serves its queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::{Rig, ask, ask_meanwhile, pause, service, signal, version, wait_for};
use handoff::control::api::{Ending, History, Request, Response};
use handoff::history::{self, Entry, Operation};
use handoff::sys::process::Signal;

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
                    pause();
                }
                count
            })
        })
        .collect();
    for n in 1..=10 {
        let outcome = rig.upgrade("s", &rig.release(&n.to_string(), "slow-begin-50")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
        assert_eq!(outcome.accept_gap_us, None, "a process accepts at all times");
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
    let binary = rig.release("2", "");
    // Longer than an upgrade takes on a busy machine.
    let slow = ask_meanwhile(address, "slow 8000");
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| rig.upgrade("s", &binary).unwrap());
        crate::support::wait_for("the new version", || (version(address) == "2").then_some(()));
        assert!(!slow.is_finished(), "the new process serves while the old one is busy");
        assert_eq!(upgrade.join().unwrap().outcome, Ending::Committed);
    });
    assert_eq!(slow.join().unwrap().unwrap(), "1 slow 8000");
}

#[test]
fn a_crash_after_many_generations_is_mended_on_the_same_slot() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", OVERLAP);
    for n in 2..=4 {
        rig.upgrade("s", &rig.release(&n.to_string(), "")).unwrap();
    }
    let pid = rig.status("s").pid.unwrap();
    crate::support::signal(pid, handoff::sys::process::Signal::SIGKILL);
    assert_eq!(version(address), "4", "the connection waits in the queue for the next process");
    assert_eq!(rig.status("s").restarts, 1);
}

#[test]
fn clients_that_come_after_the_death_of_the_old_process_wait_for_the_new_one_and_no_listener_is_left_over() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", OVERLAP);
    let daemon = rig.daemon.as_ref().unwrap().id();
    let listeners = || {
        let fds = std::fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().flatten();
        fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with("socket:"))).count()
    };
    let before = listeners();
    for n in 2..5 {
        let old = rig.status("s").pid.unwrap();
        let binary = rig.release(&n.to_string(), "slow-begin-2000");
        std::thread::scope(|scope| {
            let mut early = None;
            let outcome = rig.upgrade_and("s", &binary, "beginning", || {
                crate::support::signal(old, handoff::sys::process::Signal::SIGSTOP);
                early = Some(scope.spawn(move || ask(address, "x")));
                crate::support::signal(old, handoff::sys::process::Signal::SIGKILL);
                crate::support::wait_for("the end to be noticed", || {
                    (rig.status("s").pid != Some(old)).then_some(())
                });
                assert_eq!(version(address), n.to_string());
            });
            assert_eq!(outcome.unwrap().outcome, Ending::Committed);
            // The client was in the queue of the dead process, or came later. It gets an answer or an error, and never
            // hangs.
            match early.unwrap().join().unwrap() {
                Ok(_) => {}
                Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
            }
        });
    }
    crate::support::wait_for("as many sockets as before", || (listeners() == before).then_some(()));
}

/// Upgrades while a request keeps the old process, and loses the daemon when the new one serves. `is_last` is called
/// while the daemon is stopped, with the pid of the new process.
fn lost_while_the_old_one_leaves(
    meanwhile: impl FnOnce(&Rig, u32),
    is_last: bool,
) -> (Rig, SocketAddr, Entry) {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", "mode = \"overlap\"\nlease = \"2s\"\ndrain_grace = \"30s\"");
    let old = rig.status("s").pid.unwrap();
    let slow = ask_meanwhile(address, "slow 25000");
    let daemon = rig.daemon.as_ref().unwrap().id();
    let lost = rig.upgrade_and("s", &rig.release("2", ""), "retiring", || {
        let new = rig.status("s").pid.unwrap();
        assert_ne!(new, old);
        if is_last {
            signal(daemon, Signal::SIGSTOP);
        }
        meanwhile(&rig, new);
        signal(daemon, Signal::SIGKILL);
    });
    lost.unwrap_err();
    rig.daemon.take().unwrap().wait().unwrap();
    rig.start_daemon();
    rig.settled("s");
    slow.join().unwrap().unwrap();
    let asked = History { service: Some(service("s")), limit: None };
    let entry =
        wait_for("the end of the upgrade", || match rig.call(Request::History(asked.clone())).unwrap() {
            Response::History(entries) => entries.into_iter().rfind(|entry| {
                entry.operation == Operation::Upgrade && entry.outcome != history::Ending::UnderWay
            }),
            other => panic!("{other:?}"),
        });
    (rig, address, entry)
}

#[test]
fn a_commit_whose_process_died_before_the_daemon_is_reported_as_one() {
    let die = |rig: &Rig, new| {
        signal(new, Signal::SIGKILL);
        wait_for("another process", || rig.status("s").pid.filter(|pid| *pid != new));
    };
    let (_rig, address, entry) = lost_while_the_old_one_leaves(die, false);
    assert_eq!((version(address).as_str(), entry.outcome), ("2", history::Ending::Committed), "{entry:?}");
}

#[test]
fn a_commit_that_a_new_daemon_undoes_is_reported_as_rolled_back() {
    let die = |_: &Rig, new| signal(new, Signal::SIGKILL);
    let (_rig, address, entry) = lost_while_the_old_one_leaves(die, true);
    assert_eq!((version(address).as_str(), entry.outcome), ("1", history::Ending::RolledBack), "{entry:?}");
    assert!(entry.reason.unwrap().contains("the old one served"));
}

#[test]
fn a_service_is_stopped_while_its_old_process_has_a_long_request() {
    let rig = Rig::new();
    let limits = "mode = \"overlap\"\ndrain_grace = \"4m\"\nstop_grace = \"1s\"\nstragglers = \"cut\"";
    let address = rig.serve("s", "1", "", limits);
    let slow = ask_meanwhile(address, "slow 100000");
    let began = Instant::now();
    std::thread::scope(|scope| {
        let mut stop = None;
        let ask_to_stop = || {
            let asked = std::thread::Builder::new();
            stop =
                Some(asked.spawn_scoped(scope, || rig.call(Request::Stop(service("s"))).unwrap()).unwrap());
        };
        let outcome = rig.upgrade_and("s", &rig.release("2", ""), "retiring", ask_to_stop).unwrap();
        assert_eq!(outcome.outcome, Ending::Stopped, "{outcome:?}");
        match stop.unwrap().join().unwrap() {
            Response::Outcome(outcome) => assert_eq!(outcome.outcome, Ending::Stopped),
            other => panic!("{other:?}"),
        }
    });
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert!(slow.join().unwrap().is_err(), "it was cut");
    assert!(std::net::TcpStream::connect(address).is_err());
}
