//! A file system that does not answer delays the service that needs it, and no other.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use handoff::control::Client;
use handoff::control::api::{Ending, History, Request, Response, State};
use handoff::history;
use handoff::sys::path::make_fifo;
use handoff::sys::process::Signal;

use super::disk::Disk;
use crate::support::{Rig, ask, copy_program, free_address, kill, service, signal, version, wait_for};

/// The maximum time for work without that file system, at a high load.
pub(super) const SOON: Duration = Duration::from_secs(8);

/// A daemon, and a file system over `backing` at `path` in its directory.
pub(super) fn rig(path: &str) -> Option<(Rig, Disk)> {
    let mut rig = Rig::new();
    rig.stop_daemon();
    fs::create_dir_all(rig.path("backing/dir")).unwrap();
    fs::create_dir_all(rig.path(path)).unwrap();
    let Some(disk) = Disk::mount(&rig.path(path), &rig.path("backing")) else {
        eprintln!("not run: it needs root and /dev/fuse");
        return None;
    };
    rig.start_daemon();
    Some((rig, disk))
}

/// Writes a service with its own data directory.
pub(super) fn write(rig: &Rig, name: &str, binary: &Path, more: &str) -> SocketAddr {
    let (address, data) = (free_address(), rig.path(&format!("data-{name}")));
    fs::create_dir_all(&data).unwrap();
    let text = format!(
        "binary = {binary:?}\nargs = [{data:?}]\nautostart = false\nstore = false\n{more}\n[listen]\nmain = \"{address}\"\n"
    );
    fs::write(rig.path(&format!("config/services/{name}.toml")), text).unwrap();
    address
}

pub(super) fn start(rig: &Rig, name: &str) {
    rig.call(Request::Start(service(name))).unwrap();
}

/// Checks all operations of another service.
pub(super) fn goes_on(rig: &Rig, name: &str, address: SocketAddr) {
    static NEXT: AtomicU32 = AtomicU32::new(2);
    let next = format!("other-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let (binary, pid) = (rig.release(&next, ""), rig.status(name).pid.unwrap());
    kill(pid);
    let began = Instant::now();
    // The request waits at the listener for the next process. Polls of the status would add to the time.
    version(address);
    assert!(began.elapsed() < SOON, "it was started again after {:?}", began.elapsed());
    wait_for("another process", || {
        let status = rig.status(name);
        (status.state == State::Serving && status.pid != Some(pid)).then_some(())
    });
    rig.settled(name);
    let began = Instant::now();
    let outcome = rig.upgrade(name, &binary).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert!(began.elapsed() < SOON, "it was upgraded in {:?}", began.elapsed());
    assert_eq!(version(address), next);
    assert!(rig.call(Request::List).is_ok());
    rig.settled(name);
}

#[test]
fn a_working_directory_that_does_not_answer_holds_up_its_service_alone() {
    let Some((mut rig, disk)) = rig("mnt") else { return };
    let hung =
        write(&rig, "hung", &rig.release("1", ""), &format!("working_dir = {:?}", rig.path("mnt/dir")));
    let other = write(&rig, "other", &rig.release("other-1", ""), "");
    start(&rig, "other");
    disk.hang();
    std::thread::scope(|scope| {
        let started = scope.spawn(|| rig.call(Request::Start(service("hung"))));
        wait_for("the start", || (rig.status("hung").phase.as_deref() == Some("greeting")).then_some(()));
        goes_on(&rig, "other", other);
        rig.call(Request::Stop(service("hung"))).unwrap();
        drop(started.join().unwrap());
    });
    assert_eq!(rig.status("hung").state, State::Stopped);
    // It holds no resource of the daemon: the address is free, and the daemon ends.
    std::net::TcpListener::bind(hung).unwrap();
    rig.call(Request::Stop(service("other"))).unwrap();
    std::net::TcpListener::bind(other).unwrap();
    assert!(rig.stop_daemon().expect("it ends by itself").success());
    disk.release();
    rig.start_daemon();
    start(&rig, "hung");
    assert_eq!(version(hung), "1");
}

#[test]
fn a_working_directory_that_does_not_answer_is_named_and_the_service_comes_back() {
    let Some((rig, disk)) = rig("mnt") else { return };
    let address =
        write(&rig, "s", &rig.release("1", ""), &format!("working_dir = {:?}", rig.path("mnt/dir")));
    disk.hang();
    let error = rig.call(Request::Start(service("s"))).unwrap_err().to_string();
    assert!(error.contains("mnt/dir has not answered for 10 s"), "{error}");
    disk.release();
    wait_for("it to serve", || (rig.status("s").state == State::Serving).then_some(()));
    assert_eq!(version(address), "1");
}

#[test]
fn many_status_requests_for_one_service_delay_no_other() {
    let Some((rig, disk)) = rig("mnt") else { return };
    let binary = rig.path("mnt/program");
    copy_program(rig.release("1", ""), rig.path("backing/program"));
    let hung = write(&rig, "hung", &binary, "");
    let other = write(&rig, "other", &rig.release("other-1", ""), "");
    start(&rig, "hung");
    start(&rig, "other");
    disk.hang();
    std::thread::scope(|scope| {
        let asks: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let began = Instant::now();
                    (rig.status("hung"), began.elapsed())
                })
            })
            .collect();
        for (status, took) in asks.into_iter().map(|ask| ask.join().unwrap()) {
            assert!(took < SOON, "{took:?}");
            assert!(status.problem.unwrap().contains("does not answer"));
        }
    });
    goes_on(&rig, "other", other);
    assert_eq!(version(hung), "1");
    disk.release();
    wait_for("the look at the files", || rig.status("hung").problem.is_none().then_some(()));
}

