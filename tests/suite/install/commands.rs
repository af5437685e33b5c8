//! The commands of the service file around an installation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use handoff::control::api::Request;
use handoff::sys::process::Signal;

use super::StoredService;
use crate::support::{self, Rig, service, version};

/// Writes an executable script. Returns its path.
fn script(directory: &std::path::Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    support::executable(&path);
    path.display().to_string()
}

#[test]
fn a_preflight_that_fails_or_hangs_refuses_the_version() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let check = script(
        place.path(),
        "check",
        "case \"$1\" in *-2) echo no good >&2; exit 3;; *-3) sleep 1000;; esac",
    );
    let stored =
        StoredService::serve(&format!("preflight = [{check:?}, \"{{binary}}\"]\npreflight_limit = \"4s\"\n"));
    let failed = stored.installed(&stored.rig.release("2", ""), &[]);
    assert_eq!(failed.code, Some(6), "{failed:?}");
    assert!(failed.said.contains("no good"), "{failed:?}");
    stored.is_untouched();
    let began = Instant::now();
    let hung = stored.installed(&stored.rig.release("3", ""), &[]);
    assert_eq!(hung.code, Some(6), "{hung:?}");
    assert!(
        hung.said.contains("did not end within 4s") && began.elapsed() < Duration::from_secs(20),
        "{hung:?}"
    );
    stored.is_untouched();
    assert_eq!(stored.installed(&stored.rig.release("4", ""), &[]).code, Some(0));
    assert_eq!(version(stored.address), "4");
}

#[test]
fn the_hooks_get_the_details_of_the_upgrade() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let told = place.path().join("told");
    let tell = script(
        place.path(),
        "tell",
        &format!(
            "echo \"$1 $HANDOFF_SERVICE $HANDOFF_REASON $HANDOFF_FROM_VERSION to $HANDOFF_TO_VERSION: $HANDOFF_CAUSE\" >> {}\n\
             case \"$1 $HANDOFF_TO\" in before*-5) exit 1;; esac; test -x \"$HANDOFF_TO\"",
            told.display()
        ),
    );
    let stored = StoredService::serve(&format!(
        "[hooks]\npre_upgrade = [{tell:?}, \"before\"]\npost_commit = [{tell:?}, \"committed\"]\npost_rollback = [{tell:?}, \"back\"]\n"
    ));
    assert_eq!(stored.installed(&stored.rig.release("2", ""), &[]).code, Some(0));
    assert_eq!(stored.installed(&stored.rig.release("3", "unhealthy"), &[]).code, Some(4));
    assert_eq!(stored.run(&["rollback", "s"]).code, Some(0));
    let aborted = stored.installed(&stored.rig.release("5", ""), &[]);
    assert_eq!(aborted.code, Some(6), "{aborted:?}");
    let lines = fs::read_to_string(&told).unwrap();
    let lines: Vec<&str> = lines.lines().map(|line| line.split(": told").next().unwrap_or(line)).collect();
    assert_eq!(
        lines[..3],
        [
            "before s install testee 1 to testee 2: ",
            "committed s install testee 1 to testee 2: ",
            "before s install testee 2 to testee 3: ",
        ]
    );
    assert!(lines[3].starts_with("back s install testee 2 to testee 3: "), "{lines:?}");
    assert_eq!(
        lines[4..],
        [
            "before s rollback testee 2 to testee 1: ",
            "committed s rollback testee 2 to testee 1: ",
            "before s install testee 1 to testee 5: ",
        ]
    );
    assert_eq!(version(stored.address), "1");
}

#[test]
fn what_comes_before_the_new_process_counts_against_the_deadline() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let hangs = script(place.path(), "hangs", "sleep 1000");
    let stored = StoredService::serve(&format!("preflight = [{hangs:?}]\npreflight_limit = \"10m\"\n"));
    let second = stored.rig.release("2", "");
    let args = ["upgrade", "s", "--deadline", "3s", "--drain-grace", "1s", "--binary"];
    let late = stored.run(&[&args[..], &[second.to_str().unwrap()]].concat());
    assert_eq!(late.code, Some(6), "{late:?}");
    assert!(late.said.contains("the deadline of the upgrade was over"), "{late:?}");
    assert_eq!(version(stored.address), "1");
}

