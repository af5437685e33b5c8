//! Too few open files (`RLIMIT_NOFILE`): the affected process reports it, and nothing is lost.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Rig, executable, signal, version, wait_for};
use handoff::control::api::{Ending, Request, State};
use handoff::keeper::Client;
use handoff::sys::limits::{Resource, limits, set_limits};
use handoff::sys::process::Signal;

/// The soft limit of a process. It can have any value up to the hard limit.
fn soft_limit(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_ascii_whitespace().nth(3).unwrap().parse().unwrap()
}

fn set_soft_limit(pid: u32, current: u64) {
    let (_, maximum) = limits(Resource::RLIMIT_NOFILE).unwrap();
    set_limits(pid, Resource::RLIMIT_NOFILE, current, maximum).unwrap();
}

/// The daemon of a rig, started by a shell that has set limits.
fn daemon_with(rig: &Rig, limits: &str) -> Command {
    let daemon = rig.handoff(&["daemon"]);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{limits}; exec \"$@\""), "sh"]).arg(daemon.get_program());
    command.args(daemon.get_args()).envs(daemon.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// A script that runs `binary` with other limits.
fn with_limits(rig: &Rig, binary: &Path, limits: &str) -> PathBuf {
    let path = rig.path("limited");
    std::fs::write(&path, format!("#!/bin/sh\n{limits}\nexec {binary:?} \"$@\"\n")).unwrap();
    executable(&path);
    path
}

fn kill_daemon(rig: &mut Rig) {
    let mut daemon = rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn the_daemon_takes_all_it_may_have_and_a_service_gets_what_was_meant_for_it() {
    let mut rig = Rig::new();
    rig.stop_daemon();
    let mut command = daemon_with(&rig, "ulimit -S -n 500");
    rig.daemon = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    wait_for("the daemon", || handoff::control::Client::connect(&rig.path("run/control.sock")).ok());
    rig.serve("svc", "1", "none", "");
    let (_, hard) = limits(Resource::RLIMIT_NOFILE).unwrap();
    assert_eq!(soft_limit(rig.daemon.as_ref().unwrap().id()), hard);
    assert_eq!(soft_limit(Client::connect(&rig.path("run/keeper.sock")).unwrap().pid()), hard);
    assert_eq!(soft_limit(rig.status("svc").pid.unwrap()), 500);
}

#[test]
fn a_daemon_near_its_limit_refuses_an_upgrade_and_serves_on() {
    let rig = Rig::new();
    let address = rig.serve("svc", "1", "none", "");
    let daemon = rig.daemon.as_ref().unwrap().id();
    let before = soft_limit(daemon);
    let next = rig.release("2", "none");
    let open = std::fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count() as u64;
    set_soft_limit(daemon, open + 10);
    let outcome = rig.upgrade("svc", &next).unwrap();
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    let reason = outcome.reason.unwrap();
    assert!(reason.contains("RLIMIT_NOFILE") && reason.contains(&(open + 10).to_string()), "{reason}");
    assert_eq!(version(address), "1");
    assert_eq!(rig.status("svc").state, State::Serving);

    set_soft_limit(daemon, before);
    assert_eq!(rig.upgrade("svc", &next).unwrap().outcome, Ending::Committed);
    assert_eq!(version(address), "2");
}

#[test]
fn a_service_that_dies_is_started_again_by_a_daemon_near_its_limit() {
    let rig = Rig::new();
    let address = rig.serve("svc", "1", "none", "");
    let daemon = rig.daemon.as_ref().unwrap().id();
    let open = std::fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count() as u64;
    set_soft_limit(daemon, open + 12);
    let pid = rig.status("svc").pid.unwrap();
    signal(pid, Signal::SIGKILL);
    wait_for("another process", || rig.status("svc").pid.filter(|found| *found != pid));
    assert_eq!(version(address), "1");
}

#[test]
fn a_new_process_that_cannot_take_its_listeners_says_why() {
    let rig = Rig::new();
    let address = rig.serve("svc", "1", "none", "");
    let limited = with_limits(&rig, &rig.release("2", "none"), "ulimit -n 4");
    let outcome = rig.upgrade("svc", &limited).unwrap();
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    let reason = outcome.reason.unwrap();
    assert!(reason.contains("4 files") && reason.contains("RLIMIT_NOFILE"), "{reason}");
    assert_eq!(version(address), "1");
}

#[test]
fn a_daemon_that_cannot_take_over_what_is_held_leaves_it_alone() {
    let mut rig = Rig::new();
    let address = rig.serve("svc", "1", "none", "");
    let pid = rig.status("svc").pid;
    let mut keeper = Client::connect(&rig.path("run/keeper.sock")).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for number in 0..60 {
        let fd = std::os::fd::AsFd::as_fd(&listener);
        keeper.store([(format!("other/main/{number}").as_str(), fd)]).unwrap();
    }
    kill_daemon(&mut rig);
    let before = keeper.list().unwrap();
    assert!(before.len() > 60);
    let log = std::fs::File::create(rig.path("refused.log")).unwrap();
    rig.daemon = Some(daemon_with(&rig, "ulimit -n 50").stderr(log).spawn().unwrap());
    let status = wait_for("it to end", || rig.daemon.as_mut()?.try_wait().unwrap());
    assert!(!status.success());
    let told = std::fs::read_to_string(rig.path("refused.log")).unwrap();
    assert!(told.contains("50 open files (RLIMIT_NOFILE)"), "{told}");
    assert_eq!(keeper.list().unwrap(), before);
    assert_eq!(version(address), "1");

    rig.start_daemon();
    rig.call(Request::Ping).unwrap();
    wait_for("the service to be adopted", || {
        let status = rig.status("svc");
        (status.state == State::Serving && status.pid == pid).then_some(())
    });
}
