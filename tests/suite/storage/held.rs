//! An open file on a file system that stops answering. Closing it is an operation of the file system, also in a child
//! that only inherited it.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handoff::control::Client;
use handoff::control::api::{Ending, Request, Response, State};
use handoff::sys::process::Signal;

use super::hanging::{SOON, goes_on, rig, start, write};
use crate::support::{copy_program, executable, free_address, service, signal, version, wait_for};

#[test]
fn a_journal_that_does_not_answer_delays_no_start_of_another_service() {
    let Some((rig, disk)) = rig("state/services/hung") else { return };
    let hung = write(&rig, "hung", &rig.release("1", ""), "");
    let other = write(&rig, "other", &rig.release("other-1", ""), "");
    start(&rig, "hung");
    start(&rig, "other");
    disk.hang();
    goes_on(&rig, "other", other);
    // The upgrade uses the journal, and other services are not affected either.
    let outcome = rig.upgrade("hung", &rig.release("2", "")).unwrap();
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    assert!(outcome.reason.unwrap().contains("journal"));
    goes_on(&rig, "other", other);
    assert_eq!(version(hung), "1");
    disk.release();
}

#[test]
fn a_program_that_stops_answering_while_it_is_copied_delays_no_start_of_another_service() {
    let Some((rig, disk)) = rig("mnt") else { return };
    copy_program(rig.release("2", ""), rig.path("backing/next"));
    let hung = write(&rig, "hung", &rig.release("1", ""), "");
    let file = rig.path("config/services/hung.toml");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("store = false\n", "")).unwrap();
    let other = write(&rig, "other", &rig.release("other-1", ""), "");
    start(&rig, "hung");
    start(&rig, "other");
    disk.hang_at_read();
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| rig.upgrade("hung", &rig.path("mnt/next")));
        wait_for("the copy to begin", || disk.hangs().then_some(()));
        goes_on(&rig, "other", other);
        assert_eq!(version(hung), "1");
        disk.release();
        assert_eq!(upgrade.join().unwrap().unwrap().outcome, Ending::Committed);
    });
    assert_eq!(version(hung), "2");
}

#[test]
fn a_service_file_that_does_not_answer_is_reported_and_delays_no_other_service() {
    let Some((rig, disk)) = rig("mnt") else { return };
    let (linked, other) = (
        write(&rig, "linked", &rig.release("1", ""), ""),
        write(&rig, "other", &rig.release("other-1", ""), ""),
    );
    let place = rig.path("config/services/linked.toml");
    fs::rename(&place, rig.path("backing/linked.toml")).unwrap();
    symlink(rig.path("mnt/linked.toml"), &place).unwrap();
    start(&rig, "linked");
    start(&rig, "other");
    // Nothing is known about a service that was never loaded.
    disk.hang();
    symlink(rig.path("mnt/new.toml"), rig.path("config/services/new.toml")).unwrap();
    for _ in 0..3 {
        let began = Instant::now();
        let Ok(Response::List(all)) = rig.call(Request::List) else { panic!("no list") };
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        let told = |name: &str| all.iter().find(|it| it.service == service(name)).unwrap().clone();
        assert_eq!(told("linked").state, State::Serving);
        for name in ["linked", "new"] {
            assert!(told(name).problem.unwrap().contains("does not answer"), "{all:?}");
        }
        assert_eq!(told("other").problem, None);
    }
    let error = rig.upgrade("linked", &rig.release("2", "")).unwrap_err().to_string();
    assert!(error.contains("does not answer"), "{error}");
    goes_on(&rig, "other", other);
    assert_eq!(version(linked), "1");
    rig.call(Request::Stop(service("linked"))).unwrap();
    disk.release();
    wait_for("the file", || rig.status("linked").problem.is_none().then_some(()));
    start(&rig, "linked");
    assert_eq!(version(linked), "1");
}

