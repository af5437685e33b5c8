//! Reports about service files before any of their programs run.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use handoff::control::api::Request;

use super::{at_all, say, write};
use crate::support::{Rig, executable, free_address, service};

#[test]
fn check_finds_addresses_that_a_wildcard_takes_and_names_both_services_and_places() {
    let rig = Rig::new();
    let (binary, one) = (rig.release("1", ""), free_address());
    for wildcard in [at_all(one), format!("*:{}", one.port())] {
        write(&rig, "a", &binary, &one.to_string(), "");
        write(&rig, "b", &binary, &wildcard, "");
        let said = say(&rig, &["check"]);
        assert_eq!(said.code, Some(3), "{said:?}");
        let expected = format!(
            "b.toml:7:8: listen.main: {wildcard} is already taken by listen.main ({one}) of service a in"
        );
        assert!(said.stdout.contains(&expected) && said.stdout.contains("a.toml:7:8"), "{said:?}");
    }
    write(&rig, "b", &binary, &format!("[::]:{}", one.port()), "");
    assert_eq!(say(&rig, &["check"]).code, Some(0), "IPv6 alone takes nothing from IPv4");
    write(&rig, "a", &binary, &format!("[::1]:{}", one.port()), "");
    assert_eq!(say(&rig, &["check"]).code, Some(3));
}

#[test]
fn a_service_is_not_started_at_an_address_that_a_wildcard_of_another_one_takes() {
    let rig = Rig::new();
    let address = rig.serve("a", "1", "", "");
    write(&rig, "b", &rig.release("2", ""), &at_all(address), "");
    let said = say(&rig, &["start", "b"]);
    assert_eq!(said.code, Some(3), "{said:?}");
    for expected in
        ["of service \"b\"", "b.toml:7:8", "an address of \"a\" too", "a.toml:", &address.to_string()]
    {
        assert!(said.stderr.contains(expected), "{expected}: {said:?}");
    }
    let problem = rig.status("b").problem.unwrap();
    assert!(problem.contains("an address of \"a\" too"), "{problem}");
}

/// A program can bind an address that its service file does not name.
#[test]
fn the_service_whose_program_has_an_address_is_named_and_not_the_daemon() {
    let rig = Rig::new();
    let (given, own) = (free_address(), free_address());
    let script = rig.path("server");
    let text = format!(
        "#!/usr/bin/python3 -I\nimport socket\nown = socket.create_server((\"127.0.0.1\", {}))\n\
         given = socket.socket(fileno=3)\nwhile True:\n    given.accept()[0].close()\n",
        own.port()
    );
    fs::write(&script, text).unwrap();
    executable(&script);
    write(&rig, "a", &script, &given.to_string(), "adapter = \"listen-fds\"");
    rig.call(Request::Start(service("a"))).unwrap();
    // The end of this connection without an answer shows that the program has bound its own address.
    crate::support::ask(given, "x").unwrap_err();
    write(&rig, "b", &rig.release("2", ""), &own.to_string(), "");
    let said = say(&rig, &["start", "b"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains(&format!("{own} is in use by service \"a\"")), "{said:?}");
    assert!(said.stderr.contains("handoff stop a"), "{said:?}");
}

#[test]
fn of_another_daemon_its_service_is_to_be_stopped_and_not_the_daemon() {
    let (rig, other) = (Rig::new(), Rig::new());
    let address = other.serve("a", "1", "", "");
    write(&rig, "b", &rig.release("2", ""), &address.to_string(), "");
    let said = say(&rig, &["start", "b"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let expected = "(handoff), which holds it for a service; stop that service or choose another address";
    assert!(said.stderr.contains(expected), "{said:?}");
}

#[test]
fn check_looks_through_a_directory_as_the_start_does() {
    let rig = Rig::new();
    let (directory, address) = (rig.path("app"), free_address());
    fs::create_dir_all(directory.join("bin")).unwrap();
    let program = directory.join("bin/server");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    fs::write(directory.join("readme"), "text").unwrap();
    executable(&program);
    let written = |update: &str| {
        let text =
            format!("binary = {directory:?}\nautostart = false\n{update}[listen]\nmain = \"{address}\"\n");
        fs::write(rig.path("config/services/s.toml"), text).unwrap();
    };
    let member = |name: &str| format!("[update]\nmember = \"{name}\"\n");
    let refused = |update: &str, cause: &str| {
        written(update);
        let (checked, started) = (say(&rig, &["check"]), say(&rig, &["start", "s"]));
        assert_eq!(checked.code, Some(3), "{checked:?}");
        assert!(
            checked.stdout.contains("s.toml:1:10: binary: ") && checked.stdout.contains(cause),
            "{checked:?}"
        );
        assert!(started.stderr.contains(cause), "the start says the same: {started:?}");
    };
    refused("", "which file of this directory is started is not known");
    refused(&member("bin/other"), "there is no file bin/other in it");
    refused(&member("readme"), "readme in it has no execute bit");
    std::os::unix::fs::symlink("/etc/passwd", directory.join("outside")).unwrap();
    refused(&member("bin/server"), "it is a link to /etc/passwd, out of the tree");
    fs::remove_file(directory.join("outside")).unwrap();
    fs::set_permissions(directory.join("readme"), fs::Permissions::from_mode(0o666)).unwrap();
    refused(&member("bin/server"), "is world-writable");
    fs::set_permissions(directory.join("readme"), fs::Permissions::from_mode(0o644)).unwrap();
    written(&member("bin/server"));
    assert_eq!(say(&rig, &["check"]).code, Some(0));
}

#[test]
fn check_names_a_check_or_counter_that_cannot_run() {
    let rig = Rig::new();
    let (binary, address, missing) = (rig.release("1", ""), free_address(), rig.path("no/such/program"));
    for (key, table) in [
        ("probe.exec", format!("[probe]\nexec = [{missing:?}]\n")),
        ("probation.errors", format!("[probation]\ntime = \"1s\"\nerrors = [{missing:?}]\n")),
    ] {
        let text = format!("binary = {binary:?}\nautostart = false\n{table}[listen]\nmain = \"{address}\"\n");
        fs::write(rig.path("config/services/s.toml"), text).unwrap();
        let said = say(&rig, &["check"]);
        assert_eq!(said.code, Some(3), "{said:?}");
        let place = format!("s.toml:3:1: {key}: ");
        assert!(said.stdout.contains(&place) && said.stdout.contains("no/such/program"), "{said:?}");
    }
}
