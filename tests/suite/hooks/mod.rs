//! The examples of tools that announce a new version, unchanged, with a real daemon.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{Rig, copy_program, executable, version};

/// A service `s3` at version 1, and a directory that contains `handoff`.
fn rig() -> (Rig, SocketAddr) {
    let rig = Rig::new();
    let address = rig.serve("s3", "1", "", "store = true");
    fs::create_dir(rig.path("bin")).unwrap();
    symlink(env!("CARGO_BIN_EXE_handoff"), rig.path("bin/handoff")).unwrap();
    (rig, address)
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/hooks").join(name)
}

/// Runs a program with `handoff` in its PATH and the environment of this rig.
fn run(rig: &Rig, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Output {
    let path = format!("{}:{}", rig.path("bin").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(program);
    for (name, directory) in [("CONFIG", "config"), ("STATE", "state"), ("RUNTIME", "run")] {
        command.env(format!("HANDOFF_{name}_DIR"), rig.path(directory));
    }
    command.env("PATH", path).args(args).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

/// A copy of an example with other paths.
fn adapted(rig: &Rig, name: &str, paths: &[(&str, &Path)]) -> PathBuf {
    let mut text = fs::read_to_string(example(name)).unwrap();
    for (from, to) in paths {
        assert!(text.contains(from), "{name} does not name {from}");
        text = text.replace(from, to.to_str().unwrap());
    }
    let copy = rig.path(&name.replace('/', "-"));
    fs::write(&copy, text).unwrap();
    executable(&copy);
    copy
}

#[test]
fn a_script_after_a_download() {
    let (rig, address) = rig();
    let publish = |version: &str| {
        fs::create_dir_all(rig.path("site")).unwrap();
        copy_program(rig.release(version, ""), rig.path("site/s3"));
        // A downloaded file is not executable.
        fs::set_permissions(rig.path("site/s3"), PermissionsExt::from_mode(0o644)).unwrap();
    };
    let fetch = || {
        let url = format!("file://{}", rig.path("site/s3").display());
        run(&rig, example("fetch.sh"), &["s3", &url])
    };
    publish("2");
    let sums = Command::new("sha256sum").arg("s3").current_dir(rig.path("site")).output().unwrap();
    fs::write(rig.path("site/SHA256SUMS"), sums.stdout).unwrap();
    assert_eq!(code(&fetch()), 0);
    assert_eq!(version(address), "2");
    let again = fetch();
    assert_eq!(code(&again), 0);
    assert!(String::from_utf8_lossy(&again.stdout).contains("already"), "{again:?}");
    publish("3");
    assert_eq!(code(&fetch()), 6, "the checksum is that of version 2");
    assert_eq!(version(address), "2");
}

#[test]
fn a_tool_that_updates_itself_from_a_zip() {
    let (mut rig, address) = rig();
    fs::create_dir(rig.path("place")).unwrap();
    let target = rig.path("place/s3");
    let update = |rig: &Rig, version: &str, fault: &str| {
        let (release, zip) = (rig.release(version, fault), rig.path(&format!("{version}.zip")));
        let zipped = Command::new("zip").args(["-q", "-j"]).arg(&zip).arg(&release).status().unwrap();
        assert!(zipped.success());
        let member = release.file_name().unwrap().to_str().unwrap();
        run(rig, example("self-update.sh"), &["s3", zip.to_str().unwrap(), member, target.to_str().unwrap()])
    };
    assert_eq!(code(&update(&rig, "2", "")), 0);
    assert_eq!(version(address), "2");
    assert_eq!(code(&update(&rig, "3", "exit-after-begin")), 4);
    assert_eq!(version(address), "2");
    rig.stop_daemon().unwrap();
    let output = update(&rig, "4", "");
    assert_eq!(code(&output), 0, "without a daemon the file is in place: {output:?}");
    assert!(fs::read(&target).unwrap() == fs::read(rig.path("testee-4")).unwrap());
}

#[test]
fn the_hooks_of_package_managers() {
    let (rig, address) = rig();
    let (second, third) = (rig.release("2", ""), rig.release("3", ""));
    let postinst = adapted(&rig, "dpkg/postinst", &[("/usr/lib/s3/s3", &second)]);
    assert_eq!(code(&run(&rig, &postinst, &["triggered"])), 0);
    assert_eq!(version(address), "1");
    assert_eq!(code(&run(&rig, &postinst, &["configure"])), 0);
    assert_eq!(version(address), "2");
    fs::set_permissions(&second, PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(code(&run(&rig, &postinst, &["configure"])), 0, "a bad version does not fail the package");

    let hook = fs::read_to_string(example("pacman/s3-handoff.hook")).unwrap();
    let value = |key: &str| {
        let values: Vec<&str> =
            hook.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(" = ")).collect();
        values.join(" ")
    };
    assert_eq!(
        (value("Operation"), value("Type"), value("When")),
        ("Install Upgrade".into(), "Path".into(), "PostTransaction".into())
    );
    let exec = value("Exec").replace(&format!("/{}", value("Target")), third.to_str().unwrap());
    let words: Vec<&str> = exec.split(' ').collect();
    assert_eq!(words[0], "/usr/bin/handoff");
    assert_eq!(code(&run(&rig, rig.path("bin/handoff"), &words[1..])), 0);
    assert_eq!(version(address), "3");
}

#[test]
fn the_units_of_systemd() {
    let (rig, address) = rig();
    let handoff = rig.path("bin/handoff");
    let service = adapted(&rig, "systemd/handoff-installed@.service", &[("/usr/bin/handoff", &handoff)]);
    let path = adapted(&rig, "systemd/handoff-installed@.path", &[]);
    let units = rig.path("units");
    fs::create_dir(&units).unwrap();
    let instances = [(service, "handoff-installed@s3.service"), (path, "handoff-installed@s3.path")];
    let instances = instances.map(|(from, to)| {
        fs::rename(from, units.join(to)).unwrap();
        fs::set_permissions(units.join(to), fs::Permissions::from_mode(0o644)).unwrap();
        units.join(to)
    });
    match Command::new("systemd-analyze").arg("verify").args(&instances).output() {
        Ok(verified) => assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
    let unit = fs::read_to_string(&instances[0]).unwrap();
    let exec = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let watched = fs::read_to_string(&instances[1]).unwrap();
    let watched = watched.lines().find_map(|line| line.strip_prefix("PathChanged=")).unwrap().to_owned();
    assert!(exec.ends_with(&watched), "{exec} is for {watched}");
    let exec = exec.replace(&watched, rig.release("2", "").to_str().unwrap()).replace("%i", "s3");
    let words: Vec<&str> = exec.split(' ').collect();
    assert_eq!(code(&run(&rig, words[0], &words[1..])), 0);
    assert_eq!(version(address), "2");
}
