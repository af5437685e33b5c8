//! From a file to the running version, with the real daemon: what is accepted, what is refused, and that the old
//! version serves on in any case.

mod broken;
mod commands;
mod kept;
mod lost;
mod newer;
mod protected;
mod refused;
mod staged;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::{Rig, executable, service, version, wait_for};
use handoff::control::api::{Request, Response, Skew, VersionStatus};

/// A service with its versions in the store.
struct StoredService {
    rig: Rig,
    address: SocketAddr,
}

/// The result of a command.
#[derive(Debug)]
struct CommandOutput {
    code: Option<i32>,
    said: String,
}

impl StoredService {
    /// Starts a service that serves version 1. `tables` come before `[listen]`.
    fn serve(tables: &str) -> Self {
        let rig = Rig::new();
        let address = rig.serve("s", "1", "", &format!("store = true\n{tables}"));
        Self { rig, address }
    }

    /// The same, optionally without the store.
    fn serve_with(store: &str) -> Self {
        let rig = Rig::new();
        let store = if store.is_empty() { "store = true\n" } else { store };
        let address = rig.serve("s", "1", "", store);
        Self { rig, address }
    }

    fn run(&self, args: &[&str]) -> CommandOutput {
        let output = self.rig.run(args);
        let said = [output.stdout, output.stderr].concat();
        CommandOutput { code: output.status.code(), said: String::from_utf8_lossy(&said).into_owned() }
    }

    fn installed(&self, path: &Path, more: &[&str]) -> CommandOutput {
        self.run(&[&["installed", "s", path.to_str().unwrap()], more].concat())
    }

    fn versions(&self) -> Vec<VersionStatus> {
        match self.rig.call(Request::Versions(service("s"))).unwrap() {
            Response::Versions(versions) => versions,
            other => panic!("{other:?}"),
        }
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.rig.path(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    }

    /// Entries in the store that are not versions.
    fn leftovers(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.rig.path("state/services/s/versions")).into_iter().flatten();
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter(|path| path.to_string_lossy().contains("incoming-")).collect()
    }

    /// Checks that version 1 serves as before, and that nothing is left of the attempt.
    #[track_caller]
    fn is_untouched(&self) {
        let status = self.rig.status("s");
        assert_eq!((version(self.address).as_str(), status.generation.0), ("1", 1));
        assert_eq!(self.leftovers(), [] as [PathBuf; 0]);
        assert_eq!(self.versions().len(), 1);
    }
}

#[test]
fn a_file_is_installed_once_and_runs_from_the_store() {
    let stored = StoredService::serve("");
    let second = stored.rig.release("2", "");
    let ran = stored.installed(&second, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.said.contains("importing") && ran.said.contains("storing"), "{ran:?}");
    assert_eq!(version(stored.address), "2");

    let status = stored.rig.status("s");
    assert_eq!((status.binary.as_path(), status.version.as_deref()), (second.as_path(), Some("testee 2")));
    let kept = status.stored.unwrap();
    assert!(
        kept.starts_with(stored.rig.path("state/services/s/versions")) && kept.ends_with("files/testee-2")
    );
    let program = std::fs::read_link(format!("/proc/{}/exe", status.pid.unwrap())).unwrap();
    assert_eq!(program, kept.canonicalize().unwrap());

    for path in [&second, &stored.write("copy", std::fs::read(&second).unwrap(), 0o755)] {
        let again = stored.installed(path, &[]);
        assert_eq!(again.code, Some(0), "{again:?}");
        assert!(again.said.contains("already"), "{again:?}");
    }
    let after = stored.rig.status("s");
    assert_eq!((after.pid, after.generation.0, after.skew), (status.pid, 2, None));
}

#[test]
fn what_happens_to_the_path_that_was_given_changes_nothing() {
    let mut stored = StoredService::serve("");
    let first = stored.rig.path("testee-1");
    stored.write("other", "#!/bin/sh\nexit 1\n", 0o755);
    std::fs::rename(stored.rig.path("other"), &first).unwrap();
    assert_eq!(stored.rig.looked_at("s").skew, Some(Skew::Changed));
    let said = stored.run(&["status", "s"]).said;
    assert!(said.contains("another file is there now"), "{said}");
    std::fs::remove_file(&first).unwrap();
    assert_eq!(stored.rig.looked_at("s").skew, Some(Skew::Gone));
    assert!(stored.run(&["list"]).said.contains("(gone)"));

    let pid = stored.rig.status("s").pid.unwrap();
    crate::support::signal(pid, handoff::sys::process::Signal::SIGKILL);
    wait_for("another process", || stored.rig.status("s").pid.filter(|now| *now != pid));
    assert_eq!(version(stored.address), "1");
    assert_eq!(stored.run(&["restart", "s"]).code, Some(0));
    assert_eq!(stored.run(&["stop", "s"]).code, Some(0));
    assert_eq!(stored.run(&["start", "s"]).code, Some(0));
    assert_eq!(version(stored.address), "1");
    stored.rig.stop_daemon();
    stored.rig.start_daemon();
    assert_eq!(stored.run(&["start", "s"]).code, Some(0));
    assert_eq!((version(stored.address).as_str(), stored.versions().len()), ("1", 1));
}

