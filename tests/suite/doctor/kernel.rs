//! What the kernel permits and forbids.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use handoff::config::ListenAddress;
use handoff::shim::exec::{Spec, start_by};
use handoff::shim::inject::{EventSink, InjectEvent, Injector, ListenerProvider};
use handoff::slots::Access;
use handoff::sys::attribute;
use handoff::sys::process::reap_blocking;
use handoff::sys::seccomp::Calls;
use handoff::sys::user::effective_user;

use super::{LONG, command, examine, examine_by, of, rig, verdicts, write_plain};
use crate::support::{Rig, close, copy_program, free_address};

const NOBODY: u32 = 65534;

/// If this test runs as root, it runs the command as a user without privilege. Otherwise all tests here do that.
#[test]
fn no_privilege_is_needed() {
    if effective_user() != 0 {
        return;
    }
    let rig = rig();
    let address = free_address();
    write_plain(&rig, "", "inject", address, address);
    let (said, code) = examine_by(&rig, unprivileged(&rig, &command(&rig, "5s", &[])));
    assert_eq!((verdicts(&said), code), (["does-not", "works", "works"], 0), "{said:#}");
}

/// The command, run by a user without privilege.
fn unprivileged(rig: &Rig, whole: &Command) -> Command {
    // Only root may be able to read the original.
    let program = rig.path("handoff");
    copy_program(env!("CARGO_BIN_EXE_handoff"), &program);
    std::fs::set_permissions(rig.root.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(rig.path("tmp"), PermissionsExt::from_mode(0o777)).unwrap();
    let mut unprivileged = Command::new(program);
    unprivileged.args(whole.get_args()).uid(NOBODY).gid(NOBODY).stdin(Stdio::null());
    unprivileged.envs(whole.get_envs().filter_map(|(name, value)| Some((name, value?))));
    unprivileged
}

#[test]
fn file_capabilities_that_the_copy_has_or_would_lose_are_reported() {
    // cap_net_bind_service+ep, in the format of setcap(8).
    const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let rig = rig();
    let address = free_address();
    write_plain(&rig, "", "listen-fds", address, address);
    let program = std::fs::File::open(rig.path("plain-1")).unwrap();
    if attribute::set(program, c"security.capability", &CAPABILITY).is_err() {
        return;
    }
    // A user with the right to set capabilities also has them in the copy.
    let (said, code) = examine(&rig, "5s", &[]);
    let remarks = said["remarks"].to_string();
    assert_eq!((verdicts(&said), code), (["does-not", "works", "works"], 0), "{said:#}");
    assert!(
        remarks.contains("it has file capabilities") && !remarks.contains("the copy in the store"),
        "{remarks}"
    );

    let (said, code) = examine_by(&rig, unprivileged(&rig, &command(&rig, "5s", &[])));
    assert_eq!((verdicts(&said), code), (["does-not"; 3], 1), "{said:#}");
    let why = of(&said, "listen-fds").1;
    assert!(why.contains("its copy in the store would not have") && why.contains("store = false"), "{why}");

    let file = rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("store = false\n{text}")).unwrap();
    let (said, code) = examine_by(&rig, unprivileged(&rig, &command(&rig, "5s", &[])));
    assert_eq!((of(&said, "listen-fds").0, code), ("works", 0), "{said:#}");
    assert!(said["remarks"].to_string().contains("which inject takes away"), "{said:#}");
}

/// A namespace without the right to create networks, although its user is root. `None` without user namespaces.
fn without_networks(whole: &Command) -> Option<Command> {
    let script = "echo 0 > /proc/sys/user/max_net_namespaces && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c"]);
    let permitted = Command::new("unshare").args(["--user", "--map-root-user", "true"]).status().ok()?;
    command.arg(script).arg(whole.get_program()).args(whole.get_args());
    command.envs(whole.get_envs().filter_map(|(name, value)| Some((name, value?))));
    permitted.success().then_some(command)
}

#[test]
fn without_a_network_of_its_own_the_addresses_must_be_free() {
    let rig = rig();
    let taken = TcpListener::bind(free_address()).unwrap();
    let address = taken.local_addr().unwrap();
    write_plain(&rig, "", "inject", address, address);
    let Some(unlucky) = without_networks(&command(&rig, "5s", &[])) else { return };
    let (said, code) = examine_by(&rig, unlucky);
    assert_eq!((verdicts(&said), code), (["not-tried"; 3], 1), "{said:#}");
    let why = of(&said, "inject").1;
    assert!(why.contains("in use") && why.contains("not permitted"), "{why}");
    assert!(said["advice"].as_str().unwrap().contains("make the trial possible"), "{said:#}");

    close(taken);
    let (said, code) = examine_by(&rig, without_networks(&command(&rig, "5s", &[])).unwrap());
    assert_eq!((verdicts(&said), code), (["does-not", "works", "works"], 0), "{said:#}");
    assert_eq!(said["own_network"], false);
}

#[test]
fn a_program_that_gains_privilege_is_noticed() {
    let rig = rig();
    let address = free_address();
    write_plain(&rig, "exit-at-once", "inject", address, address);
    let program = rig.path("plain-1");
    std::fs::set_permissions(program, PermissionsExt::from_mode(0o4755)).unwrap();
    let (said, _) = examine(&rig, LONG, &[]);
    assert!(said["remarks"].to_string().contains("the setuid bit"), "{said:#}");
}

/// Slots and a watcher that do nothing.
struct Nothing;

impl ListenerProvider for Nothing {
    fn configured(&self) -> Vec<(String, ListenAddress)> {
        Vec::new()
    }

    fn current(&self, _: &str) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn path_bound(&self, _: &str, _: Access) {}

    fn path_removed(&self, _: &str, _: &Path) {}
}

impl EventSink for Nothing {
    fn record(&self, _: InjectEvent) {}
}

#[test]
fn under_another_seccomp_supervisor_inject_does_not_work_and_the_rest_is_tried() {
    let rig = rig();
    let address = free_address();
    write_plain(&rig, "", "inject", address, address);
    let whole = command(&rig, "5s", &[]);
    let said_to = rig.path("said");
    let said = std::fs::File::create(&said_to).unwrap();
    let started = start_by(
        Path::new(env!("CARGO_BIN_EXE_handoff")),
        Spec {
            binary: whole.get_program().into(),
            args: whole.get_args().map(Into::into).collect(),
            env: whole.get_envs().filter_map(|(name, value)| Some((name.into(), value?.into()))).collect(),
            working_dir: "/".into(),
            stdout: said.into(),
            stderr: io::stderr().lock().as_fd().try_clone_to_owned().unwrap(),
            listeners: Vec::new(),
            inherited: Vec::new(),
            seccomp: Some(Calls::Sockets),
            files_limit: None,
        },
    );
    let started = started.unwrap();
    let injector = Injector::new(started.notify.unwrap(), Arc::new(Nothing), Arc::new(Nothing), false);
    injector.run().unwrap();
    assert_eq!(reap_blocking(started.pidfd.as_fd()).unwrap().code, Some(1));
    let said = serde_json::from_slice(&std::fs::read(said_to).unwrap()).unwrap();
    assert_eq!(verdicts(&said), ["does-not", "works", "does-not"], "{said:#}");
    assert!(of(&said, "inject").1.contains("the kernel allows only one"), "{said:#}");
}
