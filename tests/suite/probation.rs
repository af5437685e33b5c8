//! A committed new version fails its probation: the old version stands by, and takes over again.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::support::at_end::SetOnDrop;
use crate::support::{LIMIT, Rig, ask, executable, pause, service, signal, version, wait_for};
use handoff::control::ClientError;
use handoff::control::api::{Ending, Outcome, Request, Response, State};
use handoff::sys::process::Signal;

const MODES: [&str; 2] = ["mode = \"exclusive\"", "mode = \"overlap\""];

/// Longer than any test.
const LONG: &str = "probation = \"10m\"";

/// Upgrades to version 2, runs `meanwhile` in the probation, and returns the outcome of the upgrade.
fn on_probation(rig: &Rig, meanwhile: impl FnOnce()) -> Result<Outcome, ClientError> {
    rig.upgrade_and("s", &rig.release("2", ""), "probation", meanwhile)
}

/// Connects continuously. A client may see the crash of a process as a broken connection, but a refused connection is
/// an error.
fn never_refused<T>(address: SocketAddr, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut answered = 0;
            while !stop.load(Ordering::Relaxed) || answered == 0 {
                TcpStream::connect(address).unwrap_or_else(|error| panic!("after {answered}: {error}"));
                answered += u64::from(ask(address, "x").is_ok());
                pause();
            }
        });
        let at_end = SetOnDrop(&stop);
        let done = work();
        drop(at_end);
        client.join().unwrap();
        done
    })
}

fn is_taken_back(rig: &Rig, address: SocketAddr, outcome: &Outcome, old: Option<u32>, reason: &str) {
    assert_eq!((outcome.outcome, outcome.pid), (Ending::RolledBack, old), "{outcome:?}");
    let told = outcome.reason.as_deref().unwrap_or_default();
    assert!(told.contains(reason), "{told}");
    assert_eq!(version(address), "1");
    assert_eq!(outcome.generation.0, 3, "the first version again, under a new number");
    assert!(outcome.binary.ends_with("testee-1"), "{outcome:?}");
    wait_for("the new process to be gone", || {
        crate::support::processes_of(&rig.path("testee-2")).is_empty().then_some(())
    });
    let status = rig.settled("s");
    assert_eq!((status.state, status.pid), (State::Serving, old));
}

#[test]
fn the_death_of_the_new_version_takes_the_old_one_back() {
    for mode in MODES {
        let rig = Rig::new();
        let address = rig.serve("s", "1", "", &format!("{mode}\n{LONG}"));
        let old = rig.status("s").pid;
        let outcome = never_refused(address, || {
            let killed = || {
                assert_eq!(version(address), "2");
                let status = rig.status("s");
                assert_eq!(status.detail.as_deref(), Some("the version before stands by for 10m"));
                signal(status.pid.unwrap(), Signal::SIGKILL);
            };
            on_probation(&rig, killed).unwrap()
        });
        is_taken_back(&rig, address, &outcome, old, "did not pass its probation: it was killed by signal 9");
        // The same can happen again.
        let outcome = on_probation(&rig, || signal(rig.status("s").pid.unwrap(), Signal::SIGKILL)).unwrap();
        assert_eq!((outcome.outcome, outcome.pid), (Ending::RolledBack, old), "{mode}: {outcome:?}");
    }
}

#[test]
fn a_version_that_passes_the_probation_stays_and_the_old_version_leaves() {
    for mode in MODES {
        let rig = Rig::new();
        let address = rig.serve("s", "1", "", &format!("{mode}\nprobation = \"3s\""));
        let outcome = never_refused(address, || on_probation(&rig, || {}).unwrap());
        assert_eq!((outcome.outcome, outcome.generation.0), (Ending::Committed, 2), "{mode}: {outcome:?}");
        assert!(outcome.took_us < 30_000_000, "{outcome:?}");
        let probation = outcome.phases.iter().find(|phase| phase.phase == "probation").unwrap();
        assert!(probation.took_us >= 3_000_000, "{outcome:?}");
        assert_eq!(version(address), "2");
        assert!(crate::support::processes_of(&rig.path("testee-1")).is_empty(), "the old process is gone");
    }
}

