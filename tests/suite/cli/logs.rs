//! `handoff logs`, which reads the log files itself.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::support::{CommandOutput, World};
use handoff::sys::path::make_fifo;

/// The limit for every wait.
const BOUND: Duration = Duration::from_secs(20);

fn world() -> World {
    let world = World::new();
    world.write("etc/services/s3.toml", "binary = \"/b\"\n");
    world
}

fn log(world: &World, file: &str, text: &str) {
    world.write(&format!("var/services/s3/log/{file}"), text);
}

fn append(world: &World, text: &str) {
    let path = world.path("var/services/s3/log/current");
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Rotates the log as the keeper does when `current` is full: `keep` older files remain.
fn rotate(world: &World, keep: u32) {
    let at = |name: &str| world.path("var/services/s3/log").join(name);
    for number in (1..keep).rev().filter(|number| at(&number.to_string()).exists()) {
        std::fs::rename(at(&number.to_string()), at(&(number + 1).to_string())).unwrap();
    }
    std::fs::rename(at("current"), at("1")).unwrap();
}

/// A following command, and its lines as they arrive.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn start(world: &World, arguments: &[&str]) -> Following {
        let mut child = world.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let stdout: ChildStdout = child.stdout.take().unwrap();
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Following { child, lines }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(BOUND).expect("a line in time")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn all_files_are_printed_oldest_first() {
    let world = world();
    let nothing = world.run(&["logs", "s3"]);
    assert_eq!((nothing.code, nothing.stdout.as_str()), (Some(0), ""));
    assert!(nothing.stderr.contains("has written nothing yet"), "{nothing:?}");

    log(&world, "2", "a\nb\n");
    log(&world, "1", "c\n");
    log(&world, "current", "d\nno newline");
    assert_eq!(world.run(&["logs", "s3"]).stdout, "a\nb\nc\nd\nno newline\n");
    assert_eq!(world.run(&["logs", "s3", "--tail", "1"]).stdout, "no newline\n");
    assert_eq!(world.run(&["logs", "s3", "--tail", "4"]).stdout, "b\nc\nd\nno newline\n");
    assert_eq!(world.run(&["logs", "s3", "--tail", "0"]).stdout, "");
    assert_eq!(world.run(&["logs", "s3", "--tail", "99"]).stdout, "a\nb\nc\nd\nno newline\n");
}

#[test]
fn json_has_a_line_each_even_if_it_is_not_text() {
    let world = world();
    let path = world.write("var/services/s3/log/current", "");
    std::fs::write(path, b"plain\n\"quoted\"\n\xff\xfe\nend").unwrap();
    let objects = world.run(&["logs", "s3", "--json"]).objects();
    let lines: Vec<&str> = objects.iter().map(|object| object["line"].as_str().unwrap()).collect();
    assert_eq!(lines, ["plain", "\"quoted\"", "\u{fffd}\u{fffd}", "end"]);
    assert_eq!(objects[0]["service"], "s3");
}

/// A line as the keeper writes it.
fn line(time: &str, service: &str, stream: &str, text: &str) -> String {
    format!("2026-12-01T{time}Z {service} 3 4711 {stream} | {text}\n")
}

/// Two services with labelled lines, the first after lines of an older version.
fn two_services() -> World {
    let world = world();
    world.write("etc/services/web.toml", "binary = \"/b\"\n");
    let s3 = [line("10:00:01.000", "s3", "out", "a"), line("10:00:03.000", "s3", "err", "b")].concat();
    log(&world, "1", &format!("old\n{s3}"));
    log(&world, "current", &line("10:00:05.000", "s3", "out", "c"));
    let web = [line("10:00:02.000", "web", "out", "d"), line("10:00:04.000", "web", "out", "e")].concat();
    world.write("var/services/web/log/current", &web);
    world
}

#[test]
fn several_logs_are_one_in_the_order_of_time() {
    let world = two_services();
    let text = |arguments: &[&str]| {
        let ran = world.run(&[&["logs", "--text"], arguments].concat());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        ran.stdout.replace('\n', "")
    };
    for (arguments, expected) in [
        (&[][..], "oldadbec"),
        (&["s*", "web"], "oldadbec"),
        (&["web", "s3", "-n", "3"], "bec"),
        (&["web"], "de"),
        (&["*", "--since", "2026-12-01T10:00:03Z"], "bec"),
        (&["--until", "2026-12-01T10:00:03Z"], "ad"),
        (&["--stream", "err"], "b"),
        (&["--stream", "out", "-n", "2"], "ec"),
        (&["--grep", "^[abe]$", "--lines", "2"], "be"),
        (&["--grep", "4711"], ""),
        (&["--since", "2026-12-01T10:00:02Z", "--until", "2026-12-01T10:00:05Z", "--grep", "[^b]"], "de"),
    ] {
        assert_eq!(text(arguments), expected, "{arguments:?}");
    }
    let all = world.run(&["logs"]).stdout;
    assert!(all.starts_with("- s3 - - - | old\n2026-12-01T10:00:01.000Z s3 3 4711 out | a\n"), "{all}");
    assert!(!all.contains('\x1b'), "no colours in a pipe");
    let objects = world.run(&["logs", "web", "--json", "-n", "1"]).objects();
    let expected = r#"{"service":"web","time":"2026-12-01T10:00:04.000Z","generation":3,"pid":4711,"stream":"out","line":"e"}"#;
    assert_eq!(objects, [serde_json::from_str::<serde_json::Value>(expected).unwrap()]);
}

#[test]
fn several_logs_are_followed_together_also_one_that_begins_later() {
    let world = two_services();
    world.write("etc/services/late.toml", "binary = \"/b\"\n");
    let following = Following::start(&world, &["logs", "-f", "-n", "1", "--text"]);
    assert_eq!(following.next(), "c");
    append(&world, &line("10:00:06.000", "s3", "out", "s3 goes on"));
    assert_eq!(following.next(), "s3 goes on");
    world.write("var/services/late/log/current", &line("10:00:07.000", "late", "out", "late"));
    assert_eq!(following.next(), "late");
    // Its directory is removed, and made again by the next line.
    std::fs::remove_dir_all(world.path("var/services/s3/log")).unwrap();
    log(&world, "current", &line("10:00:08.000", "s3", "out", "s3 begins again"));
    assert_eq!(following.next(), "s3 begins again");
    append(&world, &line("10:00:09.000", "s3", "out", "and goes on"));
    assert_eq!(following.next(), "and goes on");
}

#[test]
fn an_interrupt_ends_following_as_it_ends_any_program() {
    let world = two_services();
    let mut following = Following::start(&world, &["logs", "-f", "--text"]);
    assert_eq!(following.next(), "old");
    crate::support::signal(following.child.id(), handoff::sys::process::Signal::SIGINT);
    let ended = following.child.wait().unwrap();
    // A shell reports 130.
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(2));
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let world = two_services();
    for (arguments, told) in [
        (&["--since", "soon"][..], "is no moment; write for example 10m"),
        (&["--grep", "("], "regex parse error"),
        (&["--stream", "both"], "possible values: out, err"),
        (&["--until", "now", "-f"], "cannot be used with"),
        (&["--since", "1m", "--until", "2m"], "--since is not before --until"),
    ] {
        let ran = world.run(&[&["logs"], arguments].concat());
        assert_eq!(ran.code, Some(64), "{ran:?}");
        assert!(ran.stderr.contains(told), "{ran:?}");
    }
    let none = world.run(&["logs", "x*"]);
    assert_eq!(none.code, Some(1));
    assert!(none.stderr.contains("No service has a name like"), "{none:?}");
}