/// A server that ignores its arguments, as most servers do. At its start it writes its version to a file.
fn server(stored: &Rig, version: &str) -> PathBuf {
    let path = stored.path(&format!("server-{version}"));
    let ran = stored.path("ran");
    let text = format!(
        "#!/usr/bin/env python3\n\
         import socket\n\
         open({ran:?}, 'a').write('{version}\\n')\n\
         listener = socket.socket(fileno=3)\n\
         while True:\n    \
             client, _ = listener.accept()\n    \
             client.recv(100)\n    \
             client.sendall(b'{version} \\n')\n    \
             client.close()\n"
    );
    fs::write(&path, text).unwrap();
    support::executable(&path);
    path
}

#[test]
fn no_code_of_a_version_runs_before_its_turn() {
    for mode in ["exclusive", "overlap"] {
        let rig = Rig::new();
        let (first, second) = (server(&rig, "1"), server(&rig, "2"));
        let (allowed, ran) =
            (rig.path("allowed"), || fs::read_to_string(rig.path("ran")).unwrap_or_default());
        let more = format!(
            "store = true\nadapter = \"listen-fds\"\nmode = {mode:?}\ndrain = \"nothing\"\n\
             preflight = [\"/usr/bin/test\", \"-e\", {allowed:?}]\n"
        );
        let address = rig.write_service("s", &first, &more);
        let run = |args: &[&str]| {
            let output = rig.run(args);
            (
                output.status.code(),
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            )
        };
        assert_eq!(run(&["check"]).0, Some(0));
        assert_eq!(ran(), "", "{mode}");
        assert_eq!(run(&["start", "s"]).0, Some(0));
        assert_eq!((version(address).as_str(), ran().as_str()), ("1", "1\n"), "{mode}");
        let path = second.to_str().unwrap();
        assert_eq!(run(&["installed", "s", path]).0, Some(6));
        assert_eq!(run(&["upgrade", "s", "--binary", path]).0, Some(6));
        for look in [&["check"][..], &["status", "s"], &["list"], &["versions", "s"], &["history", "s"]] {
            assert_eq!(run(look).0, Some(0), "{look:?}");
        }
        assert_eq!(ran(), "1\n", "{mode}: nothing of version 2 has run");
        fs::write(&allowed, "").unwrap();
        let upgraded = run(&["upgrade", "s", "--binary", path]);
        assert_eq!(upgraded.0, Some(0), "{mode}: {upgraded:?}");
        assert_eq!((version(address).as_str(), ran().as_str()), ("2", "1\n2\n"), "{mode}");
        let status = run(&["status", "s"]).1;
        assert!(status.contains("server 2"), "the version comes from its name: {status}");
    }
}

/// How a hanging command and its child in another session are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndCause {
    Cancelled,
    Signalled(Signal),
    TakenOver,
}

