//! What the command says: its help, its tables, and its answers to mistakes.

use handoff::control::api::{Ending, Request, Response, VersionStatus};
use handoff::store::VersionKind;

use super::ending;
use super::support::{CommandOutput, World, name, status};

const VERBS: &[&str] = &[
    "check",
    "daemon",
    "list",
    "status",
    "show",
    "is-active",
    "events",
    "wait",
    "start",
    "stop",
    "restart",
    "reload",
    "register",
    "unregister",
    "remove",
    "destroy",
    "upgrade",
    "installed",
    "rollback",
    "cancel",
    "kill",
    "versions",
    "enable",
    "disable",
    "pin",
    "gc",
    "logs",
    "history",
    "doctor",
    "install",
    "crash-test",
    "completions",
    "man",
    "",
];

/// The help of a verb, or of the whole command for an empty one, on a terminal of this width.
fn help(world: &World, verb: &str, columns: &str) -> String {
    let arguments: Vec<&str> = [verb, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
    let ran = CommandOutput::of(world.command(&arguments).env("COLUMNS", columns).output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.stdout
}

/// The part after the options.
fn examples(help: &str) -> &str {
    let begin = ["Exit codes:\n", "Examples:\n"].iter().filter_map(|head| help.find(head)).min();
    &help[begin.unwrap_or_else(|| panic!("no examples: {help}"))..]
}

#[test]
fn no_line_of_a_help_is_wider_than_a_terminal_or_broken_twice() {
    let world = World::new();
    for verb in VERBS {
        let (narrow, wide) = (help(&world, verb, "80"), help(&world, verb, "200"));
        let long: Vec<&str> = narrow.lines().filter(|line| line.chars().count() > 80).collect();
        assert_eq!(long, [""; 0], "{verb}");
        assert_eq!(examples(&narrow), examples(&wide), "{verb}: nothing is left over from a second break");
        assert!(examples(&narrow).lines().all(|line| line.chars().count() <= 78), "{verb}: {narrow}");
    }
}

#[test]
fn json_is_an_option_as_any_other() {
    let world = World::new();
    for verb in ["upgrade", "installed"] {
        let help = help(&world, verb, "80");
        let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("{text}: {help}"));
        assert!(at("      --json") < at("Verification:"), "{help}");
    }
}

#[test]
fn help_is_a_word_too() {
    let world = World::new();
    let whole = world.run(&["help"]);
    assert_eq!((whole.code, &whole.stdout), (Some(0), &world.run(&["--help"]).stdout));
    let one = world.run(&["help", "upgrade"]);
    assert_eq!((one.code, &one.stdout), (Some(0), &world.run(&["upgrade", "--help"]).stdout));
    let none = world.run(&["help", "nope"]);
    assert_eq!(none.code, Some(64), "{none:?}");
    assert!(none.stderr.contains("nope"), "{none:?}");
}

/// A service that another command has stopped does not run, which was asked for.
#[test]
fn what_was_stopped_by_another_command_is_no_success() {
    let world = ending(Ending::Stopped, None);
    for verb in [&["start", "s3"][..], &["restart", "s3"], &["upgrade", "s3"], &["rollback", "s3"]] {
        let ran = world.run(verb);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stdout.contains("s3 is stopped"), "{ran:?}");
        assert!(
            ran.stderr.contains("Another command has stopped s3. To start it: handoff start s3"),
            "{ran:?}"
        );
        let json = world.run(&[verb, &["--json"]].concat());
        assert_eq!((json.code, json.stderr.as_str()), (Some(1), ""));
        assert_eq!(json.objects().last().unwrap()["outcome"]["outcome"], "stopped");
    }
    for verb in ["stop", "cancel"] {
        assert_eq!(world.run(&[verb, "s3"]).code, Some(0), "{verb}");
    }
}