#[test]
fn a_log_that_does_not_answer_holds_up_no_other_log() {
    let Some((rig, disk)) = rig("state/services/hung/log") else { return };
    let hung = write(&rig, "hung", &rig.release("1", ""), "backoff = { attempts = 0 }");
    let other = write(&rig, "other", &rig.release("other-1", ""), "");
    start(&rig, "hung");
    start(&rig, "other");
    let keeper = || handoff::keeper::Client::connect(&rig.path("run/keeper.sock")).unwrap().pid();
    let pid = keeper();
    disk.hang();
    for round in 0..6 {
        signal(rig.status("hung").pid.unwrap(), Signal::SIGKILL);
        // A client of the killed process may be cut.
        wait_for("another process", || {
            ask(hung, "version").ok().filter(|answer| answer.split(' ').next() == Some("1"))
        });
        if round % 3 == 0 {
            goes_on(&rig, "other", other);
        }
        rig.settled("hung");
    }
    let log = || fs::read_to_string(rig.path("state/services/other/log/current")).unwrap();
    wait_for("the lines of the other service", || (log().matches(" starts").count() >= 5).then_some(()));
    assert_eq!(keeper(), pid, "it is the same keeper");
    disk.release();
    let late = || fs::read_to_string(rig.path("backing/current")).unwrap_or_default();
    wait_for("the late lines", || (late().matches("testee 1 starts").count() >= 6).then_some(()));
}

/// A reader waits for a writer, and a writer for a reader.
#[test]
fn a_fifo_in_the_place_of_a_file_of_the_state_delays_no_service() {
    let mut rig = Rig::new();
    let names = ["history", "history.new", "running.toml", "running.new", "watched", "watched.new", "pair"];
    let watched = rig.path("watched-program");
    let more = format!("[update]\nwatch = {watched:?}\nsettle = \"20ms\"\n[listen]");
    let address = write(&rig, "s", &rig.release("1", ""), "");
    let other = write(&rig, "other", &rig.release("other-1", ""), "");
    let file = rig.path("config/services/s.toml");
    let text = fs::read_to_string(&file).unwrap().replace("store = false\n", "").replace("[listen]", &more);
    fs::write(&file, text).unwrap();
    rig.stop_daemon();
    fs::create_dir_all(rig.path("state/services/s")).unwrap();
    for name in names {
        make_fifo(&rig.path("state/services/s").join(name), 0o700).unwrap();
    }
    make_fifo(&rig.path("config/services/fifo.toml"), 0o700).unwrap();
    rig.start_daemon();
    start(&rig, "s");
    start(&rig, "other");
    assert_eq!(version(address), "1");
    // A pending entry is reported once, with its final outcome.
    let asked = History { service: Some(service("s")), limit: None };
    let Ok(Response::History(entries)) = rig.call(Request::History(asked)) else { panic!("no history") };
    let endings: Vec<_> = entries.iter().map(|entry| entry.outcome).collect();
    assert_eq!(endings, [history::Ending::Started]);
    copy_program(rig.release("2", ""), &watched);
    goes_on(&rig, "other", other);
    rig.settled("s");
    let sums = rig.path("sums");
    make_fifo(&sums, 0o700).unwrap();
    let program = rig.release("3", "");
    for _ in 0..5 {
        let refused =
            rig.run(&["installed", "s", program.to_str().unwrap(), "--sha256sums", sums.to_str().unwrap()]);
        assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    }
    assert!(Client::connect(&rig.path("run/control.sock")).is_ok());
    assert!(rig.stop_daemon().expect("it ends by itself").success());
}