#[test]
fn nothing_that_was_started_beside_a_service_is_left() {
    let ends = [
        EndCause::Cancelled,
        EndCause::Signalled(Signal::SIGTERM),
        EndCause::Signalled(Signal::SIGQUIT),
        EndCause::TakenOver,
    ];
    for key in ["preflight = ", "[hooks]\npre_upgrade = ", "[update]\nversion_command = "] {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let pids = place.path().join("pids");
        let hangs = script(
            place.path(),
            "hangs",
            &format!(
                "case \"$1\" in *testee-1) exit 0;; esac\n\
                 setsid sleep 1000 </dev/null >/dev/null 2>&1 &\n\
                 echo $! > {0}.new; echo $$ >> {0}.new; mv {0}.new {0}; sleep 1000",
                pids.display()
            ),
        );
        let mut stored = StoredService::serve(&format!("{key}[{hangs:?}, \"{{binary}}\"]\n"));
        for end in ends {
            let second = stored.rig.release("2", "");
            let mut install = stored.rig.handoff(&["installed", "s", second.to_str().unwrap()]);
            let mut install = install.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let began = support::wait_for("the command to run", || fs::read_to_string(&pids).ok());
            fs::remove_file(&pids).unwrap();
            let lives = || began.lines().any(|pid| Path::new(&format!("/proc/{pid}/fd/0")).exists());
            assert!(lives(), "{key} {end:?}");
            let asked = Instant::now();
            match end {
                EndCause::Cancelled => _ = stored.rig.call(Request::Cancel(service("s"))).unwrap(),
                EndCause::Signalled(signal) => {
                    let mut daemon = stored.rig.daemon.take().unwrap();
                    support::signal(daemon.id(), signal);
                    daemon.wait().unwrap();
                }
                EndCause::TakenOver => {
                    let mut daemon = stored.rig.daemon.take().unwrap();
                    daemon.kill().unwrap();
                    daemon.wait().unwrap();
                    stored.rig.start_daemon();
                    stored.rig.status("s");
                }
            }
            // A killed process takes a moment to end.
            support::wait_for(&format!("{key} {end:?}: the end of {began}"), || (!lives()).then_some(()));
            assert!(asked.elapsed() < Duration::from_secs(20), "{key} {end:?}: {:?}", asked.elapsed());
            install.wait().unwrap();
            if stored.rig.daemon.is_none() {
                stored.rig.start_daemon();
                if end == EndCause::Signalled(Signal::SIGTERM) {
                    assert_eq!(stored.run(&["start", "s"]).code, Some(0));
                }
            }
            assert_eq!(version(stored.address), "1", "{key} {end:?}");
        }
    }
}

/// A command that opens files must not lose the descriptors that mark it, and must not see the supervisor's
/// descriptors.
#[test]
fn a_hook_that_is_left_behind_is_ended_whatever_it_opens() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (pids, open) = (place.path().join("pids"), place.path().join("open"));
    let hangs = script(
        place.path(),
        "hangs",
        &format!(
            "for n in 3 4 5 6 7 8 9; do test -e /proc/self/fd/$n && echo $n >> {1}; done\n\
             exec 3>/dev/null 4>/dev/null 5>/dev/null\n\
             setsid sleep 1000 </dev/null >/dev/null 2>&1 &\n\
             echo $! > {0}.new; echo $$ >> {0}.new; mv {0}.new {0}; sleep 1000",
            pids.display(),
            open.display()
        ),
    );
    for (hook, fault, serves) in [("post_commit", "", "2"), ("post_rollback", "unhealthy", "1")] {
        let mut stored = StoredService::serve(&format!("[hooks]\n{hook} = [{hangs:?}]\nlimit = \"10m\"\n"));
        let second = stored.rig.release("2", fault);
        let mut install = stored.rig.handoff(&["installed", "s", second.to_str().unwrap()]);
        let mut install = install.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = support::wait_for("the hook to run", || fs::read_to_string(&pids).ok());
        fs::remove_file(&pids).unwrap();
        let lives = || began.lines().any(|pid| Path::new(&format!("/proc/{pid}/fd/0")).exists());
        assert!(lives(), "{hook}");
        let mut daemon = stored.rig.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        install.wait().unwrap();
        stored.rig.start_daemon();
        stored.rig.settled("s");
        // A killed process takes a moment to end.
        support::wait_for(&format!("{hook}: the end of {began}"), || (!lives()).then_some(()));
        assert_eq!(version(stored.address), serves, "{hook}");
    }
    assert_eq!(fs::read_to_string(&open).unwrap_or_default(), "", "descriptors that the hook did not open");
}

/// The thread that starts the command blocks all signals.
#[test]
fn a_version_command_begins_with_no_signal_blocked() {
    let command = ["/bin/sed", "-n", "s/^SigBlk:.//p", "/proc/self/status"];
    let stored = StoredService::serve(&format!("[update]\nversion_command = {command:?}\n"));
    let versions = stored.versions();
    assert_eq!(versions[0].version.as_deref(), Some("0000000000000000"), "{versions:?}");
}
