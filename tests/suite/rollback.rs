//! New versions that fail in different ways: the old version serves, and the reason says what to do.

use crate::support::{Rig, ask_meanwhile, executable, service, version, wait_for};
use handoff::control::ClientError;
use handoff::control::api::{Ending, Outcome, Request, State};

/// Upgrades a healthy service to a release with `fault`, and checks the rollback.
fn rolled_back(fault: &str, deadline_ms: Option<u64>) -> Outcome {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "lease = \"2s\"");
    let old = rig.status("s").pid;
    let outcome = rig.upgrade_with("s", &rig.release("2", fault), deadline_ms, deadline_ms).unwrap();
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    assert_eq!((outcome.generation.0, outcome.pid), (1, old), "the old process serves");
    assert_eq!(version(address), "1");
    let status = rig.status("s");
    assert_eq!((status.state, status.pid), (State::Serving, old));
    // Nothing is left of the failed upgrade: the next one succeeds.
    let good = rig.upgrade("s", &rig.release("3", "")).unwrap();
    assert_eq!((good.outcome, good.generation.0), (Ending::Committed, 2));
    assert_eq!(version(address), "3");
    outcome
}

fn reason(outcome: &Outcome) -> &str {
    outcome.reason.as_deref().unwrap()
}

macro_rules! rolls_back {
    ($($name:ident: $fault:literal, $deadline_ms:expr, $words:literal;)*) => {
        $(#[test]
        fn $name() {
            let outcome = rolled_back($fault, $deadline_ms);
            assert!(reason(&outcome).contains($words), "{:?}", outcome.reason);
        })*
    };
}

rolls_back! {
    one_that_exits_at_once: "exit-at-once", None, "exited with code 1";
    one_that_exits_while_it_starts: "exit-while-warming", None, "exited with code 1";
    one_that_exits_after_begin: "exit-after-begin", None, "exited with code 1";
    // On a busy machine the earlier phases take seconds, which count against the deadline.
    one_that_never_says_hello: "silent", Some(6000), "did not say Hello";
    one_that_never_gets_prepared: "hang-while-warming", Some(6000), "not prepared before the deadline";
    one_that_never_gets_ready: "hang-after-begin", Some(6000), "not ready before the deadline";
    one_that_says_it_is_unhealthy: "unhealthy", None, "told to be unhealthy";
    one_that_is_unhealthy_after_begin: "unhealthy-after-begin", None, "told to be unhealthy";
    one_that_sends_garbage: "rude-garbage", None, "not a handoff frame";
    one_that_sends_too_much: "rude-too-long", None, "larger than";
    one_that_speaks_another_version: "rude-version", None, "we speak 1..=4, the peer speaks 90..=99";
    one_that_uses_a_wrong_id: "rude-wrong-id", None, "id of another handoff";
    one_that_hangs_up: "rude-hang-up", None, "closed its channel";
}

/// The commit is already in progress when the process breaks the protocol, so the revert is a new generation.
#[test]
fn one_that_says_ready_twice_is_taken_back() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let old = rig.status("s").pid;
    let outcome = rig.upgrade("s", &rig.release("2", "rude-twice")).unwrap();
    assert_eq!((outcome.outcome, outcome.pid), (Ending::RolledBack, old), "{outcome:?}");
    assert!(reason(&outcome).contains("Ready was not expected"), "{outcome:?}");
    assert_eq!(version(address), "1");
    let good = rig.upgrade("s", &rig.release("3", "")).unwrap();
    assert_eq!(good.generation.0, outcome.generation.0 + 1);
}

#[test]
fn one_that_hangs_up_later_is_reported_before_an_upgrade_is_requested() {
    let rig = Rig::new();
    rig.serve("s", "1", "rude-deaf", "");
    let status = wait_for("the problem", || Some(rig.status("s")).filter(|status| status.problem.is_some()));
    assert!(status.problem.as_ref().unwrap().contains("it closed its channel"), "{status:?}");
    assert_eq!(status.state, State::Serving, "{status:?}");
    let refused = rig.upgrade("s", &rig.release("2", "")).unwrap_err().to_string();
    assert!(refused.contains("handoff stop s"), "{refused}");
    rig.call(Request::Stop(service("s"))).unwrap();
    assert_eq!(rig.status("s").problem, None);
}

/// Upgrades a service whose old process has `fault`, and checks that a process serves in the end.
fn old_process_fails(fault: &str, more: &str, ending: Ending, serves: &str) -> Outcome {
    let rig = Rig::new();
    let address = rig.serve("s", "1", fault, more);
    let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(outcome.outcome, ending, "{outcome:?}");
    assert_eq!(version(address), serves);
    assert_eq!(rig.status("s").state, State::Serving);
    outcome
}

#[test]
fn a_drain_that_fails_rolls_back() {
    let outcome = old_process_fails("drain-error", "", Ending::RolledBack, "1");
    assert!(reason(&outcome).contains("told to fail in drain"), "{outcome:?}");
}

#[test]
fn a_drain_that_panics_rolls_back() {
    let outcome = old_process_fails("drain-panic", "", Ending::RolledBack, "1");
    assert!(reason(&outcome).contains("panicked: told to panic in drain"), "{outcome:?}");
}

