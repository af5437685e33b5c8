//! The keeper of a daemon is replaced when it fails, and stays when the daemon fails.

use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use handoff::control::api::Request;
use handoff::keeper::Client;
use handoff::sys::process::Signal;

use super::open_fds;
use crate::support::{LIMIT, Rig, executable, processes_of, signal, unlabelled, wait_for};

/// A daemon with a running service whose log has its first line.
fn daemon_with_service() -> Rig {
    let rig = Rig::new();
    rig.serve("svc", "1", "none", "");
    wait_for_line(&rig, "testee 1 starts");
    rig
}

fn wait_for_line(rig: &Rig, line: &str) {
    let path = rig.path("state/services/svc/log/current");
    wait_for(line, || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        unlabelled(&text).lines().any(|found| found == line).then_some(())
    });
}

fn keepers(rig: &Rig) -> Vec<u32> {
    let is_keeper = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"keeper")
    };
    processes_of(rig.root.path()).into_iter().filter(is_keeper).collect()
}

fn wait_for_another_keeper(rig: &Rig, old: u32) -> u32 {
    wait_for("another keeper", || match keepers(rig)[..] {
        [new] if new != old => Some(new),
        _ => None,
    })
}

/// The number of descriptors of a process, once it has been stable for a second. A busy daemon may still open or close
/// some.
fn open_fds_at_rest(pid: u32) -> usize {
    let mut seen = (open_fds(pid), Instant::now());
    wait_for("the descriptors to stay the same", || {
        let found = open_fds(pid);
        if found != seen.0 {
            seen = (found, Instant::now());
        }
        (seen.1.elapsed() > Duration::from_secs(1)).then_some(found)
    })
}

#[test]
fn a_killed_keeper_is_replaced_and_the_new_one_has_everything() {
    let mut rig = daemon_with_service();
    let mut old = keepers(&rig)[0];
    let held = Client::connect(&rig.path("run/keeper.sock")).unwrap().list().unwrap();
    assert!(!held.is_empty());
    for _ in 0..3 {
        signal(old, Signal::SIGKILL);
        old = wait_for_another_keeper(&rig, old);
    }
    let mut client =
        wait_for("the socket of the new keeper", || Client::connect(&rig.path("run/keeper.sock")).ok());
    wait_for("the listeners to be stored again", || (client.list().unwrap() == held).then_some(()));
    wait_for("the log pipes to be read again", || (client.stats().unwrap().pipes == 2).then_some(()));
    let daemon = rig.daemon.as_ref().unwrap().id();
    let before = open_fds_at_rest(daemon);
    // This line comes through the pipe that three earlier keepers have held.
    rig.upgrade("svc", &rig.release("2", "none")).unwrap();
    wait_for_line(&rig, "testee 2 starts");
    wait_for_line(&rig, "testee 1 ends");
    wait_for("the old pipe to be forgotten", || (open_fds(daemon) == before).then_some(()));
    rig.stop_daemon();
    assert!(keepers(&rig).is_empty());
}

#[test]
fn a_frozen_keeper_holds_no_upgrade_up_and_is_replaced() {
    let rig = daemon_with_service();
    let frozen = keepers(&rig)[0];
    signal(frozen, Signal::SIGSTOP);
    let began = Instant::now();
    rig.upgrade("svc", &rig.release("2", "none")).unwrap();
    assert!(began.elapsed() < LIMIT / 2);
    wait_for_line(&rig, "testee 2 starts");
    wait_for_line(&rig, "testee 1 ends");
    wait_for_another_keeper(&rig, frozen);
}

fn kill_daemon(rig: &mut Rig) {
    let mut daemon = rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

fn held(rig: &Rig) -> Vec<String> {
    let held = Client::connect(&rig.path("run/keeper.sock")).unwrap().list().unwrap();
    assert!(held.iter().any(|key| key.starts_with(".pid/svc/")), "{held:?}");
    held
}

#[test]
fn what_a_new_daemon_takes_over_outlives_the_keeper() {
    for frozen in [false, true] {
        let mut rig = daemon_with_service();
        kill_daemon(&mut rig);
        let held = held(&rig);
        let keeper = keepers(&rig)[0];
        if frozen {
            signal(keeper, Signal::SIGSTOP);
        }
        rig.start_daemon();
        rig.call(Request::Ping).unwrap();
        assert_eq!(keepers(&rig), [keeper]);
        signal(keeper, Signal::SIGKILL);
        wait_for_another_keeper(&rig, keeper);
        let mut client = wait_for("the new keeper", || Client::connect(&rig.path("run/keeper.sock")).ok());
        wait_for("everything to be stored again", || (client.list().unwrap() == held).then_some(()));
    }
}

#[test]
fn a_frozen_keeper_is_noticed_although_no_service_writes() {
    let mut rig = Rig::new();
    let silent = rig.path("silent");
    let script = r#"mkfifo "$0.fifo"; exec 3<>"$0.fifo"; read line <&3"#;
    std::fs::write(&silent, format!("#!/bin/sh\n{script}\n")).unwrap();
    executable(&silent);
    rig.write_service("svc", &silent, "");
    rig.call(Request::Ping).unwrap();
    let frozen = keepers(&rig)[0];
    signal(frozen, Signal::SIGSTOP);
    let mut start =
        rig.handoff(&["start", "svc"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_another_keeper(&rig, frozen);
    start.kill().unwrap();
    start.wait().unwrap();
    // The service cannot end in order.
    kill_daemon(&mut rig);
}

#[test]
fn the_end_of_a_process_ends_what_was_kept_of_it() {
    let rig = daemon_with_service();
    let mut client = Client::connect(&rig.path("run/keeper.sock")).unwrap();
    let mut kept = || {
        let keys = client.list().unwrap();
        keys.into_iter().filter(|key| key.starts_with(".pid/")).collect::<Vec<_>>()
    };
    let first = kept();
    assert_eq!(first.len(), 1);
    rig.upgrade("svc", &rig.release("2", "none")).unwrap();
    wait_for("the old process to be forgotten", || (kept().len() == 1).then_some(()));
    assert_ne!(kept(), first);
    rig.run(&["stop", "svc"]);
    wait_for("both to be forgotten", || kept().is_empty().then_some(()));
}

#[test]
fn a_keeper_whose_daemon_was_killed_stays_and_holds() {
    let mut rig = daemon_with_service();
    let keeper = keepers(&rig)[0];
    let mut daemon = rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let mut client = Client::connect(&rig.path("run/keeper.sock")).unwrap();
    assert_eq!(client.stats().unwrap().pipes, 2);
    let listener = client.fetch("svc/main/1").unwrap();
    let address = TcpListener::from(listener).local_addr().unwrap();
    TcpStream::connect(address).unwrap();
    assert_eq!(keepers(&rig), [keeper]);
}

#[test]
fn a_daemon_that_ends_writes_down_what_a_frozen_keeper_left_in_the_pipes() {
    let mut rig = daemon_with_service();
    signal(keepers(&rig)[0], Signal::SIGSTOP);
    rig.stop_daemon();
    wait_for_line(&rig, "testee 1 ends");
    assert!(keepers(&rig).is_empty());
}
