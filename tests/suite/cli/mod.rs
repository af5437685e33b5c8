//! The real command against a fake daemon: outputs, exit codes, JSON, closed pipes.

mod habits;
mod install;
mod logs;
mod selection;
mod support;
mod words;

use std::io::Read;
use std::process::Stdio;

use crate::support::executable;
use handoff::control::api::{Claims, Ending, Request, Response, Upgrade};
use handoff::control::{Error, Kind, ProgressSink};
use support::{CommandOutput, World, name, outcome, progress, status};

/// A daemon whose every operation has this outcome.
fn ending(ending: Ending, reason: Option<&'static str>) -> World {
    World::with_daemon(move |_, sink: &ProgressSink| {
        sink.send(progress("spawn", 0, None));
        sink.send(progress("prepare", 900, Some("pid 4243 warms up")));
        Ok(Response::Outcome(Box::new(outcome(ending, reason))))
    })
}

fn refusing(error: Error) -> World {
    World::with_daemon(move |_, _| Err(error.clone()))
}

#[test]
fn an_upgrade_shows_its_phases_and_ends_with_one_sentence() {
    let world = ending(Ending::Committed, None);
    let ran = world.run(&["upgrade", "s3", "--binary", "new/s3", "--deadline", "1m", "--drain-grace", "10s"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(
        ran.stdout,
        "s3 now runs /srv/s3 (generation 2, pid 4242): upgraded in 2.1 ms, the accept gap was 600 µs.\n"
    );
    assert_eq!(ran.stderr, "     +0 µs  spawn\n   +900 µs  prepare     pid 4243 warms up\n");
    let upgrade = Upgrade {
        service: name("s3"),
        binary: Some(world.path("new/s3")),
        deadline_ms: Some(60_000),
        drain_grace_ms: Some(10_000),
        claims: Claims::default(),
    };
    assert_eq!(world.seen(), Request::Upgrade(upgrade));
}

#[test]
fn a_rollback_says_why_and_what_still_serves() {
    let world = ending(Ending::RolledBack, Some("the new process exited with status 1"));
    let ran = world.run(&["upgrade", "s3"]);
    assert_eq!(ran.code, Some(4));
    assert_eq!(
        ran.stdout,
        "s3 was rolled back after 2.1 ms: the new process exited with status 1; /srv/s3 (generation 2, pid 4242) \
         still serves.\n"
    );
    assert_eq!(world.run(&["restart", "s3"]).code, Some(4));
}

#[test]
fn json_is_one_object_a_line() {
    let world = ending(Ending::Committed, None);
    let ran = world.run(&["upgrade", "s3", "--json"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let objects = ran.objects();
    assert_eq!(objects.len(), 3);
    assert_eq!(objects[1]["progress"]["phase"], "prepare");
    assert_eq!(objects[2]["outcome"]["outcome"], "committed");
    assert_eq!(objects[2]["outcome"]["accept_gap_us"], 600);
}

#[test]
fn each_verb_asks_for_what_it_says() {
    let world = ending(Ending::Started, None);
    for (verb, request) in [
        ("start", Request::Start(name("s3"))),
        ("stop", Request::Stop(name("s3"))),
        ("restart", Request::Restart(name("s3"))),
        (
            "upgrade",
            Request::Upgrade(Upgrade {
                service: name("s3"),
                binary: None,
                deadline_ms: None,
                drain_grace_ms: None,
                claims: Claims::default(),
            }),
        ),
    ] {
        let ran = world.run(&[verb, "s3"]);
        assert_eq!((ran.code, world.seen()), (Some(0), request));
        assert!(ran.stdout.contains("started in 2.1 ms"), "{ran:?}");
    }
}

#[test]
fn a_cancel_is_done_when_the_old_version_serves_or_nothing_runs() {
    for (end, code, words) in [
        (Ending::RolledBack, 0, "rolled back after 2.1 ms: it was cancelled; /srv/s3"),
        (Ending::Stopped, 0, "s3 is stopped"),
        (Ending::Committed, 1, "s3 now runs /srv/s3"),
    ] {
        let world = ending(end, (end == Ending::RolledBack).then_some("it was cancelled"));
        let ran = world.run(&["cancel", "s3"]);
        assert_eq!((ran.code, world.seen()), (Some(code), Request::Cancel(name("s3"))));
        assert!(ran.stdout.contains(words) && ran.stderr.contains("prepare"), "{ran:?}");
        let objects = world.run(&["cancel", "s3", "--json"]).objects();
        assert_eq!(objects[2]["outcome"]["service"], "s3");
    }
}

#[test]
fn each_refusal_has_its_exit_code() {
    for (kind, code) in [
        (Kind::Busy, 5),
        (Kind::ConfigInvalid, 3),
        (Kind::NotRunning, 1),
        (Kind::NothingToCancel, 1),
        (Kind::SpawnFailed, 1),
        (Kind::Internal, 1),
        (Kind::PermissionDenied, 2),
    ] {
        let world = refusing(Error::new(kind, "It cannot be.", "Do otherwise."));
        let ran = world.run(&["upgrade", "s3"]);
        assert_eq!(ran.code, Some(code), "{kind:?}");
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", "error: It cannot be. Do otherwise.\n"));
        let objects = world.run(&["upgrade", "s3", "--json"]).objects();
        assert_eq!(objects[0]["error"]["exit"], code);
        assert_eq!(objects[0]["error"]["message"], "It cannot be.");
    }
}

#[test]
fn without_a_daemon_the_exit_code_is_2() {
    let world = World::new();
    for verb in [&["list"][..], &["status"], &["status", "s3"], &["start", "s3"], &["upgrade", "s3"]] {
        let ran = world.run(verb);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains("no such socket") && ran.stderr.contains("handoff daemon"), "{ran:?}");
    }
    assert_eq!(world.run(&["list", "--json"]).objects()[0]["error"]["kind"], "unreachable");
}

#[test]
fn a_wrong_command_line_exits_with_64() {
    let world = World::new();
    let table: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["reboot"], "reboot"),
        (&["upgrade"], "<SERVICE>"),
        (&["upgrade", "../s3"], "'.' is not allowed in a name"),
        (&["upgrade", "s3", "--deadline", "5"], "time unit needed"),
        (
            &["upgrade", "s3", "--deadline", "1m", "--drain-grace", "2m"],
            "--drain-grace (2m) is longer than --deadline (1m)",
        ),
        (&["logs", "s3", "--tail=-1"], "--tail"),
        (&["kill", "--signal=SEGV", "s3"], "HUP, INT, QUIT, USR1, USR2, WINCH, TERM, KILL"),
        (&["man", "upgrad"], "Did you mean \"upgrade\"?"),
    ];
    for (arguments, expected) in table {
        let ran = world.run(arguments);
        assert_eq!(ran.code, Some(64), "{arguments:?}");
        assert!(ran.stderr.contains(expected), "{arguments:?}: {ran:?}");
        // With `--json` the error is JSON.
        if let [verb @ ("reboot" | "upgrade" | "kill"), rest @ ..] = arguments {
            let ran = world.run(&[&[*verb, "--json"], rest].concat());
            assert_eq!(ran.code, Some(64), "{arguments:?}");
            let error = &ran.objects()[0]["error"];
            assert!(error["kind"] == "usage" && error["exit"] == 64, "{arguments:?}: {error}");
            assert!(error["message"].as_str().unwrap().contains(expected), "{arguments:?}: {error}");
        }
    }
}

#[test]
fn on_a_terminal_of_80_columns_nothing_is_wider() {
    let mut shown = status();
    shown.binary = format!("/srv/{}/s3-server", "a-long-name/".repeat(9)).into();
    shown.problem =
        Some("It cannot be used, since there is no room on the disk for what it needs. ".repeat(3));
    let world = World::with_daemon(move |request, _| match request {
        Request::List => Ok(Response::List(vec![shown.clone()])),
        _ => Ok(Response::Status(Box::new(shown.clone()))),
    });
    for verb in [&["list"][..], &["status"], &["status", "s3"]] {
        let ran = CommandOutput::of(world.command(verb).env("COLUMNS", "80").output().unwrap());
        assert!(ran.code == Some(0) && ran.stdout.lines().count() > 4, "{ran:?}");
        let wide: Vec<&str> = ran.stdout.lines().filter(|line| line.chars().count() > 80).collect();
        assert_eq!(wide, [""; 0], "{verb:?}");
    }
    let ran = CommandOutput::of(world.command(&["list"]).env_remove("COLUMNS").output().unwrap());
    assert_eq!(ran.stdout.lines().count(), 3, "without a terminal each row is a line: {ran:?}");
}

#[test]
fn a_wrong_log_filter_is_reported_before_the_daemon_starts() {
    let world = World::new();
    let ran =
        CommandOutput::of(world.command(&["daemon"]).env("HANDOFF_LOG", "handoff=loud").output().unwrap());
    assert_eq!(ran.code, Some(64));
    assert!(ran.stderr.contains("HANDOFF_LOG is \"handoff=loud\""), "{ran:?}");
}

#[test]
fn list_and_status() {
    let world = World::with_daemon(|request, _| match request {
        Request::List => Ok(Response::List(vec![status()])),
        Request::Status(service) if service == name("s3") => Ok(Response::Status(Box::new(status()))),
        Request::Status(service) => Err(Error::unknown_service(&service, ["s3"])),
        other => panic!("{other:?}"),
    });
    let list = world.run(&["list"]);
    assert_eq!(list.code, Some(0));
    let rows: Vec<Vec<&str>> = list.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["SERVICE", "STATE", "GENERATION", "PID", "UP", "LISTENS", "BINARY"]);
    assert_eq!((&rows[1][..4], rows[1].last()), (&["s3", "serving", "2", "4242"][..], Some(&"/srv/s3")));
    assert!(!list.stdout.contains('\x1b'), "no colours without a terminal");

    let one = world.run(&["status", "s3"]);
    assert_eq!(one.code, Some(0));
    for expected in [
        "s3: serving",
        "The binary was replaced.",
        "(sha256 abababababab)",
        "http = 127.0.0.1:9000",
        "exclusive",
        "rolled back after 2.1 ms: the new process exited with status 1",
    ] {
        assert!(one.stdout.contains(expected), "{expected} in {}", one.stdout);
    }
    assert_eq!(world.run(&["status"]).stdout, one.stdout, "there is only this one");
    assert_eq!(world.run(&["status", "s3", "--json"]).objects()[0]["state"], "serving");
    assert_eq!(world.run(&["status", "--json"]).objects()[0]["services"][0]["restarts"], 1);
    assert_eq!(world.run(&["list", "--json"]).objects()[0]["services"][0]["pid"], 4242);

    let unknown = world.run(&["status", "s4"]);
    assert_eq!(unknown.code, Some(1));
    assert_eq!(unknown.stderr, "error: There is no service \"s4\". Did you mean \"s3\"?\n");
}

