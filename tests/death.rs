//! A party dies or freezes in the middle: in the end exactly one process serves, and nobody had to do anything.

mod support;

use std::path::Path;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use handoff::control::ClientError;
use handoff::control::api::{Ending, Outcome, State};
use rustix::process::Signal;
use support::{Rig, ask, signal, version, wait_for};

const LEASE: &str = "lease = \"500ms\"\nresume_limit = \"1s\"";
const THREE_LEASES: Duration = Duration::from_millis(1500);

/// Begins an upgrade of service `s` and returns when it is in `phase`.
fn upgrade_until<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    rig: &'scope Rig,
    binary: &'scope Path,
    phase: &str,
) -> ScopedJoinHandle<'scope, Result<Outcome, ClientError>> {
    let upgrade = scope.spawn(|| rig.upgrade("s", binary));
    wait_for(phase, || (rig.status("s").phase.as_deref() == Some(phase)).then_some(()));
    upgrade
}

fn daemon(rig: &Rig) -> u32 {
    rig.daemon.as_ref().unwrap().id()
}

/// The process that was started from `binary`.
fn process_of(binary: &Path) -> u32 {
    wait_for("its process", || support::processes_of(binary).first().copied())
}

#[test]
fn a_frozen_old_process_is_replaced() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    signal(rig.status("s").pid.unwrap(), Signal::STOP);
    let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert_eq!(version(address), "2");
}

#[test]
fn a_frozen_new_process_is_given_up() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    for (n, fault) in ["hang-while-warming", "slow-begin-20000"].iter().enumerate() {
        let binary = rig.release(&format!("frozen-{n}"), fault);
        let phase = if n == 0 { "warming" } else { "beginning" };
        std::thread::scope(|scope| {
            let upgrade = upgrade_until(scope, &rig, &binary, phase);
            signal(process_of(&binary), Signal::STOP);
            let outcome = upgrade.join().unwrap().unwrap();
            assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
            assert!(outcome.reason.unwrap().contains("no sign of life"));
        });
        assert_eq!(version(address), "1");
    }
}

#[test]
fn the_new_process_goes_on_when_the_daemon_dies_after_begin() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let binary = rig.release("2", "slow-begin-1500");
    std::thread::scope(|scope| {
        let upgrade = upgrade_until(scope, &rig, &binary, "beginning");
        // Until it holds the lock, the old process may as well be the one that takes it.
        wait_for("it to have the lock", || {
            let log = rig.run(&["logs", "s"]).stdout;
            String::from_utf8_lossy(&log).contains("testee 2 begins").then_some(())
        });
        signal(daemon(&rig), Signal::KILL);
        upgrade.join().unwrap().unwrap_err();
    });
    rig.daemon.take().unwrap().wait().unwrap();
    assert_eq!(version(address), "2", "it was told to begin, so it serves");
    // The old one is its standby: nobody but the kernel hands it the lock.
    signal(process_of(&binary), Signal::KILL);
    assert_eq!(version(address), "1");
}

#[test]
fn the_old_process_goes_on_when_the_daemon_dies_before_begin() {
    for (fault, phase) in [("", "draining"), ("slow-seal-1500", "sealing")] {
        let mut rig = Rig::new();
        let address = rig.serve("s", "1", fault, LEASE);
        let binary = rig.release("2", "");
        let slow = std::thread::spawn(move || ask(address, "slow 1500"));
        wait_for("it to be accepted", || (version(address) == "1").then_some(()));
        if phase == "sealing" {
            slow.join().unwrap().unwrap();
        }
        std::thread::scope(|scope| {
            let upgrade = upgrade_until(scope, &rig, &binary, phase);
            signal(daemon(&rig), Signal::KILL);
            upgrade.join().unwrap().unwrap_err();
        });
        rig.daemon.take().unwrap().wait().unwrap();
        assert_eq!(version(address), "1", "killed while {phase}");
        wait_for("the new process to leave", || support::processes_of(&binary).is_empty().then_some(()));
    }
}

#[test]
fn a_frozen_daemon_leaves_nobody_dark_for_longer_than_the_lease_and_agrees_afterwards() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "slow-seal-1000", LEASE);
    let binary = rig.release("2", "");
    std::thread::scope(|scope| {
        let upgrade = upgrade_until(scope, &rig, &binary, "sealing");
        signal(daemon(&rig), Signal::STOP);
        // Sealed, then nothing is heard: the old process takes back what it gave up.
        wait_for("nobody to answer", || support::is_dark(address).then_some(()));
        assert_eq!(version(address), "1");
        signal(daemon(&rig), Signal::CONT);
        let outcome = upgrade.join().unwrap().unwrap();
        assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    });
    assert_eq!(version(address), "1");
    assert_eq!(rig.status("s").state, State::Serving);
    assert_eq!(rig.upgrade("s", &rig.release("3", "")).unwrap().outcome, Ending::Committed);
}

#[test]
fn a_daemon_that_is_frozen_for_long_at_any_phase_agrees_with_what_happened() {
    for phase in ["greeting", "warming", "draining", "beginning"] {
        let rig = Rig::new();
        let address = rig.serve("s", "1", "", LEASE);
        let binary = rig.release("2", "slow-begin-300");
        let slow = std::thread::spawn(move || ask(address, "slow 400"));
        wait_for("it to be accepted", || (version(address) == "1").then_some(()));
        std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| rig.upgrade("s", &binary));
            wait_for(phase, || {
                let status = rig.status("s");
                // A phase may be over before it is seen; a later one does as well.
                (status.phase.as_deref() == Some(phase) || status.generation.0 == 2).then_some(())
            });
            support::freeze(daemon(&rig), THREE_LEASES);
            let outcome = upgrade.join().unwrap().unwrap();
            let serves = version(address);
            match outcome.outcome {
                Ending::Committed => assert_eq!(serves, "2", "{phase}: {outcome:?}"),
                _ => assert_eq!(serves, "1", "{phase}: {outcome:?}"),
            }
        });
        slow.join().unwrap().unwrap();
        assert_eq!(rig.status("s").state, State::Serving);
    }
}

/// As when a container is paused, or the machine. Whoever continues first must not hold the silence against the others.
#[test]
fn a_pause_of_everybody_in_an_upgrade_kills_nobody() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let binary = rig.release("2", "");
    let slow = std::thread::spawn(move || ask(address, "slow 2500"));
    wait_for("it to be accepted", || (version(address) == "1").then_some(()));
    std::thread::scope(|scope| {
        let upgrade = upgrade_until(scope, &rig, &binary, "draining");
        let services = [rig.status("s").pid.unwrap(), process_of(&binary)];
        services.iter().for_each(|pid| signal(*pid, Signal::STOP));
        support::freeze(daemon(&rig), THREE_LEASES);
        // It has looked at its clock now.
        rig.status("s");
        services.iter().for_each(|pid| signal(*pid, Signal::CONT));
        let outcome = upgrade.join().unwrap().unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    });
    assert!(slow.join().unwrap().unwrap().starts_with("1 "), "the old process was not killed");
    assert_eq!(version(address), "2");
}
