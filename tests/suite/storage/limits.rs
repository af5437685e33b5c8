//! A daemon that cannot start threads.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use handoff::control::Client;
use handoff::control::api::{Ending, Request, Response, State};
use handoff::sys::limits::{Resource, UNLIMITED, limits};
use handoff::sys::user::effective_user;

use crate::support::{Rig, copy_program, kill, processes_of, service, signal, version, wait_for};

/// An unused user id, different from those of other tests.
const USER: u32 = 64_123;

/// Root has no such limit, so the daemon runs as another user. Returns `None` if this user cannot start it.
fn rig() -> Option<Rig> {
    if effective_user() != 0 {
        eprintln!("not run: it needs root to start a daemon as another user");
        return None;
    }
    let mut rig = Rig::new();
    rig.stop_daemon();
    give_away(rig.root.path());
    // Only root may be able to read the original.
    copy_program(env!("CARGO_BIN_EXE_handoff"), rig.path("handoff"));
    let daemon = rig.handoff(&["daemon"]);
    let mut command = Command::new(rig.path("handoff"));
    command.args(daemon.get_args()).envs(daemon.get_envs().filter_map(|(name, value)| Some((name, value?))));
    start(&mut rig, command);
    Some(rig)
}

/// Starts a daemon of that user.
fn start(rig: &mut Rig, mut command: Command) {
    let log = std::fs::File::options().create(true).append(true).open(rig.path("daemon.log")).unwrap();
    rig.daemon = Some(command.uid(USER).gid(USER).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    wait_for("the daemon to answer", || Client::connect(&rig.path("run/control.sock")).ok());
}

fn give_away(directory: &Path) {
    std::os::unix::fs::chown(directory, Some(USER), Some(USER)).unwrap();
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => give_away(&entry.path()),
            false => std::os::unix::fs::chown(entry.path(), Some(USER), Some(USER)).unwrap(),
        }
    }
}

/// Limits the processes and threads of the daemon's user to the existing ones, or removes the limit.
fn limit_threads(rig: &Rig, is_limited: bool) {
    let most = match limits(Resource::RLIMIT_NPROC).unwrap() {
        (_, UNLIMITED) => "unlimited".to_owned(),
        (_, most) => most.to_string(),
    };
    let limit = format!("--nproc={}:", if is_limited { "0" } else { &most });
    let pid = rig.daemon.as_ref().unwrap().id().to_string();
    // A process of the same user needs no privilege for this.
    let mut command = Command::new("prlimit");
    let changed = command.uid(USER).gid(USER).args(["--pid", &pid, &limit]).status().unwrap();
    assert!(changed.success());
}

fn threads(rig: &Rig) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", rig.daemon.as_ref().unwrap().id())).unwrap().count()
}

#[test]
fn a_commit_needs_no_thread_that_is_not_there_when_the_upgrade_begins() {
    let Some(rig) = rig() else { return };
    let address = rig.serve("s", "1", "", "");
    let next = rig.release("2", "slow-begin-3000");
    let outcome = rig.upgrade_and("s", &next, "beginning", || limit_threads(&rig, true)).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert_eq!(version(address), "2");
    assert_eq!(rig.settled("s").generation.0, 2);
}

#[test]
fn without_threads_an_upgrade_is_refused_and_everything_else_goes_on() {
    let Some(mut rig) = rig() else { return };
    let address = rig.serve("s", "1", "", "");
    let next = rig.release("2", "");
    // The second thread reads service files.
    wait_for("the threads of the start to end", || (threads(&rig) == 2).then_some(()));
    limit_threads(&rig, true);
    let outcome = rig.upgrade("s", &next).unwrap();
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    assert!(outcome.reason.as_deref().unwrap().contains("no thread can be started"), "{outcome:?}");
    for _ in 0..3 {
        assert_eq!(rig.status("s").state, State::Serving);
    }
    assert_eq!(version(address), "1");
    limit_threads(&rig, false);
    assert_eq!(rig.upgrade("s", &next).unwrap().outcome, Ending::Committed);
    assert_eq!(version(address), "2");
    // A service that dies meanwhile comes back as soon as threads are available again.
    limit_threads(&rig, true);
    signal(rig.settled("s").pid.unwrap(), handoff::sys::process::Signal::SIGKILL);
    wait_for("the start to fail", || (rig.status("s").state == State::Backoff).then_some(()));
    limit_threads(&rig, false);
    rig.settled("s");
    assert_eq!(version(address), "2");
    rig.call(handoff::control::api::Request::Stop(service("s"))).unwrap();
    assert!(rig.stop_daemon().expect("it ends by itself").success());
}

#[test]
fn a_daemon_that_begins_without_threads_takes_everything_over_when_there_are_some() {
    let Some(mut rig) = rig() else { return };
    let address = rig.serve("s", "1", "", "lease = \"2s\"");
    let down = rig.serve("down", "d1", "", "mode = \"overlap\"");
    let pid = rig.status("s").pid.unwrap();
    signal(rig.daemon.as_ref().unwrap().id(), handoff::sys::process::Signal::SIGKILL);
    rig.daemon.take().unwrap().wait().unwrap();
    for pid in processes_of(&rig.path("testee-d1")) {
        kill(pid);
    }
    let usual = rig.handoff(&[]);
    let variables = usual.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut command = Command::new("prlimit");
    command.arg("--nproc=0:").arg(rig.path("handoff")).arg("daemon").envs(variables);
    start(&mut rig, command);
    let error = rig.call(Request::Status(service("s"))).unwrap_err().to_string();
    assert!(error.contains("no thread can be started"), "{error}");
    assert_eq!(version(address), "1");
    limit_threads(&rig, false);
    wait_for("both to be taken in", || {
        let states = ["s", "down"].map(|name| match rig.call(Request::Status(service(name))) {
            Ok(Response::Status(status)) => Some(status.state),
            _ => None,
        });
        (states == [Some(State::Serving); 2]).then_some(())
    });
    assert_eq!(rig.settled("s").pid, Some(pid));
    assert_eq!(rig.looked_at("s").problem, None);
    assert_eq!(version(down), "d1");
    assert!(!rig.path("state/services/s/journal.aside-1").exists(), "the journal was whole");
    assert_eq!(rig.upgrade("s", &rig.release("2", "")).unwrap().outcome, Ending::Committed);
    assert_eq!(version(address), "2");
}

/// The limit cannot be raised. Silent clients get only a part of it.
#[test]
fn silent_clients_take_no_descriptor_that_a_service_needs() {
    let mut rig = Rig::new();
    rig.stop_daemon();
    let mut command = Command::new("prlimit");
    let daemon = rig.handoff(&["daemon"]);
    command.arg("--nofile=80:80").arg(daemon.get_program()).args(daemon.get_args());
    command.envs(daemon.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let log = std::fs::File::options().create(true).append(true).open(rig.path("daemon.log")).unwrap();
    rig.daemon = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    wait_for("the daemon to answer", || Client::connect(&rig.path("run/control.sock")).ok());
    let address = rig.serve("s", "1", "", "");
    let pid = rig.status("s").pid.unwrap();
    let silent: Vec<_> =
        (0..80).map(|_| std::os::unix::net::UnixStream::connect(rig.path("run/control.sock"))).collect();
    kill(pid);
    let status = wait_for("another process", || {
        let status = rig.status("s");
        (status.state == State::Serving && status.pid != Some(pid)).then_some(status)
    });
    assert_eq!(version(address), "1", "{status:?}");
    assert!(silent.iter().all(Result::is_ok));
    assert_eq!(rig.upgrade("s", &rig.release("2", "")).unwrap().outcome, Ending::Committed);
}