#[test]
fn check_finds_mistakes_without_a_daemon() {
    let world = World::new();
    let none = world.run(&["check"]);
    assert_eq!(none.code, Some(0));
    assert!(none.stdout.contains("no service files"), "{none:?}");

    let binary = world.write("server", "#!/bin/sh\n");
    let file = world.write("etc/services/s3.toml", &format!("\nbinary = {binary:?}\n"));
    let not_executable = world.run(&["check"]);
    assert_eq!(not_executable.code, Some(3));
    let expected =
        format!("{}:2:10: binary: {binary:?} is not executable for this user; run: chmod", file.display());
    assert!(not_executable.stdout.contains(&expected), "{not_executable:?}");

    executable(&binary);
    let bad = world.write("etc/services/bad.toml", "binary = \"/no/such\"\nworking_dir = \"/nor/this\"\n");
    let typo = world.write("etc/services/typo.toml", "binary = \"/b\"\nleas = \"5s\"\n");
    let all = world.run(&["check"]);
    assert_eq!(all.code, Some(3));
    let lines: Vec<&str> = all.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert_eq!(lines[0], format!("{}: ok", file.display()));
    assert!(lines[1].starts_with(&format!("{}:1:10: binary: \"/no/such\" does not exist;", bad.display())));
    assert!(lines[2].starts_with(&format!("{}:2:15: working_dir: \"/nor/this\" is not a", bad.display())));
    assert_eq!(lines[3], format!("{}:2:1: leas: unknown key; did you mean \"lease\"?", typo.display()));

    assert_eq!(world.run(&["check", "s3"]).code, Some(0), "other files do not matter");
    for (content, cause) in [
        ("#!/bin/sh\r\n", "its #! line ends with a carriage return; convert the file (sed -i 's/\\r$//')"),
        ("echo begins\n", "it is not a program"),
    ] {
        let program = world.write("in-place", content);
        executable(&program);
        for store in [true, false] {
            world.write("etc/services/in-place.toml", &format!("binary = {program:?}\nstore = {store}\n"));
            let refused = world.run(&["check", "in-place"]);
            assert_eq!(refused.code, Some(3), "store = {store}: {refused:?}");
            assert!(refused.stdout.contains(cause), "store = {store}: {refused:?}");
        }
    }
    std::fs::remove_file(world.path("etc/services/in-place.toml")).unwrap();
    let unknown = world.run(&["check", "s33"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("Did you mean \"s3\"?"), "{unknown:?}");

    let objects = world.run(&["check", "--json"]).objects();
    assert_eq!(objects[0]["valid"][0], "s3");
    assert_eq!(
        (&objects[0]["errors"][2]["line"], &objects[0]["errors"][2]["column"]),
        (&2.into(), &1.into())
    );
}

#[test]
fn a_reader_that_leaves_changes_neither_the_upgrade_nor_its_exit_code() {
    let world = ending(Ending::RolledBack, Some("it was bad"));
    for arguments in [&["upgrade", "s3"][..], &["upgrade", "s3", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let errors = writer.try_clone().unwrap();
        let status = world.command(arguments).stdout(writer).stderr(errors).status().unwrap();
        assert_eq!(status.code(), Some(4), "{arguments:?}");
    }
}

#[test]
fn a_full_disk_is_reported() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let world = ending(Ending::Committed, None);
    let ran = CommandOutput::of(world.command(&["upgrade", "s3"]).stdout(full()).output().unwrap());
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("Standard output cannot be written: No space left"), "{ran:?}");
}

