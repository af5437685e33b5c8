//! A daemon on a full or read-only disk, and the lock that keeps out a second daemon.

use std::fs;
use std::time::{Duration, Instant};

use handoff::control::api::{Request, ServiceStatus, State};
use handoff::sys::process::children_of;
use handoff::sys::user::effective_user;

use crate::support::{Rig, SmallDisk, kill, service, version, wait_for};

/// A rig with its state on a small disk. Returns `None` if that cannot be mounted.
fn rig() -> Option<(Rig, SmallDisk)> {
    if effective_user() != 0 {
        eprintln!("not run: it needs root");
        return None;
    }
    let mut rig = Rig::new();
    rig.stop_daemon();
    let disk = SmallDisk::mount(&rig.path("state"));
    rig.start_daemon();
    Some((rig, disk))
}

fn starts_by_itself(rig: &Rig, name: &str) {
    let file = rig.path(&format!("config/services/{name}.toml"));
    let text = fs::read_to_string(&file).unwrap().replace("autostart = false\n", "");
    // Its own data directory avoids a conflict over the lock.
    fs::create_dir_all(rig.path(&format!("data-{name}"))).unwrap();
    fs::write(&file, text.replace("/data\"", &format!("/data-{name}\""))).unwrap();
}

/// Waits until a start has failed and the next try has not begun.
fn waits(rig: &Rig, name: &str) -> ServiceStatus {
    wait_for("the start to fail", || Some(rig.status(name)).filter(|status| status.state == State::Backoff))
}

#[test]
fn on_a_full_disk_what_ran_before_starts_and_what_is_new_starts_when_there_is_room() {
    let Some((mut rig, disk)) = rig() else { return };
    let address = rig.serve("known", "1", "", "");
    starts_by_itself(&rig, "known");
    rig.stop_daemon();
    let new = rig.write_service("new", &rig.release("2", ""), "");
    starts_by_itself(&rig, "new");
    disk.fill();
    rig.start_daemon();
    wait_for("it to serve", || (rig.status("known").state == State::Serving).then_some(()));
    assert_eq!(version(address), "1");
    let problem = waits(&rig, "new").problem.unwrap();
    assert!(problem.contains("No space left on device") && problem.contains("tried again"), "{problem}");
    disk.make_room();
    wait_for("it to serve", || (rig.status("new").state == State::Serving).then_some(()));
    assert_eq!(version(new), "2");
    assert_eq!(rig.status("new").problem, None);
}

#[test]
fn a_start_that_is_tried_again_is_called_off_by_a_stop() {
    let Some((mut rig, disk)) = rig() else { return };
    rig.stop_daemon();
    rig.write_service("new", &rig.release("1", ""), "");
    starts_by_itself(&rig, "new");
    disk.fill();
    rig.start_daemon();
    waits(&rig, "new");
    rig.call(Request::Stop(service("new"))).unwrap();
    let told = rig.status("new");
    assert_eq!((told.state, told.next_try_at), (State::Stopped, None), "{told:?}");
    disk.make_room();
    rig.call(Request::Start(service("new"))).unwrap();
    assert_eq!(rig.status("new").state, State::Serving);
}

#[test]
fn a_new_daemon_takes_over_what_runs_although_the_disk_is_read_only() {
    let Some((mut rig, disk)) = rig() else { return };
    let address = rig.serve("s", "1", "", "");
    let pid = rig.status("s").pid;
    let mut daemon = rig.daemon.take().unwrap();
    // The keeper has the log open. A read-only remount fails while a file is open for writing.
    let keeper = children_of(daemon.id()).into_iter().find(|child| Some(*child) != pid).unwrap();
    kill(daemon.id());
    daemon.wait().unwrap();
    kill(keeper);
    disk.set_read_only(true);
    rig.start_daemon();
    let status = rig.settled("s");
    assert_eq!(status.pid, pid);
    assert!(status.problem.unwrap().contains("Read-only file system"));
    assert_eq!(version(address), "1");
    disk.set_read_only(false);
}

#[test]
fn a_second_daemon_stays_out_although_the_lock_is_removed() {
    let rig = Rig::new();
    fs::remove_file(rig.path("state/lock")).unwrap();
    let mut second = rig.handoff(&["daemon"]);
    let ran = second.env("HANDOFF_RUNTIME_DIR", rig.path("other")).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let told = String::from_utf8_lossy(&ran.stderr).into_owned();
    let pid = rig.daemon.as_ref().unwrap().id().to_string();
    assert!(told.contains("in use by another handoff daemon") && told.contains(&pid), "{told}");
    assert!(!rig.path("state/lock").exists(), "the refused daemon leaves nothing");
}

#[test]
fn a_start_for_a_binary_that_is_not_there_is_called_off_by_a_stop() {
    let mut rig = Rig::new();
    rig.stop_daemon();
    let binary = rig.path("late");
    rig.write_service("s", &binary, "store = true\n");
    starts_by_itself(&rig, "s");
    rig.start_daemon();
    assert!(waits(&rig, "s").problem.is_some());
    rig.call(Request::Stop(service("s"))).unwrap();
    fs::rename(rig.release("1", ""), &binary).unwrap();
    // Longer than the pause before the next try.
    let began = Instant::now();
    wait_for("three seconds", || (began.elapsed() > Duration::from_secs(3)).then_some(()));
    assert_eq!((rig.status("s").state, rig.status("s").pid), (State::Stopped, None));
    rig.call(Request::Start(service("s"))).unwrap();
    assert_eq!(rig.status("s").state, State::Serving);
}

#[test]
fn a_lock_that_could_not_be_written_names_its_owner_when_there_is_room() {
    let Some((mut rig, disk)) = rig() else { return };
    rig.stop_daemon();
    let lock = rig.path("state/lock");
    for removed in [false, true] {
        if removed {
            fs::remove_file(&lock).unwrap();
        }
        disk.fill();
        rig.start_daemon();
        let said = || fs::read_to_string(&lock).unwrap_or_default();
        assert_eq!(said(), "", "the test has no effect");
        // A second daemon reports the owner even without the text in the lock.
        let mut second = rig.handoff(&["daemon"]);
        let refused = second.env("HANDOFF_RUNTIME_DIR", rig.path("other")).output().unwrap();
        let pid = rig.daemon.as_ref().unwrap().id().to_string();
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(told.contains("in use by another handoff daemon") && told.contains(&pid), "{told}");
        disk.make_room();
        wait_for("the lock to be written", || said().starts_with(&format!("{pid} ")).then_some(()));

        // With the text in the lock, the next daemon knows that the last one was lost, and restarts the services.
        let name = if removed { "second" } else { "first" };
        let address = rig.serve(name, "1", "", "");
        let process = rig.status(name).pid.unwrap();
        kill(rig.daemon.as_ref().unwrap().id());
        rig.daemon.take().unwrap().wait().unwrap();
        kill(process);
        rig.start_daemon();
        wait_for("it to serve", || (rig.status(name).state == State::Serving).then_some(()));
        assert_eq!(version(address), "1");
        assert!(rig.stop_daemon().unwrap().success());
        assert_eq!(said(), "", "it has ended in order");
    }
}
