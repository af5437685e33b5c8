//! Which process of a program gets a signal, and what the log says about it.

use handoff::control::api::Ending;

use super::ending::Slow;

/// The process starts before the shim knows its listeners.
#[test]
fn a_signal_reaches_the_server_of_a_warm_program_as_well() {
    let keys = "warm = true\nstop_grace = \"10s\"\n";
    let slow = Slow::wrapped("exclusive", "0", keys, &[], "SERVER\nexit $?");
    let first = slow.pid();
    super::wait_for("the server to be found", || (slow.rig.status("s").pid == Some(first)).then_some(()));
    assert!(slow.rig.run(&["kill", "-s", "hup", "s"]).status.success());
    super::wait_for("the signal", || (slow.said() == format!("{first} SIGHUP\n")).then_some(()));
    assert_eq!((slow.pid(), slow.rig.status("s").restarts), (first, 0));
}

/// The program is already gone when its time limit in the shim ends.
#[test]
fn no_kill_is_reported_that_did_not_happen() {
    // With a grace of 0 s the drain may end before the shim has answered. That must not end the upgrade.
    let keys = "drain = \"nothing\"\ndrain_grace = \"0s\"\nstragglers = \"cut\"\nstop_grace = \"0s\"\n";
    let slow = Slow::serve("exclusive", "-1", keys);
    let outcome = slow.rig.upgrade("s", &slow.rig.release_of("plain", "bad", "exit-at-once")).unwrap();
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    slow.pid();
    const TOLD: &str = "killed what had not ended";
    let log = super::wait_for("the kill to be in the log", || {
        let log = std::fs::read_to_string(slow.rig.path("state/services/s/log/current")).ok()?;
        let (whole_lines, _) = log.rsplit_once('\n')?;
        whole_lines.contains(TOLD).then(|| whole_lines.to_owned())
    });
    let told: Vec<&str> = log.lines().filter(|line| line.contains(TOLD)).collect();
    assert!(told.iter().all(|line| line.contains("(server)")), "{told:?}");
}

#[test]
fn a_program_that_names_its_processes_in_turn_costs_a_thread_each() {
    let does: Vec<&str> =
        ["MAINPID=PARENT", "MAINPID=SELF"].repeat(20).into_iter().chain(["READY=1"]).collect();
    let slow = Slow::wrapped("exclusive", "0", "notify = true\n", &does, "SERVER\nexit $?");
    let (first, shim) = (slow.pid(), slow.rig.status("s").shim.unwrap());
    assert_eq!(slow.rig.status("s").pid, Some(first));
    // A thread sets its own name when it starts.
    let count = super::wait_for("both threads", || {
        let threads = std::fs::read_dir(format!("/proc/{shim}/task")).unwrap().flatten();
        let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
        let count = names.filter(|name| name.trim() == "handoff-main").count();
        (count >= 2).then_some(count)
    });
    assert_eq!(count, 2);
}

/// The rest of the daemon would live for a long time.
#[test]
fn a_daemon_whose_server_dies_is_started_again_although_another_process_of_it_lives() {
    let script = "sleep 1000 &\nSERVER";
    let slow = Slow::wrapped("exclusive", "0", "stop_grace = \"10s\"\n", &["fork"], script);
    let first = slow.pid();
    super::wait_for("a daemon to be found by its listener", || {
        (slow.rig.status("s").pid == Some(first)).then_some(())
    });
    crate::support::signal(first, handoff::sys::process::Signal::SIGKILL);
    super::wait_for("another process to serve", || {
        let status = slow.rig.status("s");
        (status.restarts == 1 && status.pid.is_some_and(|pid| pid != first)).then_some(())
    });
    assert_ne!(slow.pid(), first);
}
