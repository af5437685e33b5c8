//! Jobs: services that run to their end.

use handoff::control::api::{Ending, Outcome, Request, Response, State};
use handoff::sys::process::{Exit, Signal};

use crate::support::{Rig, service, signal, wait_for};

/// A job that appends a line to a file, and then runs this.
fn job(script: &str, keys: &str) -> Rig {
    let rig = Rig::new();
    let script = format!("echo ran >> {}; {script}", rig.path("runs").display());
    let text = format!(
        "type = \"oneshot\"\nbinary = \"/bin/sh\"\nargs = [\"-c\", {script:?}]\nautostart = false\nstore = false\n{keys}"
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig
}

fn runs(rig: &Rig) -> usize {
    std::fs::read_to_string(rig.path("runs")).unwrap_or_default().lines().count()
}

fn start(rig: &Rig) -> Outcome {
    match rig.call(Request::Start(service("s"))).unwrap() {
        Response::Outcome(outcome) => *outcome,
        other => panic!("{other:?}"),
    }
}

fn exit(code: i32) -> Option<Exit> {
    Some(Exit { code: Some(code), signal: None })
}

#[test]
fn a_start_waits_for_the_end_of_a_job_and_reports_it() {
    let rig = job("sleep 0.3; exit 0", "");
    for run in 1..=2 {
        let outcome = start(&rig);
        assert_eq!((outcome.outcome, outcome.reason), (Ending::Completed, None));
        let status = rig.status("s");
        assert_eq!((status.state, status.last_exit, status.problem), (State::Exited, exit(0), None));
        assert_eq!(runs(&rig), run);
    }
    let list = String::from_utf8(rig.run(&["list"]).stdout).unwrap();
    assert!(list.contains("exited (0)"), "{list}");
}

/// Many are done before the daemon has recorded their start.
#[test]
fn a_job_that_is_done_at_once_runs_once_for_each_start() {
    let rig = job("exit 0", "");
    for run in 1..=20 {
        assert_eq!(start(&rig).outcome, Ending::Completed);
        assert_eq!((runs(&rig), rig.status("s").restarts), (run, 0));
    }
}

#[test]
fn a_job_that_fails_is_reported_with_its_exit_code() {
    let rig = job("exit 3", "");
    let ran = rig.run(&["start", "s"]);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(said.contains("the job exited with code 3"), "{said}");
    let status = rig.status("s");
    assert_eq!((status.state, status.last_exit, runs(&rig)), (State::Failed, exit(3), 1));
    let list = String::from_utf8(rig.run(&["list"]).stdout).unwrap();
    assert!(list.contains("failed (3)"), "{list}");
}

#[test]
fn a_job_that_cannot_be_started_fails_with_the_cause() {
    let rig = job("", "");
    let file = rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let script = rig.path("no-interpreter");
    crate::support::write_program(&script, b"#!/no/such/interpreter\n");
    std::fs::write(&file, text.replace("\"/bin/sh\"", &format!("{script:?}"))).unwrap();
    let ran = rig.run(&["start", "s"]);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    // A start that fails is tried again.
    wait_for("it to fail", || (rig.status("s").state == State::Failed).then_some(()));
}

#[test]
fn a_job_may_be_tried_again_until_it_succeeds() {
    let rig = job(
        "[ -e done ] && exit 0; touch done; exit 1",
        "restart = \"on-failure\"\n[backoff]\nfirst = \"10ms\"\n",
    );
    let file = rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("working_dir = {:?}\n{text}", rig.path("run"))).unwrap();
    assert_eq!(start(&rig).outcome, Ending::Completed);
    assert_eq!((rig.status("s").state, rig.status("s").restarts, runs(&rig)), (State::Exited, 1, 2));
}

#[test]
fn a_job_that_runs_is_neither_upgraded_nor_run_twice_and_can_be_stopped() {
    let rig = job("exec sleep 1000", "");
    std::thread::scope(|scope| {
        let started = scope.spawn(|| start(&rig));
        let status = wait_for("it to run", || {
            Some(rig.status("s")).filter(|it| it.state == State::Running && it.pid.is_some())
        });
        for verb in ["upgrade", "restart"] {
            let refused = rig.run(&[verb, "s"]);
            assert_eq!(refused.status.code(), Some(5), "{refused:?}");
        }
        // In the wanted state already.
        assert_eq!(rig.run(&["start", "s"]).status.code(), Some(0));
        assert_eq!((rig.status("s").pid, runs(&rig)), (status.pid, 1));
        assert_eq!(rig.run(&["stop", "s"]).status.code(), Some(0));
        assert_eq!(started.join().unwrap().outcome, Ending::Stopped);
    });
    assert_eq!(rig.status("s").state, State::Stopped);
}

#[test]
fn a_job_goes_on_under_a_new_daemon_and_its_end_is_known() {
    let mut rig = job("while [ ! -e go ]; do sleep 0.01; done; exit 4", "");
    let file = rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("working_dir = {:?}\n{text}", rig.path("run"))).unwrap();
    let mut command = rig.handoff(&["start", "s"]).spawn().unwrap();
    let pid = wait_for("it to run", || {
        let status = rig.status("s");
        status.pid.filter(|_| status.state == State::Running)
    });
    let mut lost = rig.daemon.take().unwrap();
    lost.kill().unwrap();
    lost.wait().unwrap();
    command.wait().unwrap();
    rig.start_daemon();
    let status = wait_for("it to be taken over", || {
        Some(rig.status("s")).filter(|status| status.state == State::Running)
    });
    assert_eq!(status.pid, Some(pid));
    std::fs::write(rig.path("run/go"), "").unwrap();
    let status = wait_for("its end", || Some(rig.status("s")).filter(|it| it.state == State::Failed));
    assert_eq!((status.last_exit, runs(&rig)), (exit(4), 1));
}

#[test]
fn a_job_that_is_killed_has_failed() {
    let rig = job("exec sleep 1000", "");
    std::thread::scope(|scope| {
        let started = scope.spawn(|| start(&rig));
        let pid = wait_for("it to run", || rig.status("s").pid);
        signal(pid, Signal::SIGKILL);
        let outcome = started.join().unwrap();
        assert_eq!(outcome.outcome, Ending::Failed, "{outcome:?}");
    });
    assert_eq!(rig.status("s").last_exit, Some(Exit { code: None, signal: Some(9) }));
}

#[test]
fn what_only_a_server_has_is_refused() {
    let rig = job("exit 0", "restart = \"always\"\nnotify = true\n[listen]\nmain = \"127.0.0.1:1\"\n");
    let checked = rig.run(&["check", "s"]);
    assert_eq!(checked.status.code(), Some(3));
    let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    for key in ["restart", "notify", "listen"] {
        assert!(said.contains(&format!(" {key}: ")), "{key}: {said}");
    }
}
