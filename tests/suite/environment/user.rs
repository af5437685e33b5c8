//! The user, the limits and the capabilities of a program.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use handoff::control::api::{Ending, Request};

use super::{PYTHON, edit, environment_of, kill_daemon, open_rig, start, status_field};
use crate::support::{Rig, ask, copy_program, free_address, kill, service, version, wait_for};

/// The user `nobody`.
const USER: u32 = 65_534;
/// cap_net_bind_service, and that and cap_kill.
const AMBIENT: &str = "0000000000000400";
const BOUNDING: &str = "0000000000000420";

const KEYS: &str = "user = \"65534\"\ngroup = \"12\"\nsupplementary_groups = [\"20\", \"21\"]\numask = \"0027\"\nnice = 5\nno_new_privs = true\n";
const TABLES: &str = "[limits]\nnofile = \"256:512\"\ncore = 0\n\
    [capabilities]\nambient = [\"net_bind_service\"]\nbounding = [\"CAP_KILL\", \"net_bind_service\"]\n";

/// All that [`KEYS`] and [`TABLES`] say.
fn has_all(pid: u32) {
    let field = |name| status_field(pid, name);
    assert_eq!(field("Uid"), "65534 65534 65534 65534");
    assert_eq!(field("Gid"), "12 12 12 12");
    let groups = field("Groups");
    assert!(["20", "21"].iter().all(|group| groups.split(' ').any(|found| found == *group)), "{groups}");
    assert!(!groups.split(' ').any(|group| group == "0"), "{groups}");
    assert_eq!((field("Umask").as_str(), field("NoNewPrivs").as_str()), ("0027", "1"));
    assert_eq!((field("CapAmb").as_str(), field("CapEff").as_str()), (AMBIENT, AMBIENT));
    assert_eq!(field("CapBnd"), BOUNDING);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(limit("Max open files").split_whitespace().skip(3).take(2).eq(["256", "512"]), "{limits}");
    assert!(limit("Max core file size").split_whitespace().skip(4).take(2).eq(["0", "0"]), "{limits}");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let nice = stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().to_owned();
    assert_eq!(nice, "5");
}

/// The shim reads the memory of the program, and keeps its own user.
#[test]
fn an_unmodified_program_has_what_the_file_says_and_so_has_the_next() {
    for (adapter, mode) in [("inject", "exclusive"), ("inject", "overlap")] {
        let Some(mut rig) = open_rig() else { return };
        let address = free_address();
        let text = format!(
            "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PYTHON:?}, \"{address}\"]\nautostart = false\nstore = false\n\
             adapter = \"{adapter}\"\nmode = \"{mode}\"\n{KEYS}{TABLES}[listen]\nmain = \"{address}\"\n"
        );
        fs::write(rig.path("config/services/s.toml"), text).unwrap();
        let pid = start(&rig);
        has_all(pid);
        assert_eq!(ask(address, "x").unwrap(), pid.to_string());
        assert_eq!(status_field(rig.status("s").shim.unwrap(), "Uid"), "0 0 0 0");
        let copy = rig.path("python3");
        copy_program("/usr/bin/python3", &copy);
        let outcome = rig.upgrade("s", &copy).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
        let next = rig.status("s").pid.unwrap();
        assert_ne!(next, pid);
        has_all(next);
        // The kernel ends the program with its shim, although the program has changed its user. No daemon helps.
        let shim = rig.status("s").shim.unwrap();
        kill_daemon(&mut rig);
        kill(shim);
        wait_for("the end of the program", || (!fs::exists(format!("/proc/{next}")).unwrap()).then_some(()));
    }
}