#[test]
fn an_autostart_brings_its_binary_in_first() {
    let mut stored = StoredService::serve("");
    assert_eq!(stored.run(&["stop", "s"]).code, Some(0));
    stored.rig.stop_daemon();
    std::fs::remove_dir_all(stored.rig.path("state")).unwrap();
    let file = stored.rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace("autostart = false", "autostart = true");
    std::fs::write(&file, text).unwrap();
    stored.rig.start_daemon();
    let kept = wait_for("it to serve", || stored.rig.status("s").pid.and(stored.rig.status("s").stored));
    assert!(kept.ends_with("files/testee-1"));
    wait_for("its answer", || crate::support::ask(stored.address, "version").ok());
}

#[test]
fn two_callers_at_once_both_have_their_way_one_after_the_other() {
    let stored = StoredService::serve("");
    let releases = ["2", "3"].map(|version| stored.rig.release(version, ""));
    let ended: Vec<CommandOutput> = std::thread::scope(|scope| {
        let calls: Vec<_> =
            releases.iter().map(|release| scope.spawn(|| stored.installed(release, &[]))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(ended.iter().all(|ran| ran.code == Some(0)), "{ended:?}");
    assert_eq!(stored.rig.status("s").generation.0, 3);
    assert!(["2", "3"].contains(&version(stored.address).as_str()));
    assert_eq!(stored.leftovers(), [] as [PathBuf; 0]);
}

#[test]
fn a_caller_that_does_not_wait_finds_it_done_later() {
    let stored = StoredService::serve("");
    let ran = stored.installed(&stored.rig.release("2", ""), &["--no-wait", "--version", "2.0 by name"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.said.contains("at work"), "{ran:?}");
    wait_for("version 2", || {
        (stored.rig.status("s").version.as_deref() == Some("2.0 by name")).then_some(())
    });
    assert_eq!(version(stored.address), "2");
}

#[test]
fn without_the_store_a_service_runs_in_place_and_says_when_its_file_is_gone() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "store = false\n");
    let stored = StoredService { rig, address };
    let status = stored.rig.status("s");
    assert_eq!((status.stored, status.skew), (None, None));
    let second = stored.rig.release("2", "");
    let told = stored.installed(&second, &["--sha256", &"0".repeat(64)]);
    assert_eq!(told.code, Some(6), "{told:?}");
    assert!(told.said.contains("store = false"), "{told:?}");
    assert_eq!(stored.installed(&second, &[]).code, Some(0));
    assert!(stored.installed(&second, &[]).said.contains("already"));
    assert_eq!(version(address), "2");
    std::fs::rename(stored.rig.path("testee-1"), &second).unwrap();
    assert_eq!(stored.rig.looked_at("s").skew, Some(Skew::Changed));
    std::fs::remove_file(&second).unwrap();
    assert_eq!(stored.rig.looked_at("s").skew, Some(Skew::Deleted));
    assert_eq!(stored.versions(), []);
}

/// The executed file is not the script itself, so only the content of the script counts.
#[test]
fn of_a_script_the_content_counts() {
    let rig = Rig::new();
    let script = rig.path("script");
    let program = rig.release("1", "");
    let write = |comment: &str| {
        let text = format!("#!/bin/sh\n# {comment}\nexec {} \"$@\"\n", program.display());
        std::fs::write(rig.path("next"), text).unwrap();
        executable(&rig.path("next"));
        std::fs::rename(rig.path("next"), &script).unwrap();
    };
    write("one");
    rig.write_service("s", &script, "store = false\n");
    rig.call(Request::Start(service("s"))).unwrap();
    assert_eq!(rig.looked_at("s").skew, None);
    write("two");
    assert_eq!(rig.looked_at("s").skew, Some(Skew::Changed));
    write("one");
    assert_eq!(rig.looked_at("s").skew, None, "another file with the same content");
}