#[test]
fn unknown_services_and_missing_logs() {
    let world = world();
    let unknown = world.run(&["logs", "s4"]);
    assert_eq!(unknown.code, Some(1));
    assert_eq!(unknown.stderr, "error: There is no service \"s4\". Did you mean \"s3\"?\n");
    let missing = world.run(&["logs", "s3", "-f"]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("has no log yet"), "{missing:?}");
    log(&world, "current", "");
    std::fs::remove_file(world.path("etc/services/s3.toml")).unwrap();
    assert_eq!(world.run(&["logs", "s3"]).code, Some(0), "its log outlives its file");
}

#[test]
fn following_goes_through_rotation() {
    let world = world();
    log(&world, "1", "old\n");
    log(&world, "current", "1\n2\n3\n");
    let following = Following::start(&world, &["logs", "s3", "-f", "--tail", "2"]);
    assert_eq!((following.next(), following.next()), ("2".into(), "3".into()));
    append(&world, "4\n");
    assert_eq!(following.next(), "4");
    append(&world, "5\n");
    rotate(&world, 4);
    append(&world, "6\n");
    rotate(&world, 4);
    append(&world, "7\n");
    let lines: Vec<String> = (0..3).map(|_| following.next()).collect();
    assert_eq!(lines, ["5", "6", "7"]);
    append(&world, "8\n");
    assert_eq!(following.next(), "8");
}

#[test]
fn following_keeps_up_with_a_log_that_rotates_all_the_time() {
    let world = world();
    log(&world, "current", "it reads\n");
    let following = Following::start(&world, &["logs", "s3", "-f"]);
    assert_eq!(following.next(), "it reads");
    for number in 0..600 {
        append(&world, &format!("{number}\n"));
        if number % 5 == 4 {
            rotate(&world, 200);
        }
    }
    for number in 0..600 {
        assert_eq!(following.next(), number.to_string());
    }
}

#[test]
fn following_begins_before_the_first_line() {
    let world = world();
    std::fs::create_dir_all(world.path("var/services/s3/log")).unwrap();
    let following = Following::start(&world, &["logs", "s3", "--follow", "--json"]);
    append(&world, "first\n");
    let expected =
        r#"{"service":"s3","time":null,"generation":null,"pid":null,"stream":null,"line":"first"}"#;
    assert_eq!(following.next(), expected);
}

#[test]
fn following_ends_when_no_process_reads() {
    let world = world();
    log(&world, "current", "1\n");
    let mut command = world.command(&["logs", "s3", "-f"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    drop(stdout);
    // No more lines are written to the log. The end of the reader alone must wake the command.
    let (tell, ended) = mpsc::channel();
    let pid = child.id();
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    let Ok(output) = ended.recv_timeout(BOUND) else { panic!("process {pid} still follows") };
    let output = output.unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn what_is_no_file_is_an_error_and_no_wait() {
    for follow in [&[][..], &["-f"], &["--tail", "3"]] {
        let world = world();
        log(&world, "1", "1\n");
        let fifo = world.path("var/services/s3/log/current");
        make_fifo(&fifo, 0o700).unwrap();
        let mut command = world.command(&[&["logs", "s3"], follow].concat());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, ended) = mpsc::channel();
        let pid = child.id();
        std::thread::spawn(move || tell.send(child.wait_with_output()));
        let Ok(output) = ended.recv_timeout(BOUND) else { panic!("process {pid} waits") };
        let ran = CommandOutput::of(output.unwrap());
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("log/current: it is not a regular file: move it away"), "{ran:?}");
    }
}