/// A shim searches all processes of the machine for leftovers of an earlier shim.
#[test]
fn what_an_unrelated_process_has_open_delays_no_shim() {
    let Some((rig, disk)) = rig("mnt") else { return };
    fs::write(rig.path("backing/file"), "content").unwrap();
    let mut unrelated = Command::new("sleep");
    unrelated.arg("1000").stdin(File::open(rig.path("mnt/file")).unwrap()).stdout(Stdio::null());
    let _unrelated = ChildGuard(unrelated.stderr(Stdio::null()).spawn().unwrap());
    drop(unrelated);
    let address = free_address();
    let (binary, data) = (rig.release_of("plain", "1", ""), rig.path("data"));
    let text = format!(
        "binary = {binary:?}\nargs = [{data:?}, \"{address}\"]\nadapter = \"listen-fds\"\nautostart = false\n[listen]\n\
         main = \"{address}\"\n"
    );
    fs::write(rig.path("config/services/shim.toml"), text).unwrap();
    start(&rig, "shim");
    disk.hang();
    for _ in 0..2 {
        let (began, shim) = (Instant::now(), rig.status("shim").shim.unwrap());
        signal(shim, Signal::SIGKILL);
        wait_for("another shim", || {
            let status = rig.status("shim");
            (status.state == State::Serving && status.shim != Some(shim)).then_some(())
        });
        assert_eq!(version(address), "1");
        assert!(began.elapsed() < SOON, "it serves again after {:?}", began.elapsed());
    }
    let began = Instant::now();
    rig.call(Request::Stop(service("shim"))).unwrap();
    assert!(began.elapsed() < SOON + Duration::from_secs(2), "it was stopped in {:?}", began.elapsed());
    disk.release();
}

/// One service for each kind of path. All paths are on a file system that stops answering, and every operation is
/// requested.
#[test]
fn no_path_of_a_service_file_holds_up_another_service_or_the_end_of_the_daemon() {
    let Some((mut rig, disk)) = rig("mnt") else { return };
    copy_program(rig.release("1", ""), rig.path("backing/program"));
    fs::write(rig.path("backing/command"), "#!/bin/sh\nexit 0\n").unwrap();
    executable(&rig.path("backing/command"));
    let (mnt, there) = (rig.path("mnt"), rig.path("mnt/program"));
    let command = mnt.join("command");
    let here = rig.release("1", "");
    let kinds = [
        ("binary", &there, String::new()),
        ("directory", &here, format!("working_dir = {:?}", mnt.join("dir"))),
        ("preflight", &here, format!("preflight = [{command:?}]")),
        ("hook", &here, format!("[hooks]\npre_upgrade = [{command:?}]")),
        ("watch", &here, format!("[update]\nwatch = {:?}", mnt.join("new"))),
    ];
    for (name, binary, more) in &kinds {
        write(&rig, name, binary, more);
        start(&rig, name);
    }
    let other = write(&rig, "other", &rig.release("other-1", ""), "");
    start(&rig, "other");
    let mut daemon = ChildGuard(rig.daemon.take().unwrap());
    disk.hang();
    std::thread::scope(|scope| {
        for (name, ..) in &kinds {
            let next = rig.release(&format!("2-{name}"), "");
            let rig = &rig;
            // The result of the upgrade does not matter.
            scope.spawn(move || drop(rig.upgrade(name, &next)));
        }
        goes_on(&rig, "other", other);
        for (name, ..) in &kinds {
            let began = Instant::now();
            if let Some(pid) = rig.status(name).pid {
                signal(pid, Signal::SIGKILL);
            }
            assert!(began.elapsed() < SOON, "{name}: {:?}", began.elapsed());
        }
        goes_on(&rig, "other", other);
        signal(daemon.0.id(), Signal::SIGTERM);
        wait_for("the daemon to give up its socket", || Client::connect(&rig.path("run/control.sock")).err());
        disk.release();
        wait_for("the daemon to end", || daemon.0.try_wait().unwrap());
    });
    assert!(std::net::TcpListener::bind(other).is_ok(), "it was stopped");
}

/// A process that is gone when this is dropped. The drop waits for its end only if the test succeeds, because its file
/// system may still hang after a failure.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        if !std::thread::panicking() {
            let _ = self.0.wait();
        }
    }
}
