//! `handoff install --systemd`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::{CommandOutput, World};

/// Runs the command without the directories of the world, which a unit would name.
fn install(world: &World, arguments: &[&str]) -> CommandOutput {
    let root = world.path("image");
    let mut command =
        world.command(&[&["install", "--systemd", "--root", root.to_str().unwrap()], arguments].concat());
    for name in ["HANDOFF_CONFIG_DIR", "HANDOFF_STATE_DIR", "HANDOFF_RUNTIME_DIR", "XDG_CONFIG_HOME"] {
        command.env_remove(name);
    }
    CommandOutput::of(command.env("HOME", world.path("home")).output().unwrap())
}

fn unit(world: &World) -> PathBuf {
    world.path("image/etc/systemd/system/handoff.service")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// What systemd says about a unit, where systemd is installed.
fn verify(unit: &Path) {
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(unit).output() {
        Ok(ran) => assert!(
            ran.status.success() && !String::from_utf8_lossy(&ran.stderr).contains("handoff.service:"),
            "{}: {ran:?}",
            read(unit)
        ),
        Err(error) => eprintln!("the unit is not verified: systemd-analyze does not run: {error}"),
    }
}

#[test]
fn a_unit_is_written_and_a_foreign_one_is_kept() {
    let world = World::new();
    let written = install(&world, &[]);
    assert_eq!(written.code, Some(0), "{written:?}");
    let text = read(&unit(&world));
    let program = format!("\nExecStart={} daemon\n", env!("CARGO_BIN_EXE_handoff"));
    assert!(text.contains(&program) && text.contains("\nType=notify\n"), "{text}");
    assert!(written.stdout.contains("handoff.service is written"), "{written:?}");
    verify(&unit(&world));

    let again = install(&world, &["--json"]);
    assert_eq!((again.code, &again.objects()[0]["written"]), (Some(0), &false.into()));
    // One of an earlier version of this program, which wrote other lines, is replaced.
    let printed = install(&world, &["--print"]);
    assert_eq!((printed.code, printed.stdout.as_str()), (Some(0), text.as_str()));
    assert_eq!(install(&world, &["--user-name", "root"]).code, Some(0), "the same unit");

    std::fs::write(unit(&world), text.replace("TimeoutStopSec=120", "TimeoutStopSec=300")).unwrap();
    let refused = install(&world, &[]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("was changed since") && refused.stderr.contains("--force"),
        "{refused:?}"
    );
    assert!(read(&unit(&world)).contains("TimeoutStopSec=300"));
    assert_eq!(install(&world, &["--force"]).code, Some(0));
    assert_eq!(read(&unit(&world)), text);
    let left = std::fs::read_dir(unit(&world).parent().unwrap()).unwrap().count();
    assert_eq!(left, 1, "nothing beside the unit");
}

#[test]
fn a_unit_for_another_user_and_one_of_a_user() {
    let world = World::new();
    let other = install(&world, &["--user-name", "daemon"]);
    assert_eq!(other.code, Some(0), "{other:?}");
    let text = read(&unit(&world));
    for line in ["User=daemon", "RuntimeDirectory=handoff", "StateDirectory=handoff"] {
        assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
    }
    assert!(text.contains("--runtime-dir /run/handoff\n"), "{text}");
    verify(&unit(&world));

    let own = install(&world, &["--user"]);
    assert_eq!(own.code, Some(0), "{own:?}");
    let home = world.path("home");
    let path = world
        .path("image")
        .join(home.strip_prefix("/").unwrap())
        .join(".config/systemd/user/handoff.service");
    assert!(read(&path).contains("WantedBy=default.target"));
    assert!(own.stdout.contains("loginctl enable-linger"), "{own:?}");

    for (arguments, words) in [
        (&["--user", "--user-name", "daemon"][..], "cannot be used with"),
        (&["--user-name", "a b"], "no name of a user"),
        (&["--user-name", "x\nExecStart=/bin/sh"], "no name of a user"),
    ] {
        let ran = install(&world, arguments);
        assert!(ran.code == Some(64) && ran.stderr.contains(words), "{ran:?}");
    }
    let mut command = world.command(&["install", "--systemd", "--user-name", "no-such-user-here"]);
    let unknown = CommandOutput::of(command.output().unwrap());
    assert!(unknown.code == Some(1) && unknown.stderr.contains("There is no user"), "{unknown:?}");
}

/// Directories that are not the default are those of the daemon, too. A low port needs a capability.
#[test]
fn a_unit_names_other_directories_and_what_ports_need() {
    let world = World::new();
    world.write("etc/services/web.toml", "binary = \"/srv/web\"\n[listen]\nhttp = \"127.0.0.1:80\"\n");
    let ran = world.run(&["install", "--systemd", "--print", "--user-name", "daemon"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let dirs = format!(" --config-dir {} --state-dir ", world.path("etc").display());
    assert!(ran.stdout.contains(&dirs) && !ran.stdout.contains("RuntimeDirectory"), "{ran:?}");
    let first = read(Path::new("/proc/sys/net/ipv4/ip_unprivileged_port_start"));
    let is_low = first.trim().parse::<u16>().unwrap() > 80;
    assert_eq!(ran.stdout.contains("AmbientCapabilities=CAP_NET_BIND_SERVICE"), is_low, "{ran:?}");
}