#[test]
fn a_disk_that_hangs_at_a_commit_keeps_no_service_down() {
    let Some((rig, disk)) = rig("state/services/s") else { return };
    let address = write(&rig, "s", &rig.release("1", ""), "");
    start(&rig, "s");
    let first = rig.settled("s").pid.unwrap();
    disk.hang_at("fsync journal");
    signal(first, Signal::SIGKILL);
    wait_for("the commit", || (rig.status("s").phase.as_deref() == Some("committing")).then_some(()));
    let processes = || crate::support::processes_of(&rig.path("testee-1"));
    let second = processes();
    assert_eq!(second.len(), 1, "{second:?}");
    // Only this process serves, and the disk has not confirmed that it is current.
    signal(second[0], Signal::SIGKILL);
    // A new start is in progress. At a high load the service may serve before the next look; a stop would end the
    // start.
    let status = wait_for("another start", || {
        let status = rig.status("s");
        let serves_again = status.state == State::Serving && status.pid != Some(second[0]);
        let is_tried = status.state == State::Backoff || status.phase.as_deref() == Some("greeting");
        (is_tried || serves_again).then_some(status)
    });
    let problem = status.problem.unwrap();
    assert!(problem.contains("has not answered in time"), "{problem}");
    disk.release();
    wait_for("it to serve", || (rig.status("s").state == State::Serving).then_some(()));
    assert_eq!(version(address), "1");
}