#[test]
fn a_probe_that_fails_too_often_takes_the_old_version_back() {
    for mode in MODES {
        let rig = Rig::new();
        let (sick, check) = (rig.path("sick"), rig.path("check"));
        let script = format!("#!/bin/sh\ntest ! -e {}\n", sick.display());
        std::fs::write(&check, script).unwrap();
        executable(&check);
        let more = format!(
            "{mode}\n[probe]\nexec = [{check:?}]\n[probation]\ntime = \"10m\"\ninterval = \"20ms\"\nfailures = 3\n"
        );
        let address = rig.serve("s", "1", "", &more);
        let old = rig.status("s").pid;
        let outcome =
            never_refused(address, || on_probation(&rig, || std::fs::write(&sick, "").unwrap()).unwrap());
        std::fs::remove_file(&sick).unwrap();
        is_taken_back(&rig, address, &outcome, old, "the probe failed: ");
        assert!(outcome.reason.unwrap().contains("(3 in a row)"));
    }
}

#[test]
fn too_many_errors_take_the_old_version_back() {
    for mode in MODES {
        let rig = Rig::new();
        let (errors, count) = (rig.path("errors"), rig.path("count"));
        std::fs::write(&errors, "5\n").unwrap();
        let script = format!(
            "#!/bin/sh\ntest \"$HANDOFF_SERVICE\" = s && test \"$HANDOFF_PID\" -gt 1 && test \"$HANDOFF_SINCE\" -gt 1 && \
             cat {}\n",
            errors.display()
        );
        std::fs::write(&count, script).unwrap();
        executable(&count);
        let more = format!(
            "{mode}\n[probation]\ntime = \"10m\"\ninterval = \"20ms\"\nerrors = [{count:?}]\nmax_errors = 5\n"
        );
        let address = rig.serve("s", "1", "", &more);
        let old = rig.status("s").pid;
        let outcome = on_probation(&rig, || {
            assert_eq!(version(address), "2");
            std::fs::write(rig.path("errors.new"), "5.5\n").unwrap();
            std::fs::rename(rig.path("errors.new"), &errors).unwrap();
        });
        is_taken_back(&rig, address, &outcome.unwrap(), old, "there were 5.5 errors; at most 5 are allowed");
    }
}

#[test]
fn requests_in_the_probation_are_answered() {
    for mode in MODES {
        let rig = Rig::new();
        let address = rig.serve("s", "1", "", &format!("{mode}\n{LONG}"));
        let old = rig.status("s").pid;
        let outcome = on_probation(&rig, || {
            let busy = rig.upgrade("s", &rig.release("3", "")).unwrap_err().to_string();
            assert!(busy.contains("on probation"), "{busy}");
            match rig.call(Request::Cancel(service("s"))).unwrap() {
                Response::Outcome(outcome) => assert_eq!(outcome.outcome, Ending::RolledBack),
                other => panic!("{other:?}"),
            }
        });
        is_taken_back(&rig, address, &outcome.unwrap(), old, "it was cancelled");
        let outcome = on_probation(&rig, || {
            rig.call(Request::Stop(service("s"))).unwrap();
        });
        assert_eq!(outcome.unwrap().outcome, Ending::Stopped, "{mode}");
        for version in ["testee-1", "testee-2"] {
            assert!(crate::support::processes_of(&rig.path(version)).is_empty(), "{mode}: {version}");
        }
    }
}

#[test]
fn the_death_of_the_standby_ends_the_probation() {
    for mode in MODES {
        let rig = Rig::new();
        let address = rig.serve("s", "1", "", &format!("{mode}\n{LONG}"));
        let old = rig.status("s").pid.unwrap();
        let outcome = on_probation(&rig, || signal(old, Signal::SIGKILL)).unwrap();
        assert_eq!((outcome.outcome, version(address).as_str()), (Ending::Committed, "2"), "{mode}");
    }
}

fn kill_daemon(rig: &mut Rig) {
    let mut daemon = rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

/// Leaves an upgrade on probation without a daemon, so that no client gets its outcome.
fn left_on_probation(mode: &str) -> (Rig, SocketAddr, u32) {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", &format!("{mode}\n{LONG}\nlease = \"2s\""));
    let old = rig.status("s").pid.unwrap();
    let binary = rig.release("2", "");
    let mut upgrade = rig.handoff(&["upgrade", "s", "--binary", binary.to_str().unwrap()]);
    let mut upgrade =
        upgrade.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for("the probation", || (rig.status("s").phase.as_deref() == Some("probation")).then_some(()));
    kill_daemon(&mut rig);
    upgrade.wait().unwrap();
    (rig, address, old)
}

