//! A version at a watched path, as from a download tool, and files that must not count as one.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{Rig, copy_program, service, version, wait_for};
use handoff::control::api::{self, Request, Response, State};
use handoff::history::{Ending, Entry};
use handoff::sys::user::effective_user;

const SETTLE: Duration = Duration::from_millis(100);

/// A service at version 1 that watches `incoming/s`.
fn watching() -> (Rig, SocketAddr) {
    let rig = Rig::new();
    fs::create_dir(rig.path("incoming")).unwrap();
    let more = format!("[update]\nwatch = {:?}\nsettle = \"100ms\"", target(&rig));
    let address = rig.serve("s", "1", "", &more);
    (rig, address)
}

fn target(rig: &Rig) -> PathBuf {
    rig.path("incoming/s")
}

/// Puts a release there as a correct tool does.
fn put(rig: &Rig, version: &str, fault: &str) {
    let beside = rig.path("incoming/.part");
    copy_program(rig.release(version, fault), &beside);
    fs::rename(&beside, target(rig)).unwrap();
}

fn becomes(address: SocketAddr, wanted: &str) {
    wait_for(wanted, || (version(address) == wanted).then_some(()));
}

fn history(rig: &Rig) -> Vec<Entry> {
    match rig.call(Request::History(api::History { service: Some(service("s")), limit: None })).unwrap() {
        Response::History(entries) => entries,
        other => panic!("{other:?}"),
    }
}

/// Waits until the problem contains these words. Returns it.
fn problem(rig: &Rig, words: &str) -> String {
    wait_for(words, || rig.status("s").problem.filter(|problem| problem.contains(words)))
}

fn logged(rig: &Rig, words: &str) {
    wait_for(words, || rig.daemon_log().contains(words).then_some(()));
}

/// Waits for longer than the daemon would need to take a file.
fn past_settling() {
    std::thread::park_timeout(4 * SETTLE);
}

#[test]
fn what_is_moved_in_runs_and_the_same_content_does_so_once() {
    let (mut rig, address) = watching();
    put(&rig, "2", "");
    becomes(address, "2");
    let last =
        wait_for("the entry", || history(&rig).pop().filter(|entry| entry.outcome == Ending::Committed));
    assert!(last.by.command.starts_with("watch ") && last.by.command.ends_with("/incoming/s"), "{last:?}");
    put(&rig, "2", "");
    logged(&rig, "was seen before");
    put(&rig, "3", "");
    becomes(address, "3");
    put(&rig, "2", "");
    wait_for("the second log line", || {
        (rig.daemon_log().matches("was seen before").count() == 2).then_some(())
    });
    assert_eq!(version(address), "3");
    // The next daemon checks the file immediately, and knows it.
    rig.stop_daemon().unwrap();
    rig.start_daemon();
    rig.call(Request::Start(service("s"))).unwrap();
    wait_for("the third log line", || {
        (rig.daemon_log().matches("was seen before").count() == 3).then_some(())
    });
    assert_eq!(history(&rig).iter().filter(|entry| entry.outcome == Ending::Committed).count(), 2);
}

#[test]
fn a_file_that_is_being_written_is_left_alone() {
    let (rig, address) = watching();
    let image = fs::read(rig.release("2", "")).unwrap();
    let mut file = fs::File::create(target(&rig)).unwrap();
    file.write_all(&image[..image.len() / 2]).unwrap();
    past_settling();
    assert!(!rig.daemon_log().contains("has appeared"), "it is half a file");
    file.write_all(&image[image.len() / 2..]).unwrap();
    file.set_permissions(PermissionsExt::from_mode(0o755)).unwrap();
    drop(file);
    becomes(address, "2");
}

#[test]
fn one_that_was_rolled_back_is_not_tried_again() {
    let (mut rig, address) = watching();
    put(&rig, "2", "exit-after-begin");
    let told = problem(&rig, "was rolled back and is not tried again");
    assert!(told.contains("exited with code 1"), "{told}");
    put(&rig, "2", "exit-after-begin");
    logged(&rig, "was seen before");
    rig.stop_daemon().unwrap();
    rig.start_daemon();
    rig.call(Request::Start(service("s"))).unwrap();
    wait_for("the second log line", || {
        (rig.daemon_log().matches("was seen before").count() == 2).then_some(())
    });
    assert_eq!(history(&rig).iter().filter(|entry| entry.outcome == Ending::RolledBack).count(), 1);
    assert_eq!(version(address), "1");
    put(&rig, "3", "");
    becomes(address, "3");
    wait_for("no problem", || rig.status("s").problem.is_none().then_some(()));
}

#[test]
fn what_a_stranger_could_have_put_there_is_refused() {
    let (rig, address) = watching();
    let release = rig.release("2", "");
    fs::set_permissions(&release, PermissionsExt::from_mode(0o777)).unwrap();
    symlink(&release, target(&rig)).unwrap();
    problem(&rig, "world-writable");
    let last = history(&rig).pop().unwrap();
    assert_eq!(last.outcome, Ending::Rejected);
    assert!(last.reason.unwrap().contains("world-writable"));

    let other = rig.path("link");
    symlink(&release, &other).unwrap();
    fs::set_permissions(&release, PermissionsExt::from_mode(0o755)).unwrap();
    fs::remove_file(target(&rig)).unwrap();
    symlink(&other, target(&rig)).unwrap();
    problem(&rig, "is not a regular file, or a link to one");

    fs::remove_file(target(&rig)).unwrap();
    fs::create_dir(target(&rig)).unwrap();
    fs::remove_dir(target(&rig)).unwrap();
    // Only root can change the owner of a file.
    if effective_user() == 0 {
        let beside = rig.path("incoming/.part");
        fs::copy(&release, &beside).unwrap();
        chown(&beside, Some(12_345), None).unwrap();
        fs::rename(&beside, target(&rig)).unwrap();
        problem(&rig, "belongs to user 12345");
    }
    assert_eq!(version(address), "1");
    // A valid link is followed.
    let _ = fs::remove_file(target(&rig));
    symlink(&release, target(&rig)).unwrap();
    becomes(address, "2");
}

#[test]
fn what_cannot_be_run_is_refused_and_reported() {
    let (rig, address) = watching();
    let beside = rig.path("incoming/.part");
    fs::write(&beside, "this is a text").unwrap();
    fs::rename(&beside, target(&rig)).unwrap();
    problem(&rig, "not tried again");
    assert_eq!((version(address).as_str(), rig.status("s").state), ("1", State::Serving));
}

#[test]
fn a_directory_that_vanishes_and_comes_again_is_watched_again() {
    let (rig, address) = watching();
    fs::remove_dir_all(rig.path("incoming")).unwrap();
    past_settling();
    fs::create_dir(rig.path("incoming")).unwrap();
    put(&rig, "2", "");
    becomes(address, "2");
    fs::rename(rig.path("incoming"), rig.path("elsewhere")).unwrap();
    fs::create_dir(rig.path("incoming")).unwrap();
    put(&rig, "3", "");
    becomes(address, "3");
}

#[test]
fn one_that_comes_while_the_service_is_stopped_waits_for_its_start() {
    let (rig, address) = watching();
    rig.call(Request::Stop(service("s"))).unwrap();
    put(&rig, "2", "");
    past_settling();
    assert!(!rig.daemon_log().contains("has appeared"));
    rig.call(Request::Start(service("s"))).unwrap();
    becomes(address, "2");
}
