//! The doctor tries the same files as the daemon would start: a copy in its store.

use std::path::Path;
use std::process::Command;

use super::{LONG, command, examine, examine_by, of, rig, write};
use crate::support::{Rig, executable, free_address};

/// A Python server that needs the file next to it.
fn write_script(rig: &Rig) -> std::path::PathBuf {
    let directory = rig.path("app");
    std::fs::create_dir(&directory).unwrap();
    let script = directory.join("server");
    let text = "#!/usr/bin/python3 -I\nimport os, sys\nsys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))\n\
                import beside\nbeside.serve(sys.argv[1])\n";
    std::fs::write(&script, text).unwrap();
    executable(&script);
    let beside = "import socket\ndef serve(address):\n    host, port = address.split(':')\n    \
                  listener = socket.create_server((host, int(port)))\n    while True:\n        listener.accept()[0].close()\n";
    std::fs::write(directory.join("beside.py"), beside).unwrap();
    script
}

fn write_file(rig: &Rig, binary: &Path, keys: &str, tables: &str) {
    let address = free_address();
    let keys = format!("adapter = \"inject\"\nmode = \"overlap\"\n{keys}");
    write(rig, binary, &[&address.to_string()], &keys, &address.to_string());
    let file = rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, format!("{text}{tables}")).unwrap();
}

/// The verdict on `inject`, its reason, and all remarks.
fn tried(rig: &Rig) -> (String, String, String) {
    let (said, _) = examine(rig, "5s", &[]);
    let (verdict, why) = of(&said, "inject");
    (verdict.to_owned(), why.to_owned(), said["remarks"].to_string())
}

#[test]
fn a_script_that_needs_what_lies_beside_it_works_where_it_is_and_not_as_a_copy() {
    let rig = rig();
    let script = write_script(&rig);
    write_file(&rig, &script, "", "");
    let (verdict, why, remarks) = tried(&rig);
    assert_eq!(verdict, "does-not", "{why}");
    assert!(why.contains("No module named 'beside'"), "{why}");
    assert!(remarks.contains("works where it is") && remarks.contains("store = false"), "{remarks}");

    write_file(&rig, &script, "store = false", "");
    assert_eq!(tried(&rig).0, "works");
    // A copy of the whole directory, in which one file is the program.
    write_file(&rig, &rig.path("app"), "", "[update]\nmember = \"server\"\n");
    let (verdict, why, _) = tried(&rig);
    assert_eq!(verdict, "works", "{why}");
}

#[test]
fn a_member_of_an_archive_is_tried_and_a_missing_one_is_reported() {
    let rig = rig();
    write_script(&rig);
    let archive = rig.path("app.tar.gz");
    let packed =
        Command::new("tar").arg("czf").arg(&archive).arg("-C").arg(rig.path("app")).arg(".").status();
    assert!(packed.unwrap().success());
    write_file(&rig, &archive, "", "[update]\nmember = \"server\"\ntree = true\n");
    let (verdict, why, _) = tried(&rig);
    assert_eq!(verdict, "works", "{why}");
    assert!(rig.run(&["check"]).status.success());

    write_file(&rig, &archive, "", "[update]\nmember = \"other\"\ntree = true\n");
    let (verdict, why, _) = tried(&rig);
    assert_eq!(verdict, "does-not");
    assert!(why.contains("there is no file other in it"), "{why}");
    let checked = rig.run(&["check"]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(3), "{told}");
    assert!(told.contains("binary: ") && told.contains("there is no file other in it"), "{told}");
}

/// In a mount namespace, with or without root.
#[test]
fn a_state_directory_in_which_nothing_can_be_executed_is_reported() {
    let rig = rig();
    write_file(&rig, &rig.release_of("plain", "1", ""), "", "");
    let state = rig.path("state");
    std::fs::create_dir(&state).unwrap();
    let mounted = |whole: &Command| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
        command.arg("mount -t tmpfs -o noexec none \"$HANDOFF_STATE_DIR\" && exec \"$0\" \"$@\"");
        command.arg(whole.get_program()).args(whole.get_args());
        command.envs(whole.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    };
    let permitted = mounted(rig.handoff(&["--version"]).env("HANDOFF_STATE_DIR", &state)).output();
    if !permitted.is_ok_and(|output| output.status.success()) {
        return;
    }
    let (said, code) = examine_by(&rig, mounted(&command(&rig, LONG, &[])));
    let why = of(&said, "inject").1;
    assert_eq!(code, 1, "{said:#}");
    assert!(why.contains("mounted with noexec") && why.contains("store = false"), "{why}");
    let checked = mounted(&rig.handoff(&["check"])).output().unwrap();
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(told.contains("mounted with noexec"), "{told} {checked:?}");
}
