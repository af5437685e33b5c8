//! What people type who know other supervisors.

use handoff::control::api::{Request, Response, Rollback, State, Upgrade, VersionStatus};
use handoff::control::{Error, Kind};
use handoff::store::VersionKind;

use super::ending;
use super::support::{World, name, status};
use handoff::control::api::{Claims, Ending};

/// Services `s3`, which serves, and `mcp`, which is stopped.
fn two_services() -> World {
    World::with_daemon(|request, _| match request {
        Request::List => Ok(Response::List(vec![status()])),
        Request::Status(service) if service == name("s3") => Ok(Response::Status(Box::new(status()))),
        Request::Status(service) if service == name("mcp") => {
            let mut stopped = status();
            (stopped.service, stopped.state) = (service, State::Stopped);
            Ok(Response::Status(Box::new(stopped)))
        }
        Request::Status(service) => Err(Error::unknown_service(&service, ["s3"])),
        Request::Versions(_) => Ok(Response::Versions(vec![version("web 1.2.0", &[1, 4])])),
        Request::History(_) => Ok(Response::History(Vec::new())),
        other => panic!("{other:?}"),
    })
}

fn version(text: &str, generations: &[u64]) -> VersionStatus {
    VersionStatus {
        service: name("s3"),
        sha256: "ab".repeat(32),
        version: Some(text.to_owned()),
        kind: VersionKind::File,
        binary: None,
        stored: "/var/lib/handoff/x".into(),
        size_bytes: 1,
        added_at: 1,
        generations: generations.to_vec(),
        undone: false,
        current: false,
        pinned: false,
    }
}

#[test]
fn other_names_of_commands_are_these_commands() {
    let world = two_services();
    let list = world.run(&["list"]);
    assert_eq!(list.code, Some(0));
    for alias in ["ls", "ps"] {
        assert_eq!(world.run(&[alias]).stdout, list.stdout, "{alias}");
    }
    let help = world.run(&["--help"]).stdout;
    for words in ["[also: ls, ps]", "also: deploy", "\nLook:\n  list ", "\nRun:\n  daemon "] {
        assert!(help.contains(words), "{words}: {help}");
    }
    assert!(!help.contains("Commands:"), "each command is named once: {help}");
    let deploy = ending(Ending::Committed, None);
    assert_eq!(deploy.run(&["deploy", "s3", "new"]).code, Some(0));
    assert!(matches!(deploy.seen(), Request::Install(install) if install.path == deploy.path("new")));
}

#[test]
fn is_active_has_the_exit_codes_of_systemctl() {
    let world = two_services();
    let table: &[(&[&str], i32, &str)] = &[
        (&["s3"], 0, "serving\n"),
        (&["s3.service"], 0, "serving\n"),
        (&["mcp"], 3, "stopped\n"),
        (&["nope"], 4, "unknown\n"),
        (&["mcp", "s3"], 0, "stopped\nserving\n"),
        (&["-q", "mcp"], 3, ""),
        (&["--quiet", "nope"], 4, ""),
    ];
    for (arguments, code, shown) in table {
        let ran = world.run(&[&["is-active"], *arguments].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(*code), *shown), "{arguments:?}: {ran:?}");
    }
    let objects = world.run(&["is-active", "s3", "mcp", "--json"]).objects();
    assert_eq!(objects[0], serde_json::json!({"service": "s3", "state": "serving", "active": true}));
    assert_eq!(objects[1]["active"], false);
    assert_eq!(World::new().run(&["is-active", "s3"]).code, Some(2), "without a daemon it is not known");
}