#[test]
fn help_completions_and_manual_pages_need_nothing() {
    let world = World::new();
    let bare = |arguments: &[&str]| {
        let mut command = world.command(arguments);
        command.env_clear();
        CommandOutput::of(command.output().unwrap())
    };
    let verbs = [
        "check",
        "list",
        "status",
        "start",
        "stop",
        "restart",
        "upgrade",
        "cancel",
        "logs",
        "crash-test",
        "completions",
        "man",
    ];
    let help = bare(&["--help"]);
    assert_eq!(help.code, Some(0));
    assert!(help.stdout.contains("Exit codes:\n  0   done"), "{help:?}");
    for verb in verbs {
        assert!(help.stdout.contains(&format!("\n  {verb} ")), "{verb}");
        let of_verb = bare(&[verb, "--help"]);
        assert!(of_verb.code == Some(0) && of_verb.stdout.contains("Examples:\n  handoff "), "{of_verb:?}");
        let page = bare(&["man", verb]);
        assert!(page.stdout.contains(&format!(".TH handoff-{verb} 1")), "{page:?}");
    }
    assert!(bare(&["man"]).stdout.contains("busy with another operation"));
    for shell in ["bash", "zsh", "fish", "elvish"] {
        let script = bare(&["completions", shell]);
        assert!(script.code == Some(0) && script.stdout.contains("upgrade"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_ends_long_output_quietly() {
    let world = World::new();
    world.write("var/services/s3/log/current", &"a line of the log\n".repeat(100_000));
    for arguments in
        [&["logs", "s3"][..], &["logs", "s3", "--json"], &["logs", "s3", "-f", "--tail", "100000"]]
    {
        let mut command = world.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut some = [0; 10];
        child.stdout.take().unwrap().read_exact(&mut some).unwrap();
        let ran = CommandOutput::of(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
}
