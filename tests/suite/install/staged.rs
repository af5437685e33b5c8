//! A version that is installed while the service is stopped, or while no daemon runs, is used for the next start.

use std::fs;
use std::path::Path;

use handoff::control::api::{Ending, Request};

use super::{CommandOutput, StoredService};
use crate::support::{processes_of, service, signal, version, wait_for};

impl StoredService {
    fn start(&self) -> CommandOutput {
        self.run(&["start", "s"])
    }

    fn spool(&self) -> Vec<String> {
        let entries = fs::read_dir(self.rig.path("state/services/s/spool")).into_iter().flatten();
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

#[test]
fn what_is_installed_while_the_service_is_stopped_is_started_next() {
    for table in ["", "store = false\n"] {
        let stored = StoredService::serve_with(table);
        assert_eq!(stored.run(&["stop", "s"]).code, Some(0));
        let second = stored.rig.release("2", "");
        let ran = stored.installed(&second, &[]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.said.contains("its next start is one of"), "{ran:?}");
        // The installed file may be deleted, unless it runs in place.
        if table.is_empty() {
            fs::remove_file(&second).unwrap();
        }
        let said = stored.run(&["status", "s"]).said;
        assert!(said.contains("next start") && said.contains("testee-2"), "{said}");
        assert!(stored.run(&["history", "s"]).said.contains("staged"));
        assert_eq!(stored.start().code, Some(0));
        let status = stored.rig.status("s");
        assert_eq!((version(stored.address).as_str(), status.generation.0, status.staged), ("2", 2, None));
        stored.run(&["stop", "s"]);
        assert_eq!(stored.start().code, Some(0));
        assert_eq!(version(stored.address), "2", "it is the current one now");
    }
}

#[test]
fn what_is_staged_outlives_the_daemon_and_the_last_one_counts() {
    let mut stored = StoredService::serve("");
    stored.run(&["stop", "s"]);
    for n in ["2", "3"] {
        assert_eq!(stored.installed(&stored.rig.release(n, ""), &[]).code, Some(0));
    }
    signal(stored.rig.daemon.as_ref().unwrap().id(), handoff::sys::process::Signal::SIGKILL);
    stored.rig.daemon.take().unwrap().wait().unwrap();
    stored.rig.start_daemon();
    assert!(stored.run(&["gc", "s"]).code == Some(0) && stored.rig.status("s").staged.is_some());
    assert_eq!(stored.start().code, Some(0));
    assert_eq!(version(stored.address), "3");
    stored.run(&["stop", "s"]);
    // The current version is installed again, which discards the staged one.
    stored.installed(&stored.rig.release("4", ""), &[]);
    let again = stored.installed(&stored.rig.path("testee-3"), &[]);
    assert!(again.said.contains("started from") && again.said.contains("already"), "{again:?}");
    assert_eq!(stored.start().code, Some(0));
    assert_eq!(version(stored.address), "3");
}

#[test]
fn a_staged_version_that_cannot_be_started_gives_way_to_the_one_before() {
    let stored = StoredService::serve("");
    stored.run(&["stop", "s"]);
    assert_eq!(stored.installed(&stored.rig.release("2", "unhealthy"), &[]).code, Some(0));
    let ran = stored.start();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.said.contains("told to be unhealthy") && ran.said.contains("given up"), "{ran:?}");
    wait_for("version 1", || {
        crate::support::ask(stored.address, "version").ok().filter(|it| it.starts_with('1'))
    });
    assert_eq!(stored.rig.status("s").staged, None);
}

#[test]
fn what_is_refused_is_not_staged() {
    let stored = StoredService::serve("");
    stored.run(&["stop", "s"]);
    let second = stored.rig.release("2", "");
    let ran = stored.installed(&second, &["--sha256", &"0".repeat(64)]);
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert_eq!(stored.rig.status("s").staged, None);
}

#[test]
fn without_a_daemon_a_version_is_verified_and_kept_for_the_next_one() {
    for table in ["", "store = false\n"] {
        let mut stored = StoredService::serve_with(table);
        stored.rig.stop_daemon();
        let wrong = stored.installed(&stored.rig.path("nothing"), &[]);
        assert_eq!(wrong.code, Some(6), "{wrong:?}");
        for n in ["2", "3"] {
            let path = stored.rig.release(n, "");
            let wrong = stored.installed(&path, &["--sha256", &"0".repeat(64)]);
            assert_eq!(wrong.code, Some(6), "{wrong:?}");
            let ran = stored.installed(&path, &[]);
            assert_eq!(ran.code, Some(0), "{ran:?}");
            assert!(ran.said.contains("No daemon runs"), "{ran:?}");
            if table.is_empty() {
                fs::remove_file(path).unwrap();
            }
        }
        assert_eq!(stored.spool().len(), 2, "{:?}", stored.spool());
        stored.rig.start_daemon();
        assert!(stored.rig.status("s").staged.is_some());
        assert_eq!(stored.spool(), [] as [String; 0]);
        assert_eq!(stored.start().code, Some(0));
        assert_eq!((version(stored.address).as_str(), stored.rig.status("s").generation.0), ("3", 2));
    }
}

#[test]
fn what_was_installed_while_the_daemon_was_lost_is_upgraded_to_by_the_next_one() {
    let mut stored = StoredService::serve("");
    signal(stored.rig.daemon.as_ref().unwrap().id(), handoff::sys::process::Signal::SIGKILL);
    stored.rig.daemon.take().unwrap().wait().unwrap();
    assert_eq!(stored.installed(&stored.rig.release("2", ""), &[]).code, Some(0));
    assert_eq!(version(stored.address), "1", "nothing is disturbed");
    stored.rig.start_daemon();
    wait_for("version 2", || (version(stored.address) == "2").then_some(()));
    // The version stays staged until the whole upgrade is over.
    let status = wait_for("the staged version to be taken in", || {
        Some(stored.rig.settled("s")).filter(|status| status.staged.is_none())
    });
    assert_eq!(status.generation.0, 2);
    assert_eq!(status.last_handoff.unwrap().outcome, Ending::Committed);
    assert_eq!(processes_of(&stored.rig.path("state/services/s/versions")).len(), 1);
}

/// The documented example script.
#[test]
fn a_tool_that_updates_itself_loses_nothing() {
    let mut stored = StoredService::serve("");
    let zip = |n: &str| {
        let (path, release) = (stored.rig.path(&format!("{n}.zip")), stored.rig.release(n, ""));
        let made = std::process::Command::new("python3")
            .args(["-m", "zipfile", "-c"])
            .args([&path, &release])
            .status();
        assert!(made.unwrap().success());
        path
    };
    let zips = [zip("2"), zip("3")];
    let update = |stored: &StoredService, zip: &Path, n: &str| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/hooks/self-update.sh");
        let bin = stored.rig.path("bin");
        fs::create_dir_all(&bin).unwrap();
        // A replacement for unzip(1), which is not installed on every machine.
        fs::write(bin.join("unzip"), "#!/bin/sh\nexec python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' \"$2\" \"$3\"\n").unwrap();
        fs::write(bin.join("handoff"), format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_handoff")))
            .unwrap();
        ["unzip", "handoff"].iter().for_each(|name| crate::support::executable(&bin.join(name)));
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let ran = std::process::Command::new("sh")
            .args([
                script,
                "s",
                zip.to_str().unwrap(),
                &format!("testee-{n}"),
                stored.rig.path("target").to_str().unwrap(),
            ])
            .env("PATH", path)
            .env("HANDOFF_CONFIG_DIR", stored.rig.path("config"))
            .env("HANDOFF_STATE_DIR", stored.rig.path("state"))
            .env("HANDOFF_RUNTIME_DIR", stored.rig.path("run"))
            .output()
            .unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    };
    stored.run(&["stop", "s"]);
    update(&stored, &zips[0], "2");
    stored.rig.call(Request::Start(service("s"))).unwrap();
    assert_eq!(version(stored.address), "2");
    stored.rig.stop_daemon();
    update(&stored, &zips[1], "3");
    stored.rig.start_daemon();
    stored.rig.call(Request::Start(service("s"))).unwrap();
    assert_eq!(version(stored.address), "3");
}
