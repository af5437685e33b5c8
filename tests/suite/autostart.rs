//! What a person has decided about a service counts for the next daemon, before what its file says.

use handoff::control::api::{DecidedBy, Request, State};

use crate::support::{Rig, service, wait_for};

/// A service that its file starts with the daemon, and that runs.
fn started(keys: &str) -> Rig {
    let rig = Rig::new();
    rig.write_service("s", &rig.release("1", ""), keys);
    let file = rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("autostart = false\n", "")).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    rig
}

fn run(rig: &Rig, words: &[&str]) -> String {
    let ran = rig.run(words);
    assert!(ran.status.success(), "{words:?}: {ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

/// Ends the daemon in order and starts another one, twice: what it has decided must not be forgotten after its first use.
fn follows(rig: &mut Rig, state: State, by: DecidedBy) {
    for _ in 0..2 {
        assert!(rig.stop_daemon().is_some_and(|status| status.success()));
        rig.start_daemon();
        let status = wait_for("its state", || Some(rig.status("s")).filter(|it| it.state != State::Starting));
        assert_eq!((status.state, status.autostart.decided_by), (state, by), "{status:?}");
        assert_eq!(status.autostart.starts, state == State::Serving, "{status:?}");
    }
}

#[test]
fn a_service_that_a_person_has_stopped_stays_stopped_until_a_person_starts_it() {
    let mut rig = started("");
    follows(&mut rig, State::Serving, DecidedBy::File);
    run(&rig, &["stop", "s"]);
    let shown = run(&rig, &["status", "s"]);
    assert!(shown.contains("autostart   no (it was stopped)"), "{shown}");
    follows(&mut rig, State::Stopped, DecidedBy::Stop);
    run(&rig, &["start", "s"]);
    follows(&mut rig, State::Serving, DecidedBy::File);
}

#[test]
fn a_stop_of_a_service_that_has_failed_counts_as_well() {
    let mut rig = started("restart = \"never\"\n");
    crate::support::signal(rig.status("s").pid.unwrap(), handoff::sys::process::Signal::SIGKILL);
    wait_for("it to fail", || (rig.status("s").state == State::Failed).then_some(()));
    follows(&mut rig, State::Serving, DecidedBy::File);
    crate::support::signal(rig.status("s").pid.unwrap(), handoff::sys::process::Signal::SIGKILL);
    wait_for("it to fail", || (rig.status("s").state == State::Failed).then_some(()));
    run(&rig, &["stop", "s"]);
    follows(&mut rig, State::Stopped, DecidedBy::Stop);
}

#[test]
fn disable_and_enable_count_before_the_file() {
    let mut rig = started("");
    assert_eq!(run(&rig, &["disable", "s"]), "s does not start with the daemon.\n");
    assert_eq!(rig.status("s").state, State::Serving, "it runs on");
    follows(&mut rig, State::Stopped, DecidedBy::Disable);
    // A start is for now only.
    run(&rig, &["start", "s"]);
    follows(&mut rig, State::Stopped, DecidedBy::Disable);
    assert!(run(&rig, &["enable", "--now", "s"]).starts_with("s starts with the daemon.\n"));
    assert_eq!(rig.status("s").state, State::Serving);
    let file = rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("autostart = false\n{text}")).unwrap();
    follows(&mut rig, State::Serving, DecidedBy::Enable);
    run(&rig, &["disable", "--now", "s"]);
    assert_eq!(rig.status("s").state, State::Stopped);
    follows(&mut rig, State::Stopped, DecidedBy::Disable);
}

#[test]
fn what_ran_when_a_daemon_was_lost_runs_again_even_if_it_is_disabled() {
    let mut rig = started("");
    run(&rig, &["disable", "s"]);
    let pid = rig.status("s").pid;
    let mut lost = rig.daemon.take().unwrap();
    lost.kill().unwrap();
    lost.wait().unwrap();
    rig.start_daemon();
    assert_eq!(rig.settled("s").pid, pid);
    follows(&mut rig, State::Stopped, DecidedBy::Disable);
}

#[test]
fn a_decision_that_cannot_be_kept_is_reported() {
    let rig = started("");
    let file = rig.path("state/services/s/autostart.json");
    // Nothing can be renamed to a directory that is not empty.
    std::fs::create_dir_all(file.join("in the way")).unwrap();
    let refused = rig.run(&["disable", "s"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains(&*file.to_string_lossy()), "{said}");
    let stopped = run(&rig, &["stop", "s"]);
    assert!(stopped.contains("cannot be written"), "{stopped}");
    assert_eq!(rig.status("s").state, State::Stopped);
}
