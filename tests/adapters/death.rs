//! Somebody dies: the daemon, the shim, the program, in the middle of an upgrade or at rest.

use handoff::control::api::Ending;
use rustix::process::Signal;

use crate::ALL;
use crate::plain::{Load, Plain};
use crate::support::{ask, signal, stop, version, wait_for};

/// Kills the daemon and starts another one.
fn replace_daemon(plain: &mut Plain) {
    let mut daemon = plain.rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    plain.rig.start_daemon();
}

#[test]
fn a_new_daemon_takes_over_and_nobody_notices() {
    for (adapter, mode) in ALL {
        let mut plain = Plain::serve(adapter, mode, "");
        plain.upgrade("1", "");
        let load = Load::start(plain.address, 2);
        let before = (plain.shim(), plain.program());
        replace_daemon(&mut plain);
        wait_for("the service to be taken over", || {
            (plain.rig.status("s").pid == Some(before.0)).then_some(())
        });
        assert_eq!(plain.program(), before.1, "{adapter} {mode}");
        for n in 2..=3 {
            let outcome = plain.upgrade(&n.to_string(), "");
            assert_eq!(outcome.outcome, Ending::Committed, "{adapter} {mode}: {outcome:?}");
            assert_eq!(version(plain.address), n.to_string(), "{adapter} {mode}");
        }
        load.finish();
    }
}

#[test]
fn the_end_of_a_shim_is_the_end_of_its_program_and_another_one_starts() {
    for (adapter, mode) in ALL {
        let plain = Plain::serve(adapter, mode, "");
        plain.upgrade("1", "forks");
        wait_for("shim, program and what it has started", || (plain.processes().len() == 3).then_some(()));
        let (shim, program) = (plain.shim(), plain.program());
        let before = plain.processes();
        signal(shim, Signal::KILL);
        wait_for("another program to serve", || {
            let answer = ask(plain.address, "pid").ok()?;
            (!answer.ends_with(&format!(" {program}"))).then_some(())
        });
        wait_for("the restart to be told", || (plain.rig.status("s").restarts == 1).then_some(()));
        wait_for("the new one to have started all", || (plain.processes().len() == 3).then_some(()));
        let after = plain.processes();
        // Also what the old one had started in a session of its own is gone.
        assert!(!after.iter().any(|pid| before.contains(pid)), "{adapter} {mode}: {before:?} {after:?}");
    }
}

#[test]
fn a_program_that_dies_on_probation_is_followed_by_the_one_before() {
    for (adapter, mode) in ALL {
        let plain = Plain::serve(adapter, mode, "");
        plain.set("probation = \"10m\"\n");
        let old = plain.shim();
        let binary = plain.rig.release_of("plain", "1", "");
        let outcome = std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| plain.rig.upgrade("s", &binary));
            wait_for("the probation", || {
                (plain.rig.status("s").phase.as_deref() == Some("probation")).then_some(())
            });
            assert!(plain.address_answers("1"), "{adapter} {mode}");
            signal(plain.program(), Signal::KILL);
            upgrade.join().unwrap().unwrap()
        });
        assert_eq!(
            (outcome.outcome, outcome.pid),
            (Ending::RolledBack, Some(old)),
            "{adapter} {mode}: {outcome:?}"
        );
        assert_eq!(version(plain.address), "0", "{adapter} {mode}");
        let told = outcome.reason.unwrap_or_default();
        assert!(told.contains("did not pass its probation"), "{adapter} {mode}: {told}");
    }
}

#[test]
fn without_a_daemon_the_old_version_serves_again_by_itself() {
    for adapter in ["inject", "listen-fds"] {
        let mut plain = Plain::serve(adapter, "exclusive", "");
        plain.set("lease = \"1s\"\n");
        plain.upgrade("1", "");
        // The new program begins and never says that it is there, and the daemon is killed meanwhile: the shim of the new one
        // goes on, fails when it is killed, and the old one takes the data back.
        let binary = plain.rig.release_of("plain", "2", "slow-start-20000");
        let mut upgrade =
            plain.rig.handoff(&["upgrade", "s", "--binary", binary.to_str().unwrap()]).spawn().unwrap();
        wait_for("the new version to begin", || {
            // One that only takes its listeners is probed from its start on.
            let phase = plain.rig.status("s").phase;
            matches!(phase.as_deref(), Some("beginning" | "probing")).then_some(())
        });
        let old = plain.shim();
        let mut daemon = plain.rig.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        upgrade.wait().unwrap();
        let new = plain.processes().into_iter().find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("shim\0s") && *pid != old
        });
        signal(new.expect("the shim of the new version"), Signal::KILL);
        wait_for("the old version to serve again", || (plain.address_answers("1")).then_some(()));
        plain.rig.start_daemon();
        wait_for("the daemon to take over", || (plain.rig.status("s").pid == Some(old)).then_some(()));
        let outcome = plain.upgrade("3", "");
        assert_eq!(outcome.outcome, Ending::Committed, "{adapter}: {outcome:?}");
    }
}

#[test]
fn a_program_that_is_stopped_is_replaced_if_it_is_watched() {
    for (adapter, mode) in ALL {
        let watched = "[liveness]\ninterval = \"50ms\"\n[probe]\ntcp = true\ntimeout = \"200ms\"\n";
        let plain = Plain::serve(adapter, mode, watched);
        let program = plain.program();
        stop(program);
        // It waits at the listener, and is answered by the next program.
        assert_eq!(version(plain.address), "0", "{adapter} {mode}");
        assert_ne!(plain.program(), program, "{adapter} {mode}");
        let status = wait_for("the restart to be told", || {
            let status = plain.rig.status("s");
            (status.restarts == 1 && status.phase.is_none()).then_some(status)
        });
        let problem = status.problem.unwrap();
        let told = format!("did not serve: the process {program} is stopped");
        assert!(problem.contains(&told), "{adapter} {mode}: {problem}");
    }
}
