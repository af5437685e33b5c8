//! Which is newer: the running version or the one in the service file; and the targets of links.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use handoff::control::api::{Claims, NamedIs, Request, Skew, Upgrade};

use super::StoredService;
use crate::support::{self, Rig, copy_program, service, version, wait_for};

impl StoredService {
    fn upgrade_to_named(&self) -> super::CommandOutput {
        self.run(&["upgrade", "s"])
    }

    fn kill_and_wait(&self) {
        let pid = self.rig.status("s").pid.unwrap();
        support::kill(pid);
        wait_for("another process", || self.rig.status("s").pid.filter(|now| *now != pid));
        wait_for("its answer", || support::ask(self.address, "version").ok());
    }
}

#[test]
fn an_upgrade_to_what_the_file_names_is_never_a_silent_step_back() {
    for table in ["", "store = false\n"] {
        let stored = StoredService::serve_with(table);
        let second = stored.rig.release("2", "");
        assert_eq!(stored.installed(&second, &[]).code, Some(0));
        let status = stored.rig.looked_at("s");
        assert_eq!(status.named.as_ref().map(|named| named.is), Some(NamedIs::Older));
        let is_seen = |said: &String| !said.contains("It cannot be seen whether");
        let said = wait_for("the look", || Some(stored.run(&["status", "s"]).said).filter(is_seen));
        assert!(said.contains("older than what runs"), "{said}");
        assert!(!said.contains("to run it: handoff upgrade s"), "{said}");

        let refused = stored.upgrade_to_named();
        assert_eq!(refused.code, Some(6), "{refused:?}");
        assert!(refused.said.contains("step back") && refused.said.contains("--binary"), "{refused:?}");
        let all = stored.run(&["upgrade", "--all"]);
        assert_eq!(all.code, Some(0), "{all:?}");
        assert!(all.said.contains("passed over: s."), "{all:?}");
        assert_eq!((version(stored.address).as_str(), stored.rig.status("s").generation.0), ("2", 2));

        // An explicit version is accepted.
        let first = stored.rig.path("testee-1");
        assert_eq!(stored.run(&["upgrade", "s", "--binary", first.to_str().unwrap()]).code, Some(0));
        assert_eq!((version(stored.address).as_str(), stored.rig.looked_at("s").named), ("1", None));
    }
}

#[test]
fn what_is_done_to_the_file_or_to_what_it_names_makes_it_newer() {
    let mut stored = StoredService::serve("");
    assert_eq!(stored.installed(&stored.rig.release("2", ""), &[]).code, Some(0));
    // The next daemon knows it, too.
    stored.rig.stop_daemon();
    stored.rig.start_daemon();
    assert_eq!(stored.run(&["start", "s"]).code, Some(0));
    assert_eq!(stored.upgrade_to_named().code, Some(6));
    let third = stored.rig.release("3", "");
    fs::rename(&third, stored.rig.path("testee-1")).unwrap();
    assert_eq!(stored.rig.looked_at("s").named.map(|named| named.is), Some(NamedIs::Newer));
    assert_eq!(stored.upgrade_to_named().code, Some(0));
    assert_eq!(version(stored.address), "3");

    assert_eq!(stored.installed(&stored.rig.release("4", ""), &[]).code, Some(0));
    stored.rig.release("5", "");
    let file = stored.rig.path("config/services/s.toml");
    let text = fs::read_to_string(&file).unwrap().replace("testee-1", "testee-5");
    fs::write(&file, text).unwrap();
    assert_eq!(stored.upgrade_to_named().code, Some(0));
    assert_eq!(version(stored.address), "5");
    // A changed service file leads back.
    let text = fs::read_to_string(&file).unwrap().replace("testee-5", "testee-2");
    fs::write(&file, text).unwrap();
    assert_eq!(stored.upgrade_to_named().code, Some(0));
    assert_eq!(version(stored.address), "2");
    assert_eq!(stored.upgrade_to_named().code, Some(0), "the same version again is not a step back");
    assert_eq!(stored.run(&["rollback", "s"]).code, Some(0));
    assert_eq!(stored.upgrade_to_named().code, Some(6), "after a rollback no silent step forward happens");
}

