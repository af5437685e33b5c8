//! The daemon, the shim or the program dies, during an upgrade or at rest.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use handoff::control::api::Ending;
use handoff::slots::census::Census;
use handoff::sys::process::Signal;

use super::ALL;
use super::plain::{Load, Plain};
use crate::support::{ask, ask_over, kill, signal, stop, version, wait_for};

/// Kills the daemon and starts another one.
fn replace_daemon(plain: &mut Plain) {
    let mut daemon = plain.rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    plain.rig.start_daemon();
}

#[test]
fn a_new_daemon_takes_over_and_no_client_notices() {
    for (adapter, mode) in ALL {
        let mut plain = Plain::serve(adapter, mode, "");
        plain.upgrade("1", "");
        let load = Load::start(plain.address, 2);
        let before = (plain.shim(), plain.program());
        replace_daemon(&mut plain);
        wait_for("the service to be taken over", || {
            (plain.rig.status("s").shim == Some(before.0)).then_some(())
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

/// A program that gets its listeners at its start accepts connections immediately. Only the probe shows whether it
/// works.
#[test]
fn a_new_daemon_probes_what_the_one_before_had_not() {
    for (adapter, mode) in ALL {
        for (body, ending, serves) in [("1", Ending::RolledBack, "0"), ("2", Ending::Committed, "2")] {
            let what = format!("{adapter} {mode}, {body:?} expected");
            let mut plain = Plain::serve(adapter, mode, "");
            plain.add("[probe]\nhttp = \"/health\"\nbody = \"1\"\nlimit = \"5m\"\n");
            let binary = plain.rig.release_of("plain", "2", "");
            std::thread::scope(|scope| {
                let upgrade = scope.spawn(|| plain.rig.upgrade("s", &binary));
                let phase = || plain.rig.status("s").phase;
                wait_for("the probe", || (phase().as_deref() == Some("probing")).then_some(()));
                signal(plain.rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
                upgrade.join().unwrap().unwrap_err();
            });
            plain.add(&format!("[probe]\nhttp = \"/health\"\nbody = \"{body}\"\nlimit = \"300ms\"\n"));
            replace_daemon(&mut plain);
            let last = wait_for("the end to be reported", || plain.rig.status("s").last_handoff);
            assert_eq!(last.outcome, ending, "{what}: {last:?}");
            let reason = last.reason.unwrap_or_default();
            let told = if serves == "0" { "does not pass the probe" } else { "the daemon that began" };
            assert!(reason.contains(told), "{what}: {reason}");
            plain.rig.settled("s");
            assert_eq!(version(plain.address), serves, "{what}");
        }
    }
}

#[test]
fn the_end_of_a_shim_is_the_end_of_its_program_and_another_one_starts() {
    for (adapter, mode) in ALL {
        let plain = Plain::serve(adapter, mode, "");
        plain.upgrade("1", "forks");
        wait_for("shim, program and what it has started", || (plain.processes().len() == 4).then_some(()));
        let (shim, program) = (plain.shim(), plain.program());
        let before = plain.processes();
        signal(shim, Signal::SIGKILL);
        wait_for("another program to serve", || {
            let answer = ask(plain.address, "pid").ok()?;
            (!answer.ends_with(&format!(" {program}"))).then_some(())
        });
        wait_for("the restart to be reported", || (plain.rig.status("s").restarts == 1).then_some(()));
        wait_for("the new one to have started all", || (plain.processes().len() == 4).then_some(()));
        let after = plain.processes();
        // A process that the old program started in its own session is gone, too.
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
            assert_eq!(version(plain.address), "1", "{adapter} {mode}");
            signal(plain.program(), Signal::SIGKILL);
            upgrade.join().unwrap().unwrap()
        });
        assert_eq!(
            (outcome.outcome, outcome.shim),
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
        plain.set("lease = \"3s\"\n");
        plain.upgrade("1", "");
        // The new program begins but never reports readiness, and the daemon is killed meanwhile. The new shim goes on
        // and then fails, because it is killed, too. The old program takes the data back.
        let binary = plain.rig.release_of("plain", "2", "slow-start-20000");
        let mut upgrade =
            plain.rig.handoff(&["upgrade", "s", "--binary", binary.to_str().unwrap()]).spawn().unwrap();
        wait_for("the new version to begin", || {
            // A program that only receives its listeners is probed from its start on.
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
        signal(new.expect("the shim of the new version"), Signal::SIGKILL);
        wait_for("the old version to serve again", || (plain.address_answers("1")).then_some(()));
        plain.rig.start_daemon();
        wait_for("the daemon to take over", || (plain.rig.status("s").shim == Some(old)).then_some(()));
        let outcome = plain.upgrade("3", "");
        assert_eq!(outcome.outcome, Ending::Committed, "{adapter}: {outcome:?}");
    }
}

#[test]
fn a_program_that_is_stopped_is_replaced_if_it_is_watched() {
    for (adapter, mode) in ALL {
        let watched = "[liveness]\ninterval = \"500ms\"\n[probe]\ntcp = true\ntimeout = \"2s\"\n";
        let plain = Plain::serve(adapter, mode, watched);
        let program = plain.program();
        stop(program);
        // The request waits at the listener until the next program answers it.
        assert_eq!(version(plain.address), "0", "{adapter} {mode}");
        assert_ne!(plain.program(), program, "{adapter} {mode}");
        let status = wait_for("the restart to be reported", || {
            let status = plain.rig.status("s");
            (status.restarts == 1 && status.phase.is_none()).then_some(status)
        });
        let problem = status.problem.unwrap();
        let told = format!("did not serve: the process {program} is stopped");
        assert!(problem.contains(&told), "{adapter} {mode}: {problem}");
    }
}

#[test]
fn a_crash_is_followed_by_a_start_although_nothing_can_be_written_down() {
    for adapter in ["inject", "listen-fds"] {
        let plain = Plain::serve(adapter, "exclusive", "");
        plain.upgrade("1", "");
        let program = plain.program();
        // The shim writes a file of this name first.
        std::fs::create_dir(plain.rig.path("state/services/s/pair.new")).unwrap();
        kill(program);
        wait_for("another program to serve", || plain.address_answers("1").then_some(()));
        assert_ne!(plain.program(), program, "{adapter}");
    }
}

/// Children of a new version hold the data as the new version does, even if they were started before it had the data.
#[test]
fn what_a_warm_program_has_started_is_gone_before_the_old_version_serves() {
    let mut plain = Plain::serve("inject", "exclusive", "");
    let old = plain.shim();
    plain.set("warm = true\nlease = \"3s\"\nprobation = \"10m\"\nargs = [\"-\", \"ADDRESS\"]\n");
    let binary = plain.rig.release_of("plain", "1", "forks");
    let mut upgrade =
        plain.rig.handoff(&["upgrade", "s", "--binary", binary.to_str().unwrap()]).spawn().unwrap();
    wait_for("the probation", || (plain.rig.status("s").phase.as_deref() == Some("probation")).then_some(()));
    let new = wait_for("what it starts", || {
        let all = plain.processes().into_iter().filter(|pid| *pid != old && *pid != upgrade.id());
        Some(all.collect::<Vec<u32>>()).filter(|all| all.len() == 4)
    });
    let is_shim = |pid: &&u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("shim\0s")
    };
    let shim = *new.iter().find(is_shim).unwrap();
    let mut daemon = plain.rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    upgrade.wait().unwrap();
    kill(shim);
    wait_for("the old version to serve again", || plain.address_answers("0").then_some(()));
    let left: Vec<u32> = plain.processes().into_iter().filter(|pid| new.contains(pid)).collect();
    left.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
    plain.rig.start_daemon();
    assert!(left.is_empty(), "{left:?} of {new:?} were at work beside the old version");
}

/// A long request keeps the old version in its drain meanwhile.
#[test]
fn a_warm_program_that_dies_in_its_first_bind_is_not_begun_with() {
    let plain = Plain::serve("inject", "exclusive", "");
    plain.set("warm = true\nargs = [\"-\", \"ADDRESS\"]\ndrain_grace = \"20s\"\n");
    let old = plain.processes();
    let binary = plain.rig.release_of("plain", "1", "");
    let connection = TcpStream::connect(plain.address).unwrap();
    let (client, server) = (connection.local_addr().unwrap(), plain.address);
    let slow = std::thread::spawn(move || ask_over(connection, "slow 12000"));
    // The drain waits for requests that are older than 100 ms.
    wait_for("it to be read", || Census::has_read(client, server).unwrap().then_some(()));
    let since = Instant::now();
    wait_for("it to be a long one", || (since.elapsed() > Duration::from_millis(150)).then_some(()));
    let outcome = std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| plain.rig.upgrade("s", &binary));
        wait_for("the drain", || (plain.rig.status("s").phase.as_deref() == Some("draining")).then_some(()));
        let new = plain.processes().into_iter().filter(|pid| !old.contains(pid));
        let is_program =
            |pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program == binary);
        let program = new.into_iter().find(is_program).expect("the program of the new version");
        kill(program);
        upgrade.join().unwrap().unwrap()
    });
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    assert!(outcome.phases.iter().all(|phase| phase.phase != "sealing"), "{outcome:?}");
    assert!(slow.join().unwrap().unwrap().starts_with("0 "));
}