#[test]
fn a_mistake_in_a_word_is_named_with_its_remedy() {
    let world = World::new();
    let table: &[(&[&str], &str)] = &[
        (&["upgrade", "s3", "--deadline", "5x"], "write a duration such as 30s or 5m"),
        (&["upgrade", "s3", "--drain-grace", "soon"], "write a duration such as 30s or 5m"),
        (&["doctor", "s3", "--timeout", "5"], "write a duration such as 30s or 5m"),
        (&["logs", "s3", "--tail", "x"], "\"x\" is not a number"),
        (&["upgrade", "--all", "--max-parallel", "x"], "\"x\" is not a number"),
        (&["upgrade", "--all", "--max-parallel", "33"], "33 is more than 32"),
        (&["history", "--limit", "x"], "\"x\" is not a number"),
        (&["history", "--limit", "0"], "0 is less than 1"),
        (&["history", "--limit", "99999999999999999999"], "more than can be counted"),
        (&["installed", "s3", "x", "--version", ""], "--version"),
        (&["installed", "s3", "x", "--wait", "--no-wait"], "cannot be used with"),
    ];
    for (arguments, expected) in table {
        let ran = world.run(arguments);
        assert_eq!(ran.code, Some(64), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains(expected), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn without_services_the_directory_of_their_files_is_named() {
    let world = World::with_daemon(|_, _| Ok(Response::List(Vec::new())));
    for verb in ["list", "status"] {
        let ran = world.run(&[verb]);
        let directory = world.path("etc/services");
        assert!(ran.stdout.contains("has no services"), "{ran:?}");
        assert!(ran.stdout.contains(directory.to_str().unwrap()), "{ran:?}");
    }
}

#[test]
fn what_comes_from_outside_makes_no_lines_of_its_own() {
    let mut shown = status();
    shown.binary = "/srv/a\n  problem     none\u{202e}".into();
    shown.problem = Some("It ended.\ns4: serving".to_owned());
    let world = World::with_daemon(move |request, _| match request {
        Request::List => Ok(Response::List(vec![shown.clone()])),
        _ => Ok(Response::Status(Box::new(shown.clone()))),
    });
    for verb in [&["list"][..], &["status"], &["status", "s3"]] {
        let ran = world.run(verb);
        assert!(
            !ran.stdout
                .lines()
                .any(|line| line.starts_with("s4") || line.contains(" none") && !line.contains("/srv/a")),
            "{ran:?}"
        );
        assert!(ran.stdout.contains("/srv/a\\n  problem     none\\u{202e}"), "{ran:?}");
        assert!(ran.stdout.contains("It ended.\\ns4: serving"), "{ran:?}");
    }
}

#[test]
fn a_table_without_room_is_a_list_of_names_and_values() {
    let version = |sha256: &str, name: &str| VersionStatus {
        service: name_of_service(),
        sha256: sha256.repeat(64),
        version: Some(name.to_owned()),
        kind: VersionKind::File,
        binary: Some(format!("/srv/releases/{name}/a-server-with-a-name").into()),
        stored: "/var/lib/handoff/x".into(),
        size_bytes: 4 << 20,
        added_at: 1,
        generations: vec![1, 2, 3],
        undone: false,
        current: true,
        pinned: true,
    };
    let versions = vec![version("a", "web 1.0.0"), version("b", "web 2.0.0")];
    let world = World::with_daemon(move |_, _| Ok(Response::Versions(versions.clone())));
    let at = |columns: &str| {
        let ran =
            CommandOutput::of(world.command(&["versions", "s3"]).env("COLUMNS", columns).output().unwrap());
        let limit: usize = columns.parse().unwrap();
        assert!(ran.stdout.lines().all(|line| line.chars().count() <= limit), "{ran:?}");
        ran.stdout
    };
    assert!(at("130").starts_with(" VERSION"));
    let narrow = at("60");
    assert!(narrow.starts_with("version: web 1.0.0\nsha256: aaaaaaaaaaaa\n"), "{narrow}");
    assert!(narrow.contains("\n\nversion: web 2.0.0\n"), "{narrow}");
    assert!(narrow.contains("from: /srv/releases/web 2.0.0/a-server-with-a-name"), "{narrow}");
}

fn name_of_service() -> handoff_protocol::ids::ServiceName {
    name("s3")
}