/// A release directory. The named script is the same in all releases; the program next to it differs.
fn release(rig: &Rig, n: &str, fault: &str) {
    let place = rig.path(&format!("releases/{n}"));
    fs::create_dir_all(&place).unwrap();
    fs::rename(rig.release(n, fault), place.join("program")).unwrap();
    fs::write(place.join("run"), "#!/bin/sh\nexec \"$(dirname \"$0\")/program\" \"$@\"\n").unwrap();
    support::executable(&place.join("run"));
}

fn lead_to(rig: &Rig, n: &str) {
    symlink(format!("releases/{n}"), rig.path("next")).unwrap();
    fs::rename(rig.path("next"), rig.path("current")).unwrap();
}

#[test]
fn a_release_behind_a_link_is_another_version_and_a_refused_one_never_runs() {
    let rig = Rig::new();
    release(&rig, "1", "");
    release(&rig, "2", "");
    release(&rig, "3", "unhealthy");
    lead_to(&rig, "1");
    let run = rig.path("current/run");
    let address = rig.write_service("s", &run, "store = false\n");
    rig.call(Request::Start(service("s"))).unwrap();
    let stored = StoredService { rig, address };
    assert!(stored.rig.status("s").binary.ends_with("releases/1/run"));

    lead_to(&stored.rig, "2");
    assert_eq!(stored.rig.looked_at("s").skew, Some(Skew::Changed));
    let ran = stored.installed(&run, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!((version(address).as_str(), stored.rig.looked_at("s").skew), ("2", None));
    assert!(stored.installed(&run, &[]).said.contains("already"));

    lead_to(&stored.rig, "3");
    assert_eq!(stored.installed(&run, &[]).code, Some(4));
    stored.kill_and_wait();
    assert_eq!(version(address), "2", "a crash starts what was committed");
    assert_eq!(stored.run(&["restart", "s"]).code, Some(0));
    assert_eq!(version(address), "2", "and so does a restart");
    let upgrade = Upgrade {
        service: service("s"),
        binary: None,
        deadline_ms: None,
        drain_grace_ms: None,
        claims: Claims::default(),
    };
    lead_to(&stored.rig, "1");
    stored.rig.call(Request::Upgrade(upgrade)).unwrap();
    assert_eq!(version(address), "1");
    // If the committed release is deleted, the next start uses the file's version.
    stored.run(&["stop", "s"]);
    lead_to(&stored.rig, "2");
    fs::rename(stored.rig.path("releases/1"), stored.rig.path("kept")).unwrap();
    assert_eq!(stored.run(&["start", "s"]).code, Some(0));
    assert_eq!(version(address), "2");
    // The same happens after a crash.
    fs::rename(stored.rig.path("kept"), stored.rig.path("releases/1")).unwrap();
    lead_to(&stored.rig, "1");
    fs::remove_dir_all(stored.rig.path("releases/2")).unwrap();
    stored.kill_and_wait();
    assert_eq!(version(address), "1");
    assert!(stored.rig.status("s").binary.ends_with("releases/1/run"));
    assert_eq!(stored.rig.looked_at("s").skew, None);
}

#[test]
fn after_a_failed_first_start_the_file_counts_as_it_is_now() {
    let rig = Rig::new();
    let bad = rig.release("1", "unhealthy");
    let good = rig.release("2", "");
    let address = rig.write_service("s", &bad, "store = true\n");
    let stored = StoredService { rig, address };
    let file = stored.rig.path("config/services/s.toml");
    let text = fs::read_to_string(&file).unwrap();
    let write = |from: &str, to: &str| fs::write(&file, text.replace(from, to)).unwrap();
    let fail = |stored: &StoredService| assert_eq!(stored.run(&["start", "s"]).code, Some(1));
    let is_at = |stored: &StoredService, path: &Path| {
        assert_eq!(version(address), "2");
        assert_eq!(stored.rig.status("s").binary, path);
        assert_eq!(stored.run(&["stop", "s"]).code, Some(0));
    };
    let mut stored = stored;
    // In place, during the retries, with each verb that starts the service.
    for verb in ["start", "restart"] {
        write("", "");
        fail(&stored);
        copy_program(&good, stored.rig.path("better"));
        fs::rename(stored.rig.path("better"), stored.rig.path("in-place")).unwrap();
        write("testee-1", "in-place");
        let text = fs::read_to_string(&file).unwrap().replace("store = true", "store = false");
        fs::write(&file, text).unwrap();
        stored.start_when_free(verb);
        is_at(&stored, &stored.rig.path("in-place"));
        stored = stored.with_new_daemon();
    }
    // Another binary, copied to the store.
    fs::write(&file, &text).unwrap();
    fail(&stored);
    write("testee-1", "testee-2");
    stored.start_when_free("start");
    is_at(&stored, &good);
    stored = stored.with_new_daemon();
    // Other content at the same path, after a stop.
    fs::write(&file, &text).unwrap();
    fail(&stored);
    assert_eq!(stored.run_when_free(&["stop", "s"]).code, Some(0));
    fs::rename(&good, &bad).unwrap();
    assert_eq!(stored.run(&["start", "s"]).code, Some(0));
    is_at(&stored, &bad);
}

impl StoredService {
    /// Repeats the command while the daemon is busy with a retry of its own.
    pub fn run_when_free(&self, args: &[&str]) -> super::CommandOutput {
        wait_for("the daemon to be free", || Some(self.run(args)).filter(|ran| ran.code != Some(5)))
    }

    /// While the daemon is busy, it may start the service by itself before the next attempt.
    fn start_when_free(&self, verb: &str) {
        let ran = self.run_when_free(&[verb, "s"]);
        let runs_already = ran.said.contains("runs already");
        assert!(ran.code == Some(0) || runs_already, "{verb}: {ran:?}");
    }

    /// Removes the state of the service, and starts a new daemon.
    fn with_new_daemon(mut self) -> Self {
        self.rig.stop_daemon();
        fs::remove_dir_all(self.rig.path("state/services/s")).unwrap();
        self.rig.start_daemon();
        self
    }
}

#[test]
fn a_program_that_does_not_speak_the_protocol_gets_a_hint_about_the_key() {
    let rig = Rig::new();
    let plain = rig.path("plain");
    fs::write(&plain, "#!/bin/sh\necho address already in use >&2\nexit 1\n").unwrap();
    support::executable(&plain);
    let address = rig.write_service("s", &plain, "store = true\n");
    let stored = StoredService { rig, address };
    let ran = stored.run(&["start", "s"]);
    assert!(ran.code == Some(1) && ran.said.contains("needs the key adapter"), "{ran:?}");
    for verb in ["status", "list"] {
        let told = stored.run(&[verb]).said;
        assert!(told.contains("needs the key adapter: handoff doctor s says which"), "{told}");
    }
}

#[test]
fn of_a_directory_each_file_counts_and_its_permissions_do_not() {
    let rig = Rig::new();
    release(&rig, "1", "");
    let top = rig.path("releases/1");
    let address = rig.write_service("s", &top, "store = true\n[update]\nmember = \"program\"\n");
    rig.call(Request::Start(service("s"))).unwrap();
    let stored = StoredService { rig, address };
    assert_eq!(stored.rig.looked_at("s").skew, None);
    fs::set_permissions(top.join("run"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(stored.rig.looked_at("s").skew, None, "chmod changes nothing");
    fs::write(top.join("part"), "new").unwrap();
    assert_eq!(stored.rig.looked_at("s").skew, Some(Skew::Changed));
    fs::remove_file(top.join("part")).unwrap();
    assert_eq!(stored.rig.looked_at("s").skew, None);
}
