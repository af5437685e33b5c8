//! A share of the new connections goes to a new version before it is committed.

use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use crate::support::{LIMIT, Rig, ask, service, signal, version, wait_for};
use handoff::control::api::{Ending, Outcome, Request, State};
use handoff::sys::process::Signal;

fn is_in(rig: &Rig, phase: &str) -> Option<()> {
    (rig.status("s").phase.as_deref() == Some(phase)).then_some(())
}

/// The program that serves version 2.
fn new_process(rig: &Rig) -> u32 {
    crate::support::processes_of(&rig.path("testee-2"))[0]
}

/// Upgrades to version 2, runs `meanwhile` in the canary phase, and returns the outcome of the upgrade.
fn in_canary(rig: &Rig, meanwhile: impl FnOnce()) -> Outcome {
    let binary = rig.release("2", "");
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| rig.upgrade("s", &binary).unwrap());
        wait_for("the canary", || is_in(rig, "canary"));
        meanwhile();
        upgrade.join().unwrap()
    })
}

/// The percentage of `connections` that version 2 answered. Each connection must be answered.
fn share_of_new(address: SocketAddr, connections: u32) -> f64 {
    let new = (0..connections).filter(|_| version(address) == "2").count();
    100.0 * new as f64 / f64::from(connections)
}

#[test]
fn each_step_has_its_share_of_5000_connections() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "mode = \"overlap\"\ncanary = [\"5% 10m\"]");
    let outcome = in_canary(&rig, || {
        let share = share_of_new(address, 5_000);
        println!("{share} % of 5,000 connections went to the new version; 5 % were asked for");
        assert!((3.0..=7.0).contains(&share), "{share}");
        rig.call(Request::Cancel(service("s"))).unwrap();
        assert_eq!(share_of_new(address, 200), 0.0);
    });
    assert_eq!(outcome.reason.as_deref(), Some("it was cancelled"));
}

/// The first step lasts until the test has seen it and has made some connections in it.
#[test]
fn the_last_step_is_followed_by_the_commit() {
    let rig = Rig::new();
    let more = "mode = \"overlap\"\ncanary = [\"10% 6s\", \"50.5% 300ms\"]\n[probe]\ntcp = true\n";
    let address = rig.serve("s", "1", "", more);
    let outcome = in_canary(&rig, || assert!(share_of_new(address, 50) < 100.0));
    assert_eq!((outcome.outcome, outcome.accept_gap_us), (Ending::Committed, None), "{outcome:?}");
    let phases: Vec<&str> = outcome.phases.iter().map(|phase| phase.phase.as_str()).collect();
    let expected = ["probing", "canary", "probing", "canary", "probing", "committing"];
    assert!(phases.windows(6).any(|window| window == expected), "{phases:?}");
    for canary in outcome.phases.iter().filter(|phase| phase.phase == "canary") {
        assert!(canary.took_us >= 300_000, "{outcome:?}");
    }
    assert_eq!(share_of_new(address, 100), 100.0);
}

/// The number of connections in "... of <count> new connections seen went ...".
fn seen(detail: &str) -> Option<u64> {
    detail.split_once(" new connections seen")?.0.rsplit(' ').next()?.parse().ok()
}

#[test]
fn the_share_that_was_measured_is_shown() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "mode = \"overlap\"\ncanary = [\"50% 10m\"]");
    let mut kept = Vec::new();
    let outcome = in_canary(&rig, || {
        wait_for("the count to begin", || rig.status("s").detail.filter(|detail| detail.contains("seen")));
        let until = Instant::now() + LIMIT;
        let told = loop {
            for _ in 0..20 {
                kept.push(TcpStream::connect(address).unwrap());
                ask(address, "x").unwrap();
            }
            let detail = rig.status("s").detail.unwrap();
            if seen(&detail).is_some_and(|count| count >= 100) {
                break detail;
            }
            assert!(Instant::now() < until, "{detail}");
        };
        println!("{told}");
        assert!(told.starts_with("50% of the new connections for 10m: "), "{told}");
        let measured = told.rsplit_once('(').unwrap().1.trim_end_matches("%)").parse::<f64>().unwrap();
        assert!((25.0..=75.0).contains(&measured), "{told}");
        rig.call(Request::Cancel(service("s"))).unwrap();
    });
    assert_eq!(outcome.outcome, Ending::RolledBack);
}

#[test]
fn a_new_version_that_dies_with_its_share_is_rolled_back() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "mode = \"overlap\"\ncanary = [\"50% 10m\"]");
    let old = rig.status("s").pid;
    let outcome = in_canary(&rig, || {
        signal(new_process(&rig), Signal::SIGKILL);
        for _ in 0..200 {
            TcpStream::connect(address).expect("no connection is refused");
        }
    });
    assert_eq!((outcome.outcome, outcome.pid, outcome.generation.0), (Ending::RolledBack, old, 1));
    let told = "the new process failed its canary: it was killed by signal 9";
    assert_eq!(outcome.reason.as_deref(), Some(told));
    assert_eq!(share_of_new(address, 100), 0.0);
}

#[test]
fn a_new_version_that_fails_its_probe_with_its_share_is_rolled_back() {
    let rig = Rig::new();
    let sick = rig.path("sick");
    let more = format!(
        "mode = \"overlap\"\ncanary = [\"50% 10m\"]\n[probe]\nexec = [\"/bin/sh\", \"-c\", \"test ! -e {}\"]\n\
         [probation]\ntime = \"1s\"\ninterval = \"20ms\"\nfailures = 2\n",
        sick.display()
    );
    let address = rig.serve("s", "1", "", &more);
    let outcome = in_canary(&rig, || std::fs::write(&sick, "").unwrap());
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    let told = outcome.reason.unwrap();
    assert!(told.contains("its canary: the probe failed: ") && told.contains("(2 in a row)"), "{told}");
    assert_eq!(share_of_new(address, 100), 0.0);
}

fn lose_the_daemon_in_the_canary(rig: &mut Rig) {
    let binary = rig.release("2", "");
    let mut upgrade = rig.handoff(&["upgrade", "s", "--binary", binary.to_str().unwrap()]);
    let mut upgrade =
        upgrade.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for("the canary", || is_in(rig, "canary"));
    let mut daemon = rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    upgrade.wait().unwrap();
}

#[test]
fn a_new_daemon_begins_the_canary_again() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", "mode = \"overlap\"\ncanary = [\"50% 6s\"]");
    lose_the_daemon_in_the_canary(&mut rig);
    let share = share_of_new(address, 200);
    assert!((20.0..=80.0).contains(&share), "without a daemon it stays as it is: {share}");
    rig.start_daemon();
    wait_for("the canary again", || is_in(&rig, "canary"));
    let status = rig.settled("s");
    assert_eq!((status.state, status.generation.0), (State::Serving, 2));
    assert_eq!(share_of_new(address, 100), 100.0);
}

#[test]
fn a_new_daemon_steers_everything_to_the_old_version_if_the_new_one_is_gone() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", "mode = \"overlap\"\ncanary = [\"50% 10m\"]");
    lose_the_daemon_in_the_canary(&mut rig);
    signal(new_process(&rig), Signal::SIGKILL);
    rig.start_daemon();
    let status = rig.settled("s");
    assert_eq!((status.state, status.generation.0), (State::Serving, 1));
    assert_eq!(share_of_new(address, 200), 0.0);
}