/// The binary in the service file is checked only for later reports.
#[test]
fn an_upgrade_to_another_binary_ends_although_the_named_one_does_not_answer() {
    let Some((rig, disk)) = rig("mnt") else { return };
    let named = rig.path("mnt/program");
    let first = rig.release("1", "");
    copy_program(&first, rig.path("backing/program"));
    let address = write(&rig, "s", &first, "");
    start(&rig, "s");
    let file = rig.path("config/services/s.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(&format!("{first:?}"), &format!("{named:?}"))).unwrap();
    let next = rig.release("2", "");
    disk.hang();
    let (tell, told) = std::sync::mpsc::channel();
    let (socket, claims) = (rig.path("run/control.sock"), handoff::control::api::Claims::default());
    let upgrade = handoff::control::api::Upgrade {
        service: service("s"),
        binary: Some(next),
        deadline_ms: None,
        drain_grace_ms: None,
        claims,
    };
    // The test does not wait for this thread, which may never end.
    std::thread::spawn(move || {
        let answer = Client::connect(&socket).unwrap().call(&Request::Upgrade(upgrade), &mut |_| {});
        let _ = tell.send(answer);
    });
    let answer = told.recv_timeout(crate::support::LIMIT);
    disk.release();
    let answer = answer.expect("the upgrade ends").unwrap();
    assert!(format!("{answer:?}").contains("Committed"), "{answer:?}");
    assert_eq!(version(address), "2");
}

#[test]
fn a_state_that_does_not_answer_keeps_the_next_daemon_from_no_other_service() {
    let Some((mut rig, disk)) = rig("state/services/hung") else { return };
    let names = ["a", "b", "c", "d", "hung"];
    let addresses = names.map(|name| write(&rig, name, &rig.release(name, ""), "lease = \"2s\""));
    names.iter().for_each(|name| start(&rig, name));
    let pids = names.map(|name| rig.status(name).pid);
    signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
    rig.daemon.take().unwrap().wait().unwrap();
    for name in names {
        fs::remove_file(rig.path(&format!("config/services/{name}.toml"))).unwrap();
    }
    disk.hang();
    rig.start_daemon();
    for (name, pid) in names.iter().zip(pids).take(4) {
        wait_for("it to be taken over", || {
            let Ok(Response::Status(status)) = rig.call(Request::Status(service(name))) else { return None };
            (status.state == State::Serving && status.pid == pid).then_some(())
        });
    }
    disk.release();
    wait_for("the late service", || {
        let Ok(Response::Status(status)) = rig.call(Request::Status(service("hung"))) else { return None };
        (status.state == State::Serving && status.pid == pids[4]).then_some(())
    });
    for (name, address) in names.iter().zip(addresses) {
        assert_eq!(version(address), *name);
    }
}

#[test]
fn a_unix_socket_in_a_directory_that_does_not_answer_holds_up_its_service_alone() {
    for mode in ["overlap", "exclusive"] {
        let mut rig = Rig::new();
        for directory in ["mnt", "backing"] {
            fs::create_dir_all(rig.path(directory)).unwrap();
        }
        for name in ["hung", "late"] {
            let file = rig.path(&format!("config/services/{name}.toml"));
            write(&rig, name, &rig.release("1", ""), &format!("mode = {mode:?}"));
            let text = fs::read_to_string(&file).unwrap();
            let path = rig.path(&format!("mnt/{name}.sock"));
            fs::write(&file, format!("{text}side = \"unix:{}\"\n", path.display())).unwrap();
        }
        let path = rig.path("mnt/hung.sock");
        let other = write(&rig, "other", &rig.release("other-1", ""), "");
        ["hung", "other"].iter().for_each(|name| start(&rig, name));
        assert!(path.exists());
        // The file system covers the directory with the sockets, as a lost mount does.
        let Some(disk) = Disk::mount(&rig.path("mnt"), &rig.path("backing")) else {
            eprintln!("not run: it needs root and /dev/fuse");
            return;
        };
        disk.hang();
        let error = rig.call(Request::Start(service("late"))).unwrap_err().to_string();
        assert!(error.contains("mnt has not answered"), "{error}");
        goes_on(&rig, "other", other);
        let refused = rig.upgrade("hung", &rig.release("2", ""));
        assert!(!matches!(&refused, Ok(outcome) if outcome.outcome == Ending::Committed), "{refused:?}");
        goes_on(&rig, "other", other);
        let _ = rig.call(Request::Stop(service("hung")));
        goes_on(&rig, "other", other);
        disk.release();
        drop(disk);
        wait_for("the end of the service", || (rig.status("hung").state == State::Stopped).then_some(()));
        start(&rig, "hung");
        start(&rig, "late");
        assert!(path.exists() && rig.upgrade("hung", &rig.release("2", "")).is_ok());
        assert!(rig.stop_daemon().expect("it ends by itself").success());
    }
}

/// Two failed checks would end the process within half a second.
#[test]
fn a_check_that_cannot_start_is_no_reason_to_end_a_process() {
    let Some((rig, disk)) = rig("mnt") else { return };
    copy_program("/bin/true", rig.path("backing/check"));
    let probe = format!("[probe]\nexec = [{:?}]\ntimeout = \"200ms\"", rig.path("mnt/check"));
    let more = format!("liveness = {{ interval = \"20ms\", failures = 2 }}\n{probe}");
    let address = write(&rig, "s", &rig.release("1", ""), &more);
    start(&rig, "s");
    let pid = rig.status("s").pid;
    let daemon = rig.daemon.as_ref().unwrap().id();
    let starting = || {
        let tasks = fs::read_dir(format!("/proc/{daemon}/task")).unwrap().flatten();
        let names = tasks.map(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default());
        names.filter(|name| name == "hook\n").count()
    };
    disk.hang();
    wait_for("a check to hang", || (starting() == 1).then_some(()));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(rig.status("s").pid, pid, "{:?}", rig.status("s"));
        assert!(starting() <= 1, "each check costs a thread");
        std::thread::sleep(Duration::from_millis(50));
    }
    disk.release();
    assert_eq!(version(address), "1");
}