#[test]
fn a_seal_that_fails_rolls_back() {
    let outcome = old_process_fails("seal-error", "", Ending::RolledBack, "1");
    assert!(reason(&outcome).contains("told to fail in seal"), "{outcome:?}");
}

#[test]
fn a_seal_that_panics_rolls_back() {
    let outcome = old_process_fails("seal-panic", "", Ending::RolledBack, "1");
    assert!(reason(&outcome).contains("panicked: told to panic in seal"), "{outcome:?}");
}

#[test]
fn an_old_process_that_dies_while_it_drains_is_replaced() {
    old_process_fails("drain-exit", "", Ending::Committed, "2");
}

#[test]
fn an_old_process_that_dies_while_it_seals_is_replaced() {
    old_process_fails("seal-exit", "", Ending::Committed, "2");
}

#[test]
fn an_old_process_that_hangs_in_its_drain_code_is_replaced_when_it_cannot_resume() {
    let more = "deadline = \"30s\"\ndrain_grace = \"500ms\"\nresume_limit = \"500ms\"";
    old_process_fails("drain-hang", more, Ending::Committed, "2");
}

#[test]
fn a_request_that_outlasts_the_drain_grace_rolls_back_and_is_finished() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "drain_grace = \"300ms\"");
    let binary = rig.release("2", "");
    // Longer than the time until the drain on a busy machine.
    let slow = ask_meanwhile(address, "slow 8000");
    let outcome = rig.upgrade("s", &binary).unwrap();
    assert_eq!(outcome.outcome, Ending::RolledBack);
    assert!(reason(&outcome).contains("drain_grace"), "{outcome:?}");
    assert_eq!(slow.join().unwrap().unwrap(), "1 slow 8000");
    assert_eq!(version(address), "1");
}

#[test]
fn stragglers_are_cut_where_the_service_file_says_so() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "drain_grace = \"300ms\"\nstragglers = \"cut\"");
    let slow = ask_meanwhile(address, "slow 20000");
    let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert!(slow.join().unwrap().is_err());
    assert_eq!(version(address), "2");
}

#[test]
fn a_begin_that_is_slower_than_the_lease_is_waited_for() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "lease = \"1500ms\"");
    let outcome = rig.upgrade("s", &rig.release("2", "slow-begin-4000")).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert!(outcome.accept_gap_us.unwrap() >= 4_000_000);
    assert_eq!(version(address), "2");
}

#[test]
fn a_resume_that_fails_ends_in_a_cold_start_of_the_old_version() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "resume-error", "");
    let old = rig.status("s").pid;
    let outcome = rig.upgrade("s", &rig.release("2", "exit-after-begin")).unwrap();
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    assert_ne!(outcome.pid, old);
    assert_eq!(version(address), "1");
}

#[test]
fn a_binary_that_is_missing_or_cannot_be_executed_fails_as_such() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let text = rig.path("text");
    std::fs::write(&text, "hello").unwrap();
    for (path, words) in [(rig.path("nothing"), "does not exist"), (text, "execut")] {
        match rig.upgrade("s", &path) {
            Err(ClientError::Refused(error)) => {
                assert!(
                    error.message.contains(words) && error.message.contains(path.to_str().unwrap()),
                    "{error}"
                )
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(version(address), "1");
    }
}

#[test]
fn a_program_with_no_interpreter_is_rolled_back() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let script = rig.path("script");
    std::fs::write(&script, "#!/nonexistent/interpreter\n").unwrap();
    executable(&script);
    let outcome = rig.upgrade("s", &script).unwrap();
    assert_eq!(outcome.outcome, Ending::RolledBack);
    assert!(reason(&outcome).contains("could not be started"), "{outcome:?}");
    assert_eq!(version(address), "1");
}

#[test]
fn a_second_upgrade_while_one_runs_gets_the_phase() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    let hanging = rig.release("2", "hang-while-warming");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| rig.upgrade_with("s", &hanging, Some(30_000), None));
        crate::support::wait_for("the first to warm", || {
            (rig.status("s").phase.as_deref() == Some("warming")).then_some(())
        });
        match rig.upgrade("s", &hanging) {
            Err(ClientError::Refused(error)) => assert!(error.message.contains("warming"), "{error}"),
            other => panic!("{other:?}"),
        }
        rig.call(Request::Cancel(service("s"))).unwrap();
        assert_eq!(first.join().unwrap().unwrap().outcome, Ending::RolledBack);
    });
}

#[test]
fn an_upgrade_of_a_stopped_service_is_refused() {
    let rig = Rig::new();
    let binary = rig.release("1", "");
    rig.write_service("s", &binary, "");
    rig.call(handoff::control::api::Request::Start(crate::support::service("s"))).unwrap();
    rig.call(handoff::control::api::Request::Stop(crate::support::service("s"))).unwrap();
    match rig.upgrade("s", &binary) {
        Err(ClientError::Refused(error)) => assert!(error.message.contains("does not run"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_drain_grace_longer_than_the_deadline_is_refused() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    match rig.upgrade_with("s", &rig.release("2", ""), None, Some(600_000)) {
        Err(ClientError::Refused(error)) => {
            assert!(error.message.contains("longer than the deadline"), "{error}")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(version(address), "1");
}
