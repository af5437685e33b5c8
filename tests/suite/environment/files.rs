//! Files of variables, and what is inherited.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use handoff::control::api::{Ending, Request};

use super::{PYTHON, edit, environment_of, shown, start};
use crate::support::{Rig, again, ask, free_address, service, version};

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// A file with a secret is read at each start, and its content appears nowhere else.
#[test]
fn a_file_is_read_at_each_start() {
    let rig = Rig::new();
    let file = rig.path("web.env");
    write(&file, "export SECRET='geheim-1' # a comment\nBOTH=file\n");
    let keys = format!(
        "env_file = [{file:?}, \"-{}\"]\nenv = {{ BOTH = \"table\" }}\n",
        rig.path("missing.env").display()
    );
    let address = rig.write_service("s", &rig.release("1", ""), &keys);
    let environment = environment_of(start(&rig));
    assert_eq!((environment["SECRET"].as_str(), environment["BOTH"].as_str()), ("geheim-1", "table"));

    write(&file, "SECRET=geheim-2\n");
    let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    let pid = rig.status("s").pid.unwrap();
    assert_eq!(environment_of(pid)["SECRET"], "geheim-2");

    // Without the file there is no new process, and the old one serves on.
    for (text, told) in
        [(None, "does not exist"), (Some("SECRET=geheim-3\ngeheim-4\n"), "web.env:2:1: this line has no")]
    {
        std::fs::remove_file(&file).unwrap();
        if let Some(text) = text {
            write(&file, text);
        }
        let outcome = rig.upgrade("s", &rig.release("3", "")).unwrap();
        let reason = format!("{outcome:?}");
        assert!(outcome.outcome == Ending::RolledBack && reason.contains(told), "{reason}");
        assert_eq!(rig.status("s").pid, Some(pid));
        assert_eq!(version(address), "2");
        let checked = rig.run(&["check", "s"]);
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.code() == Some(3) && said.contains(told), "{said}");
        write(&file, "");
    }
    rig.call(Request::Stop(service("s"))).unwrap();
    std::fs::remove_file(&file).unwrap();
    let error = rig.call(Request::Start(service("s"))).unwrap_err().to_string();
    assert!(error.contains("web.env\" does not exist"), "{error}");
    let shown = shown(&rig);
    assert!(shown.contains("web.env") && !shown.contains("geheim"), "a value is displayed");
}

/// A program of an adapter gets it, too, and keeps what it was started with when it has to serve again.
#[test]
fn an_unmodified_program_gets_the_variables() {
    let (rig, address) = (Rig::new(), free_address());
    let file = rig.path("web.env");
    write(&file, "SECRET=geheim\n");
    let text = format!(
        "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PYTHON:?}, \"{address}\"]\nautostart = false\nstore = false\n\
         adapter = \"inject\"\nenv_file = {file:?}\n[listen]\nmain = \"{address}\"\n"
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    let pid = start(&rig);
    assert_eq!(environment_of(pid)["SECRET"], "geheim");
    std::fs::remove_file(&file).unwrap();
    let restarted = rig.run(&["restart", "s"]);
    let said = String::from_utf8_lossy(&[restarted.stdout, restarted.stderr].concat()).into_owned();
    assert!(restarted.status.code() == Some(4) && said.contains("web.env\" does not exist"), "{said}");
    assert_eq!(ask(address, "x").unwrap(), pid.to_string());
}

/// The environment of this process decides, so the test runs in one of its own.
#[test]
fn the_file_says_what_is_inherited() {
    const VARIABLE: &str = "HANDOFF_TEST_INHERITS";
    if std::env::var_os(VARIABLE).is_none() {
        let mut command = again(the_file_says_what_is_inherited, VARIABLE, "1");
        command.env("LANG", "C").env("FOREIGN", "1").env("NOTIFY_SOCKET", "/nonexistent/notify");
        command.env("XDG_RUNTIME_DIR", "/run/x").env_remove("TZ");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let rig = Rig::new();
    rig.write_service("s", &rig.release("1", ""), "env_inherit = false\n");
    let mut pid = start(&rig);
    let names = |pid| {
        let names = environment_of(pid).into_keys().filter(|name| !name.starts_with("HANDOFF_"));
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(pid), "");
    for (from, to, expected) in [
        ("env_inherit = false", "env_inherit = [\"FOREIGN\", \"TZ\"]", "FOREIGN"),
        ("env_inherit = [\"FOREIGN\", \"TZ\"]", "env_inherit = true", "FOREIGN HOME LANG PATH"),
        ("env_inherit = true", "", "HOME LANG PATH"),
    ] {
        edit(&rig, from, to);
        rig.call(Request::Restart(service("s"))).unwrap();
        pid = rig.status("s").pid.unwrap();
        let found = names(pid);
        let has = |name: &&str| found.split(' ').any(|found| found == *name);
        assert!(expected.split(' ').all(|name| has(&name)), "{to}: {found}");
        assert!(!has(&"NOTIFY_SOCKET") && !environment_of(pid).contains_key("HANDOFF_TEST_INHERITS"), "{to}");
        assert_eq!(has(&"FOREIGN"), expected.contains("FOREIGN"), "{to}: {found}");
    }
}
