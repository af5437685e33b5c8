//! Secrets in files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use handoff::control::api::{Ending, Request};
use handoff::sys::user::effective_user;

use super::{PYTHON, environment_of, kill_daemon, open_rig, shown, start};
use crate::support::{Rig, free_address, kill, service, version, wait_for};

/// The directory of a process, with the only credential in it.
fn credentials_of(pid: u32, secret: &str, user: u32) -> PathBuf {
    let directory = PathBuf::from(&environment_of(pid)["CREDENTIALS_DIRECTORY"]);
    let (found, file) = (fs::metadata(&directory).unwrap(), directory.join("token"));
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o500, user));
    let found = fs::metadata(&file).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o400, user));
    assert_eq!(fs::read_to_string(&file).unwrap(), secret);
    directory
}

fn is_gone(directory: &Path) {
    wait_for("the end of the credentials", || (!directory.exists()).then_some(()));
}

fn secret(rig: &Rig, text: &str) {
    fs::write(rig.path("token"), text).unwrap();
    fs::set_permissions(rig.path("token"), PermissionsExt::from_mode(0o600)).unwrap();
}

fn table(rig: &Rig) -> String {
    format!("credentials = {{ token = {:?} }}\n", rig.path("token"))
}

#[test]
fn each_process_has_copies_until_its_end() {
    let mut rig = Rig::new();
    secret(&rig, "geheim-1");
    let address = rig.write_service("s", &rig.release("1", ""), &table(&rig));
    let first = credentials_of(start(&rig), "geheim-1", effective_user());
    secret(&rig, "geheim-2");
    let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    let pid = rig.status("s").pid.unwrap();
    let second = credentials_of(pid, "geheim-2", effective_user());
    is_gone(&first);

    // Without the secret there is no new process, and the old one serves on.
    fs::remove_file(rig.path("token")).unwrap();
    let outcome = rig.upgrade("s", &rig.release("3", "")).unwrap();
    let reason = format!("{outcome:?}");
    assert!(outcome.outcome == Ending::RolledBack && reason.contains("credentials.token"), "{reason}");
    assert_eq!((rig.status("s").pid, version(address).as_str()), (Some(pid), "2"));
    assert_eq!(rig.run(&["check", "s"]).status.code(), Some(3));
    assert_eq!(fs::read_dir(rig.path("run/processes")).unwrap().count(), 1);

    // The next daemon leaves the copies of a process that runs, and removes those of one that does not.
    secret(&rig, "geheim-3");
    kill_daemon(&mut rig);
    rig.start_daemon();
    assert_eq!(rig.settled("s").pid, Some(pid));
    credentials_of(pid, "geheim-2", effective_user());
    kill_daemon(&mut rig);
    kill(pid);
    rig.start_daemon();
    is_gone(&second);
    let third = credentials_of(rig.settled("s").pid.unwrap(), "geheim-3", effective_user());
    rig.call(Request::Stop(service("s"))).unwrap();
    is_gone(&third);
    assert!(!shown(&rig).contains("geheim"), "a secret is displayed");
}

#[test]
fn another_user_can_read_its_copies() {
    let Some(rig) = open_rig() else { return };
    secret(&rig, "geheim");
    let address = free_address();
    let text = format!(
        "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PYTHON:?}, \"{address}\"]\nautostart = false\nstore = false\n\
         adapter = \"inject\"\nuser = \"65534\"\ngroup = \"65534\"\n{}[listen]\nmain = \"{address}\"\n",
        table(&rig)
    );
    fs::write(rig.path("config/services/s.toml"), text).unwrap();
    let directory = credentials_of(start(&rig), "geheim", 65_534);
    rig.call(Request::Stop(service("s"))).unwrap();
    is_gone(&directory);
}