/// It runs a copy from the store, and waits for another daemon at a socket of its own.
#[test]
fn a_server_with_the_library_has_it_and_is_taken_over() {
    let Some(mut rig) = open_rig() else { return };
    chown(rig.path("data"), Some(USER), None).unwrap();
    let address = rig.write_service("s", &rig.release("1", ""), &format!("store = true\n{KEYS}{TABLES}"));
    let pid = start(&rig);
    has_all(pid);
    assert_eq!(version(address), "1");
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let account = accounts.lines().find(|line| line.split(':').nth(2) == Some("65534"));
    let account: Vec<&str> = account.expect("an account").split(':').collect();
    let environment = environment_of(pid);
    assert_eq!((environment["USER"].as_str(), environment["HOME"].as_str()), (account[0], account[5]));
    kill_daemon(&mut rig);
    rig.start_daemon();
    assert_eq!(rig.settled("s").pid, Some(pid), "another process serves");
    let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert_eq!(version(address), "2");
    has_all(rig.status("s").pid.unwrap());
    rig.call(Request::Stop(service("s"))).unwrap();
    nothing_is_left(&rig);
}

fn nothing_is_left(rig: &Rig) {
    for directory in ["run/processes", "run/adopt"] {
        wait_for("the end of the files of a process", || {
            let left = fs::read_dir(rig.path(directory)).into_iter().flatten().count();
            (left == 0).then_some(())
        });
    }
}

#[test]
fn what_cannot_be_given_is_refused_and_the_old_process_serves_on() {
    let Some(rig) = open_rig() else { return };
    chown(rig.path("data"), Some(USER), None).unwrap();
    let address = rig.write_service("s", &rig.release("1", ""), "user = \"65534\"\ngroup = \"65534\"\n");
    let pid = start(&rig);
    let refused = |told: &str| {
        let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
        let reason = format!("{outcome:?}");
        assert!(outcome.outcome == Ending::RolledBack && reason.contains(told), "{reason}");
        assert_eq!((rig.status("s").pid, version(address).as_str()), (Some(pid), "1"));
    };
    edit(&rig, "user = \"65534\"", "user = \"no-such-user\"");
    refused("/etc/passwd has no user");
    let checked = rig.run(&["check", "s"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.code() == Some(3) && said.contains("user: /etc/passwd has no user"), "{said}");
    edit(&rig, "user = \"no-such-user\"", "user = \"65534\"");
    fs::set_permissions(rig.root.path(), PermissionsExt::from_mode(0o700)).unwrap();
    refused("does not let this user pass");
    assert_eq!(rig.run(&["check", "s"]).status.code(), Some(0));
    nothing_but_one_is_left(&rig);
}

/// A start that failed leaves nothing behind.
fn nothing_but_one_is_left(rig: &Rig) {
    wait_for("the end of the files of failed starts", || {
        (fs::read_dir(rig.path("run/processes")).unwrap().count() == 1).then_some(())
    });
}

#[test]
fn a_program_has_a_tmp_of_its_own() {
    let Some(rig) = open_rig() else { return };
    let address = free_address();
    let text = format!(
        "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PYTHON:?}, \"{address}\"]\nautostart = false\nstore = false\n\
         adapter = \"inject\"\nprivate_tmp = true\n[listen]\nmain = \"{address}\"\n"
    );
    fs::write(rig.path("config/services/s.toml"), text).unwrap();
    let pid = start(&rig);
    let of_program = |place: &str| fs::read_dir(format!("/proc/{pid}/root{place}")).unwrap().count();
    assert_eq!((of_program("/tmp"), of_program("/var/tmp")), (0, 0));
    assert!(rig.root.path().starts_with("/tmp") || std::env::var_os("TMPDIR").is_some());
    assert!(rig.path("run").exists());
    assert_eq!(ask(address, "x").unwrap(), pid.to_string());
}

/// These paths would not be there for the program.
#[test]
fn what_a_private_tmp_hides_is_a_mistake() {
    let Some(rig) = open_rig() else { return };
    let text = "binary = \"/bin/true\"\nstore = false\nworking_dir = \"/var/tmp\"\nprivate_tmp = true\n";
    fs::write(rig.path("config/services/s.toml"), text).unwrap();
    let checked = rig.run(&["check", "s"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.code() == Some(3), "{said}");
    assert!(said.contains("s.toml:3:15: working_dir: \"/var/tmp\" is below /var/tmp"), "{said}");
}
