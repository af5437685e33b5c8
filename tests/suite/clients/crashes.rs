//! One of the processes dies, or the daemon is frozen.

use handoff::control::api::{Ending, Outcome};
use handoff::control::{ClientError, Kind as Kinds};
use handoff::sys::process::Signal;

use super::rig::{ALL, BLOCKING, Kind, LOOP, SCRIPT, under_load, version, wait_until_serving};
use crate::support::{Rig, processes_of, signal, wait_for};

const QUICK: &str = "deadline = \"30s\"\ndrain_grace = \"10s\"\nlease = \"3s\"";

fn phase_comes(rig: &Rig, phase: &str) {
    wait_for(phase, || (rig.status("s").phase.as_deref() == Some(phase)).then_some(()));
}

/// Begins an upgrade to `release`, runs `meddle`, and returns the outcome of the upgrade.
fn upgrade_and(rig: &Rig, release: &std::path::Path, meddle: impl FnOnce()) -> Result<Outcome, ClientError> {
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| rig.upgrade("s", release));
        meddle();
        upgrade.join().unwrap()
    })
}

fn kill_daemon(daemon: &mut std::process::Child) {
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

/// The new daemon has found the service unchanged, and can upgrade it.
fn is_whole(rig: &Rig, kind: Kind, address: std::net::SocketAddr) {
    wait_until_serving(rig);
    let release = kind.release(rig, "last", "");
    let outcome = wait_for("the work of leftover processes to end", || match rig.upgrade("s", &release) {
        Err(ClientError::Refused(error)) if error.kind == Kinds::Busy => None,
        outcome => Some(outcome.unwrap()),
    });
    assert_eq!(outcome.outcome, Ending::Committed, "{kind:?}: {outcome:?}");
    assert_eq!(version(address), "last");
}

#[test]
fn a_new_daemon_adopts_what_the_one_before_has_left() {
    for kind in ALL {
        let mut rig = Rig::new();
        let address = kind.serve(&rig, "1", "", QUICK);
        let pid = rig.status("s").pid;
        let ((), seen) = under_load(address, || {
            for _ in 0..2 {
                kill_daemon(&mut rig.daemon.take().unwrap());
                assert_eq!(version(address), "1");
                rig.start_daemon();
                wait_until_serving(&rig);
                assert_eq!(rig.status("s").pid, pid, "{kind:?}");
            }
            is_whole(&rig, kind, address);
        });
        assert_eq!(seen.failures, Vec::<String>::new(), "{kind:?}");
    }
}

#[test]
fn an_upgrade_whose_daemon_dies_ends_in_one_of_the_two_versions_and_is_not_noticed() {
    for kind in ALL {
        let phases: &[&str] = match kind.is_exclusive() {
            true => &["warming", "draining", "sealing", "beginning"],
            false => &["warming", "beginning", "retiring"],
        };
        for phase in phases {
            let old = match *phase {
                "sealing" => "slow-seal",
                "retiring" | "draining" => "slow-drain",
                _ => "",
            };
            let new = if *phase == "beginning" { "slow-begin" } else { "" };
            let new = if *phase == "warming" { "slow-warming" } else { new };
            let mut rig = Rig::new();
            let address = kind.serve(&rig, "1", old, QUICK);
            let mut daemon = rig.daemon.take().unwrap();
            let ((), seen) = under_load(address, || {
                let release = kind.release(&rig, "2", new);
                let ended = upgrade_and(&rig, &release, || {
                    phase_comes(&rig, phase);
                    kill_daemon(&mut daemon);
                });
                assert!(ended.is_err() || *phase == "retiring", "{ended:?}");
                rig.start_daemon();
                is_whole(&rig, kind, address);
            });
            assert_eq!(seen.failures, Vec::<String>::new(), "{kind:?} {phase}");
        }
    }
}

#[test]
fn a_successor_that_is_killed_is_not_noticed() {
    for kind in ALL {
        let rig = Rig::new();
        let address = kind.serve(&rig, "1", "", QUICK);
        let old = rig.status("s").pid;
        for phase in ["warming", "beginning"] {
            let fault = if phase == "warming" { "hang-warming" } else { "hang-begin" };
            let release = kind.release(&rig, phase, fault);
            let (outcome, seen) = under_load(address, || {
                upgrade_and(&rig, &release, || {
                    phase_comes(&rig, phase);
                    let pids = processes_of(&release);
                    assert_eq!(pids.len(), 1, "{pids:?}");
                    signal(pids[0], Signal::SIGKILL);
                })
            });
            let outcome = outcome.unwrap();
            assert_eq!((outcome.outcome, outcome.pid), (Ending::RolledBack, old), "{kind:?}: {outcome:?}");
            assert_eq!(seen.failures, Vec::<String>::new(), "{kind:?} {phase}");
        }
        is_whole(&rig, kind, address);
    }
}

#[test]
fn an_upgrade_goes_on_without_the_old_process() {
    for (kind, fault, phase) in [
        (BLOCKING, "slow-drain", "draining"),
        (BLOCKING, "slow-seal", "sealing"),
        (LOOP, "slow-drain", "retiring"),
        (SCRIPT, "slow-drain", "retiring"),
    ] {
        let rig = Rig::new();
        let address = kind.serve(&rig, "1", fault, QUICK);
        let old = rig.status("s").pid.unwrap();
        let outcome = upgrade_and(&rig, &kind.release(&rig, "2", ""), || {
            phase_comes(&rig, phase);
            signal(old, Signal::SIGKILL);
        });
        assert_eq!(outcome.unwrap().outcome, Ending::Committed, "{kind:?} {phase}");
        assert_eq!(version(address), "2");
        is_whole(&rig, kind, address);
    }
}

#[test]
fn an_old_process_that_is_left_alone_serves_again_when_its_lease_ends() {
    for kind in ALL {
        let rig = Rig::new();
        let address = kind.serve(&rig, "1", "slow-seal", QUICK);
        let daemon = rig.daemon.as_ref().unwrap().id();
        let log = || std::fs::read_to_string(rig.path("state/services/s/log/current")).unwrap_or_default();
        let (outcome, seen) = under_load(address, || {
            upgrade_and(&rig, &kind.release(&rig, "2", ""), || {
                // The seal takes long, so the daemon is stopped before it can end.
                wait_for("the old process to seal", || log().contains("1 seals").then_some(()));
                signal(daemon, Signal::SIGSTOP);
                wait_for("the old process to serve", || log().contains("1 resumes").then_some(()));
                let serves = if kind.is_exclusive() { "1" } else { "2" };
                assert_eq!(version(address), serves, "{kind:?}");
                signal(daemon, Signal::SIGCONT);
            })
        });
        let ending = if kind.is_exclusive() { Ending::RolledBack } else { Ending::Committed };
        assert_eq!(outcome.unwrap().outcome, ending, "{kind:?}");
        assert_eq!(seen.failures, Vec::<String>::new(), "{kind:?}");
        is_whole(&rig, kind, address);
    }
}