#[test]
fn show_prints_the_status_the_versions_and_the_service_file() {
    let world = two_services();
    let file = world.write("etc/services/s3.toml", "binary = \"/srv/s3\" # the program\n");
    let ran = world.run(&["show", "s3"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for words in ["s3: serving", "web 1.2.0", "# the program", file.to_str().unwrap()] {
        assert!(ran.stdout.contains(words), "{words}: {ran:?}");
    }
    let shown = &world.run(&["show", "s3", "--json"]).objects()[0];
    assert_eq!(shown["status"]["state"], "serving");
    assert_eq!(shown["versions"][0]["version"], "web 1.2.0");
    assert_eq!(shown["file"]["text"], "binary = \"/srv/s3\" # the program\n");
    std::fs::remove_file(&file).unwrap();
    let shown = &world.run(&["show", "s3", "--json"]).objects()[0];
    assert!(shown["file"]["text"].is_null() && shown["file"]["error"].is_string(), "{shown}");
    assert_eq!(world.run(&["show", "nope"]).code, Some(1));
}

#[test]
fn a_word_of_another_supervisor_has_an_answer() {
    let world = World::new();
    for (word, answer) in [
        ("cat", "handoff show web"),
        ("journalctl", "handoff logs web"),
        ("up", "handoff start --all"),
        ("down", "handoff stop --all"),
        ("monit", "handoff list"),
        ("daemon-reload", "handoff reload"),
        ("scale", "a service file for each copy"),
        ("exec", "a service is a process of this machine"),
        ("resurrect", "nothing has to be saved"),
        ("upgrad", "did you mean `handoff upgrade`?"),
        ("statsu", "did you mean `handoff status`?"),
    ] {
        let ran = world.run(&[word, "web"]);
        assert_eq!(ran.code, Some(64), "{word}");
        assert!(ran.stderr.contains(answer) && !ran.stderr.contains("crash-test"), "{word}: {ran:?}");
        let error = world.run(&[word, "--json"]).objects()[0]["error"].clone();
        assert!(error["hint"].as_str().unwrap().contains(answer), "{word}: {error}");
    }
    let ran = world.run(&["xyzzy"]);
    assert!(ran.code == Some(64) && !ran.stderr.contains("tip:"), "{ran:?}");
}

#[test]
fn arguments_mean_what_they_look_like() {
    let world = ending(Ending::Committed, None);
    assert_eq!(world.run(&["upgrade", "s3.service", "./new/s3"]).code, Some(0));
    let upgrade = Upgrade {
        service: name("s3"),
        binary: Some(world.path("new/s3")),
        deadline_ms: None,
        drain_grace_ms: None,
        claims: Claims::default(),
    };
    assert_eq!(world.seen(), Request::Upgrade(upgrade));
    assert_eq!(world.run(&["upgrade", "s3", "a", "--binary", "b"]).code, Some(64));
    assert_eq!(world.run(&["upgrade", "--all", "a"]).code, Some(64));
    assert_eq!(world.run(&["rollback", "s3", "7"]).code, Some(0));
    assert_eq!(world.seen(), Request::Rollback(Rollback { service: name("s3"), generation: Some(7) }));

    let kept = World::with_daemon(|request, _| match request {
        Request::Versions(_) => Ok(Response::Versions(vec![version("web 1.2.0", &[1, 4])])),
        request => Err(Error::new(Kind::Internal, format!("{request:?}"), "")),
    });
    let ran = kept.run(&["rollback", "s3", "1.2.0"]);
    assert!(ran.stderr.contains("generation: Some(4)"), "{ran:?}");
    let ran = kept.run(&["rollback", "s3", "9.9"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("no version \"9.9\" is kept"), "{ran:?}");
    assert!(ran.stderr.contains("handoff versions s3"), "{ran:?}");
}

#[test]
fn check_takes_a_path_and_says_how_to_begin() {
    let world = World::new();
    let none = world.run(&["check"]);
    let begin = format!("write {}", world.path("etc/services/web.toml").display());
    assert!(none.code == Some(0) && none.stdout.contains(&begin), "{none:?}");

    let elsewhere = world.write("new/web.toml", "binary = \"/no/such\"\n");
    for path in ["new/web.toml", "./new/web.toml", elsewhere.to_str().unwrap()] {
        let ran = world.run(&["check", path]);
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(ran.stdout.starts_with(&format!("{}:1:10: binary:", elsewhere.display())), "{ran:?}");
    }
    let installed = world.write("etc/services/web.toml", "binary = \"/nor/this\"\n");
    let ran = world.run(&["check", "etc/services/web.toml"]);
    assert_eq!(ran.stdout, world.run(&["check", "web"]).stdout);
    assert!(ran.stdout.contains(installed.to_str().unwrap()), "{ran:?}");
    let ran = world.run(&["check", "gone/web.toml"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("gone/web.toml cannot be read"), "{ran:?}");
    let ran = world.run(&["check", "./Web.TOML"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
}

/// The directories come from variables here. They are no part of a usage.
#[test]
fn the_usage_of_a_mistake_names_no_value_of_a_variable() {
    let world = World::new();
    for arguments in [&["upgrade"][..], &["start"], &["kill"], &["nope"], &["is-active"]] {
        let ran = world.run(arguments);
        assert_eq!(ran.code, Some(64), "{ran:?}");
        assert!(ran.stderr.contains("Usage: handoff"), "{ran:?}");
        assert!(!ran.stderr.contains(world.dir.path().to_str().unwrap()), "{ran:?}");
        assert!(!ran.stderr.contains("-dir"), "{ran:?}");
    }
}