/// The outcome of the upgrade that the first daemon began, once it is over.
fn end_of_upgrade(rig: &Rig) -> Outcome {
    wait_for("the end of the upgrade to be reported", || rig.status("s").last_handoff)
}

#[test]
fn with_another_daemon_the_probation_begins_again() {
    for mode in MODES {
        let (mut rig, address, old) = left_on_probation(mode);
        let edit = |from: &str, to: &str| {
            let path = rig.path("config/services/s.toml");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            std::fs::write(path, text.replace(from, to)).unwrap();
        };
        // Long enough to see the phase on a busy machine.
        edit("10m", "10s");
        never_refused(address, || {
            rig.start_daemon();
            wait_for("the probation", || {
                (rig.status("s").phase.as_deref() == Some("probation")).then_some(())
            });
            assert!(
                crate::support::processes_of(&rig.path("testee-1")).contains(&old),
                "{mode}: it stands by"
            );
            wait_for("the old process to leave", || {
                crate::support::processes_of(&rig.path("testee-1")).is_empty().then_some(())
            });
        });
        let outcome = end_of_upgrade(&rig);
        assert_eq!((outcome.outcome, outcome.generation.0), (Ending::Committed, 2), "{mode}: {outcome:?}");
        assert_eq!(rig.settled("s").state, State::Serving, "{mode}");
        assert_eq!(version(address), "2", "{mode}");
    }
}

#[test]
fn a_version_that_fails_under_another_daemon_is_taken_back() {
    for mode in MODES {
        let (mut rig, address, old) = left_on_probation(mode);
        rig.start_daemon();
        wait_for("the probation", || (rig.status("s").phase.as_deref() == Some("probation")).then_some(()));
        signal(rig.status("s").pid.unwrap(), Signal::SIGKILL);
        let outcome = end_of_upgrade(&rig);
        is_taken_back(
            &rig,
            address,
            &outcome,
            Some(old),
            "did not pass its probation: it was killed by signal 9",
        );
    }
}

#[test]
fn the_old_version_serves_if_the_new_one_dies_with_the_daemon() {
    for mode in MODES {
        let (mut rig, address, old) = left_on_probation(mode);
        let new = crate::support::processes_of(&rig.path("testee-2"));
        new.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
        let until = Instant::now() + LIMIT;
        if mode.contains("exclusive") {
            while !ask(address, "version").is_ok_and(|answer| answer.starts_with('1')) {
                assert!(Instant::now() < until, "without a daemon the old version serves by itself");
            }
        }
        rig.start_daemon();
        let status = rig.settled("s");
        assert_eq!((status.state, status.pid, status.generation.0), (State::Serving, Some(old), 3), "{mode}");
        assert_eq!(version(address), "1", "{mode}");
    }
}

#[test]
fn a_rollback_does_not_go_back_to_a_version_that_was_taken_back() {
    let rig = Rig::new();
    let address = rig.serve("s", "0", "", "store = true");
    rig.upgrade("s", &rig.release("1", "")).unwrap();
    let file = rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{LONG}\n{text}")).unwrap();
    let old = rig.settled("s").pid;
    let die = || signal(rig.status("s").pid.filter(|pid| Some(*pid) != old).unwrap(), Signal::SIGKILL);
    let outcome = on_probation(&rig, die).unwrap();
    assert_eq!((outcome.outcome, version(address).as_str()), (Ending::RolledBack, "1"), "{outcome:?}");
    std::fs::write(&file, text).unwrap();
    let versions = || String::from_utf8(rig.run(&["versions", "s"]).stdout).unwrap();
    wait_for("it to be marked", || versions().contains("taken back").then_some(()));
    let back = rig.run(&["rollback", "s"]);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    assert_eq!(version(address), "0");
    // The same by name, which a person chooses.
    let undone = rig.run(&["rollback", "s", "3"]);
    assert!(undone.status.success(), "{}", String::from_utf8_lossy(&undone.stderr));
    assert_eq!(version(address), "2");
}
