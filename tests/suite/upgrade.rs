//! Successful upgrades, with real processes and sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::{Rig, ask, ask_meanwhile, pause, service, version, wait_for};
use handoff::control::api::{Ending, Request, State};

#[test]
fn an_upgrade_replaces_the_process_and_the_old_one_goes() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    assert_eq!(version(address), "1");
    let old = rig.status("s").pid.unwrap();
    let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!((outcome.outcome, outcome.generation.0), (Ending::Committed, 2));
    assert!(outcome.accept_gap_us.is_some());
    assert_eq!(version(address), "2");
    let status = rig.status("s");
    assert_eq!(status.state, State::Serving);
    assert_ne!(status.pid, Some(old));
    assert!(
        !std::path::Path::new(&format!("/proc/{old}")).exists(),
        "the old process is gone and was waited for"
    );
}

#[test]
fn no_request_fails_and_no_write_is_lost_over_twenty_upgrades() {
    let rig = Rig::new();
    let address = rig.serve("s", "0", "", "");
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            std::thread::spawn(move || {
                for n in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return n;
                    }
                    ask(address, &format!("put {client}-{n}"))
                        .unwrap_or_else(|error| panic!("put {n}: {error}"));
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                    pause();
                }
                unreachable!("there are more numbers than time")
            })
        })
        .collect();
    for n in 1..=20 {
        let outcome = rig.upgrade("s", &rig.release(&n.to_string(), "")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    }
    stop.store(true, Ordering::Relaxed);
    let counts: Vec<u64> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(counts.iter().all(|count| *count > 0));
    assert_eq!(version(address), "20");
    let lines = std::fs::read_to_string(rig.path("data/lines")).unwrap();
    assert_eq!(lines.lines().count() as u64, acknowledged.load(Ordering::Relaxed));
}

#[test]
fn a_request_that_began_before_an_upgrade_is_finished_by_the_old_process() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let binary = rig.release("2", "");
    let slow = ask_meanwhile(address, "slow 4000");
    rig.upgrade("s", &binary).unwrap();
    assert_eq!(version(address), "2");
    assert_eq!(slow.join().unwrap().unwrap(), "1 slow 4000");
}

#[test]
fn stop_start_and_restart_do_what_they_say() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let first = rig.status("s").pid;
    rig.call(Request::Restart(service("s"))).unwrap();
    let second = rig.status("s").pid;
    assert_ne!(first, second);
    assert_eq!(version(address), "1");
    rig.call(Request::Stop(service("s"))).unwrap();
    assert_eq!(rig.status("s").state, State::Stopped);
    assert_eq!(ask(address, "x").unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    rig.call(Request::Start(service("s"))).unwrap();
    assert_eq!(version(address), "1");
}

#[test]
fn a_service_that_dies_is_started_again_and_no_client_is_refused() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    for _ in 0..3 {
        let pid = rig.status("s").pid.unwrap();
        crate::support::signal(pid, handoff::sys::process::Signal::SIGKILL);
        crate::support::wait_for("another process", || rig.status("s").pid.filter(|new| *new != pid));
        assert_eq!(version(address), "1");
    }
    assert_eq!(rig.status("s").restarts, 3);
}

#[test]
fn ending_the_daemon_ends_its_services_and_leaves_no_process() {
    let mut rig = Rig::new();
    rig.serve("s", "1", "", "");
    let root = rig.root.path().to_owned();
    assert!(!crate::support::processes_of(&root).is_empty());
    assert!(rig.stop_daemon().unwrap().success());
    crate::support::wait_for("all processes to end", || {
        crate::support::processes_of(&root).is_empty().then_some(())
    });
}

/// The drain leaves enough time for the rest of the upgrade, whatever the limits are.
#[test]
fn a_request_that_may_be_cut_does_not_use_up_the_deadline() {
    const CUT: &str = "stragglers = \"cut\"";
    for (more, deadline_ms) in [("\ndeadline = \"6s\"\ndrain_grace = \"6s\"", None), ("", Some(6_000))] {
        let rig = Rig::new();
        let address = rig.serve("s", "1", "", &format!("{CUT}{more}"));
        let slow = std::thread::spawn(move || ask(address, "slow 60000"));
        wait_for("the slow request to be accepted", || (version(address) == "1").then_some(()));
        let outcome = rig.upgrade_with("s", &rig.release("2", ""), deadline_ms, None).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{more}: {outcome:?}");
        assert!(outcome.took_us >= 2_000_000, "it gets most of its granted time: {outcome:?}");
        assert!(slow.join().unwrap().is_err(), "it was cut");
        assert_eq!(version(address), "2");
    }
}
