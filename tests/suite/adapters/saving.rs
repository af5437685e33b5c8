//! Programs that do not serve but may have data to save: their main process has died, or they have not bound a listener
//! yet.

use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Request};
use handoff::sys::process::{Signal, parent_of};

use super::ending::Slow;
use super::wait_for;
use crate::support::{service, signal};

#[test]
fn what_outlives_its_main_process_has_its_time_to_save() {
    let keys = "stop_grace = \"30s\"\n";
    let cases =
        [(keys.to_owned(), &[][..]), (format!("{keys}notify = true\n"), &["READY=1\nMAINPID=PARENT"])];
    std::thread::scope(|scope| {
        for (keys, does) in cases {
            scope.spawn(move || {
                let slow = Slow::wrapped("exclusive", "6", &keys, does, "SERVER\nexit $?");
                let first = slow.pid();
                signal(parent_of(first).unwrap(), Signal::SIGKILL);
                let second = wait_for("another process to serve", || {
                    let status = slow.rig.status("s");
                    (status.restarts == 1).then_some(status.pid.filter(|pid| *pid != first)).flatten()
                });
                assert_eq!(slow.said(), format!("{first} asked\n{first} saved\n"), "{keys}");
                assert_ne!(second, first);
                let problem = slow.rig.status("s").problem.unwrap_or_default();
                assert!(problem.contains("signal 9; it was started again"), "{problem}");
            });
        }
    });
}

#[test]
fn what_outlives_its_main_process_and_its_time_is_killed_and_reported() {
    let slow = Slow::wrapped("exclusive", "-1", "stop_grace = \"3s\"\n", &[], "SERVER\nexit $?");
    let first = slow.pid();
    let begun = Instant::now();
    signal(parent_of(first).unwrap(), Signal::SIGKILL);
    let problem = wait_for("another process to serve", || {
        let status = slow.rig.status("s");
        (status.restarts == 1).then_some(status.problem).flatten()
    });
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(slow.said(), format!("{first} asked\n"));
    assert!(problem.contains(&format!("process {first} (server) was killed 3.")), "{problem}");
}

/// It may already have data.
#[test]
fn a_program_that_has_not_bound_yet_has_its_time_to_end() {
    fn deadline_is_over() {
        let keys = "stop_grace = \"20s\"\ndrain_grace = \"1s\"\ndeadline = \"4s\"\n";
        let slow = Slow::serve("overlap", "3", keys);
        let (first, opens) = (slow.pid(), slow.rig.path("data/said.opens"));
        std::fs::write(&opens, "").unwrap();
        let outcome = slow.restart();
        std::fs::remove_file(&opens).unwrap();
        assert_eq!((outcome.outcome, outcome.killed), (Ending::RolledBack, vec![]));
        let said = slow.said();
        let second = said.split(' ').next().unwrap_or_default();
        assert_eq!(said, format!("{second} asked\n{second} saved\n"));
        assert_eq!(slow.pid(), first);
    }
    fn binds_elsewhere() {
        let slow = Slow::write("exclusive", "3", "stop_grace = \"20s\"\n", &["elsewhere"], "");
        let failed = slow.rig.call(Request::Start(service("s"))).unwrap_err().to_string();
        assert!(failed.contains("binds 127.0.0.2:"), "{failed}");
        let said = slow.said();
        let first = said.split(' ').next().unwrap_or_default();
        assert!(said.starts_with(&format!("{first} asked\n{first} saved\n")), "{said}");
    }
    std::thread::scope(|scope| {
        let cases: [fn(); 2] = [deadline_is_over, binds_elsewhere];
        let running: Vec<_> = cases.into_iter().map(|case| scope.spawn(case)).collect();
        running.into_iter().for_each(|case| case.join().unwrap());
    });
}

/// The time exceeds the limit for an idle program that has not bound its listeners.
#[test]
fn a_program_that_works_is_waited_for_and_an_idle_one_is_reported() {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let slow = Slow::write("exclusive", "0", "", &["works-66"], "");
            slow.rig.call(Request::Start(service("s"))).unwrap();
            slow.pid();
        });
        scope.spawn(|| {
            let slow = Slow::write("exclusive", "1", "", &["rests"], "");
            let failed = slow.rig.call(Request::Start(service("s"))).unwrap_err().to_string();
            assert!(failed.contains("has done nothing for 60s"), "{failed}");
            assert!(slow.said().contains("saved"), "it got its stop signal: {failed}");
        });
    });
}

#[test]
fn a_service_whose_named_main_process_dies_is_started_again() {
    let does = ["READY=1\nMAINPID=SELF"];
    let slow =
        Slow::wrapped("exclusive", "0", "notify = true\nstop_grace = \"5s\"\n", &does, "SERVER\nsleep 1000");
    let first = slow.pid();
    signal(first, Signal::SIGKILL);
    wait_for("another process to serve", || {
        let status = slow.rig.status("s");
        (status.restarts == 1 && status.pid.is_some_and(|pid| pid != first)).then_some(())
    });
    assert_ne!(slow.pid(), first);
    let problem = slow.rig.status("s").problem.unwrap_or_default();
    assert!(problem.contains("signal 9"), "{problem}");
}
