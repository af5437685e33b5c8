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
    assert_eq!(world.run(&["logs", "s3"]).stdout, "a\nb\nc\nd\nno newline");
    assert_eq!(world.run(&["logs", "s3", "--tail", "1"]).stdout, "no newline");
    assert_eq!(world.run(&["logs", "s3", "--tail", "4"]).stdout, "b\nc\nd\nno newline");
    assert_eq!(world.run(&["logs", "s3", "--tail", "0"]).stdout, "");
    assert_eq!(world.run(&["logs", "s3", "--tail", "99"]).stdout, "a\nb\nc\nd\nno newline");
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
    assert_eq!(following.next(), r#"{"line":"first","service":"s3"}"#);
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
