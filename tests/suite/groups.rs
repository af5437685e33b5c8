//! The groups whose members may use the control socket, with real processes of other users.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Output};

use handoff::control::api::{Request, State};
use handoff::sys::user::effective_user;

use crate::support::{Rig, copy_program, service, wait_for};

const USER: u32 = 54_321;
const OPERATE: u32 = 54_401;
const READ: u32 = 54_402;
const OTHER: u32 = 54_403;

/// A service `web` under a daemon with these settings, and a copy of `handoff` that other users can run. `None` without
/// root, which alone can be another user.
fn rig(settings: &str) -> Option<Rig> {
    if effective_user() != 0 {
        eprintln!("not run: it needs root to run commands as another user");
        return None;
    }
    let mut rig = Rig::new();
    rig.stop_daemon();
    std::fs::write(rig.path("config/handoff.toml"), settings).unwrap();
    rig.write_service("web", &rig.release("1", ""), "");
    copy_program(env!("CARGO_BIN_EXE_handoff"), rig.path("handoff"));
    std::fs::set_permissions(rig.root.path(), PermissionsExt::from_mode(0o755)).unwrap();
    rig.start_daemon();
    Some(rig)
}

/// Runs `handoff` as a user with this primary group and these other groups.
fn run_as(rig: &Rig, group: u32, groups: &[u32], arguments: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={USER}")).arg(format!("--regid={group}"));
    match groups {
        [] => command.arg("--clear-groups"),
        groups => {
            let list: Vec<String> = groups.iter().map(u32::to_string).collect();
            command.arg(format!("--groups={}", list.join(",")))
        }
    };
    command.arg(rig.path("handoff")).args(arguments).current_dir("/");
    for (name, directory) in [("CONFIG", "config"), ("STATE", "state"), ("RUNTIME", "run")] {
        command.env(format!("HANDOFF_{name}_DIR"), rig.path(directory));
    }
    command.output().expect("setpriv runs")
}

#[track_caller]
fn ends(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{said}");
}

fn socket_mode(rig: &Rig) -> (u32, u32) {
    let found = std::fs::metadata(rig.path("run/control.sock")).unwrap();
    (found.mode() & 0o7777, found.gid())
}

#[test]
fn members_of_one_group_operate_and_those_of_another_look() {
    let Some(rig) = rig(&format!("[daemon]\ngroup = \"{OPERATE}\"\nread_group = \"{READ}\"\n")) else {
        return;
    };
    // By the primary group, and by another one among several.
    ends(&run_as(&rig, READ, &[], &["list"]), 0, "web");
    ends(&run_as(&rig, OTHER, &[OTHER, READ], &["status", "web"]), 0, "web: stopped");
    ends(&run_as(&rig, OTHER, &[READ], &["versions", "web"]), 0, "");
    ends(&run_as(&rig, OTHER, &[READ], &["history"]), 0, "");
    for verb in
        [&["start", "web"][..], &["stop", "web"], &["upgrade", "web"], &["kill", "-s", "HUP", "web"], &["gc"]]
    {
        ends(
            &run_as(&rig, READ, &[], verb),
            2,
            "may look at the services of this daemon, and not operate them",
        );
    }
    assert_eq!(rig.status("web").state, State::Stopped, "nothing was done");

    ends(&run_as(&rig, OTHER, &[READ, OPERATE], &["start", "web"]), 0, "web");
    let release = rig.release("2", "");
    ends(&run_as(&rig, OPERATE, &[], &["upgrade", "web", release.to_str().unwrap()]), 0, "upgraded in");
    assert_eq!(rig.status("web").generation.0, 2);
    for verb in [&["list"][..], &["start", "web"]] {
        ends(&run_as(&rig, OTHER, &[OTHER], verb), 2, "User 54321 may not control this daemon");
    }
    ends(&run_as(&rig, OPERATE, &[], &["stop", "web"]), 0, "stopped");
}

#[test]
fn with_one_group_the_kernel_lets_no_one_else_connect() {
    let Some(rig) = rig(&format!("[daemon]\ngroup = \"{OPERATE}\"\n")) else { return };
    assert_eq!(socket_mode(&rig), (0o660, OPERATE));
    ends(&run_as(&rig, OTHER, &[OPERATE], &["start", "web"]), 0, "web");
    ends(&run_as(&rig, OTHER, &[READ], &["list"]), 2, "permission denied");
    // The socket comes back with its group.
    std::fs::remove_file(rig.path("run/control.sock")).unwrap();
    wait_for("the socket with its group", || {
        std::fs::metadata(rig.path("run/control.sock")).is_ok_and(|it| it.gid() == OPERATE).then_some(())
    });
    ends(&run_as(&rig, OTHER, &[OPERATE], &["list"]), 0, "web");
}

/// A mistake in the settings lets no one in, and the daemon serves.
#[test]
fn a_mistake_in_the_settings_opens_nothing() {
    let Some(mut rig) = rig("[daemon]\ngroup = \"no-such-group-here\"\n") else { return };
    assert_eq!(socket_mode(&rig), (0o600, 0));
    ends(&run_as(&rig, OTHER, &[OPERATE], &["list"]), 2, "permission denied");
    rig.call(Request::Start(service("web"))).unwrap();
    let log = rig.daemon_log();
    assert!(log.contains("handoff.toml:2:9: daemon.group: /etc/group has no group"), "{log}");
    ends(&rig.run(&["check"]), 3, "handoff.toml:2:9: daemon.group");
    // A file that others can write gives no right.
    let settings = rig.path("config/handoff.toml");
    std::fs::write(&settings, format!("[daemon]\ngroup = \"{OPERATE}\"\n")).unwrap();
    std::fs::set_permissions(&settings, PermissionsExt::from_mode(0o666)).unwrap();
    rig.stop_daemon();
    rig.start_daemon();
    assert_eq!(socket_mode(&rig), (0o600, 0), "{}", rig.daemon_log());
}
