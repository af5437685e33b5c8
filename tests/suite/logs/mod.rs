//! The log of a service: the labels of its lines, and what is never lost, or lost with a count.

mod failed;
mod missing;
mod rate;

use std::net::SocketAddr;

use handoff::control::api::Request;
use handoff::sys::process::Signal;
use serde_json::Value;

use crate::support::{Rig, ask, free_address, processes_of, service, signal, wait_for};

/// Writes what a client asks for, and answers with its pid.
const PYTHON: &str = r#"
import os, socket, sys
host, port = sys.argv[1].split(":")
listener = socket.create_server((host, int(port)))
def lines(first, end, filler):
    text = b"".join(b"line %d %s\n" % (number, filler) for number in range(first, end))
    while text:
        text = text[os.write(1, text[:65536]):]
while True:
    connection, _ = listener.accept()
    words = connection.makefile("r").readline().split()
    if not words:
        connection.close()
        continue
    if words[0] == "lines":
        lines(int(words[1]), int(words[2]), b"x" * int(words[3]))
    elif words[0] == "out":
        os.write(1, bytes.fromhex(words[1]))
    elif words[0] == "err":
        os.write(2, bytes.fromhex(words[1]))
    elif words[0] == "close":
        os.close(1)
        os.close(2)
    connection.sendall(b"%d\n" % os.getpid())
    connection.close()
"#;

/// A service that writes what it is asked to.
struct Talker {
    rig: Rig,
    address: SocketAddr,
}

impl Talker {
    /// `log` are the keys of the table `[log]`.
    fn serve(log: &str) -> Talker {
        let talker = Talker { rig: Rig::new(), address: free_address() };
        talker.write("web", talker.address, log);
        talker.rig.call(Request::Start(service("web"))).unwrap();
        talker
    }

    fn write(&self, name: &str, address: SocketAddr, log: &str) {
        let text = format!(
            "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PYTHON:?}, \"{address}\"]\nautostart = false\n\
             store = false\nadapter = \"inject\"\nmode = \"overlap\"\n[listen]\nmain = \"{address}\"\n[log]\n{log}\n"
        );
        std::fs::write(self.rig.path(&format!("config/services/{name}.toml")), text).unwrap();
    }

    fn ask(&self, what: &str) {
        ask(self.address, what).unwrap();
    }

    fn out(&self, text: &[u8]) {
        self.ask(&format!("out {}", hex(text)));
    }

    fn err(&self, text: &[u8]) {
        self.ask(&format!("err {}", hex(text)));
    }

    /// What `handoff logs` prints.
    fn logs(&self, arguments: &[&str]) -> String {
        let output = self.rig.run(&[&["logs", "web"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The objects of `handoff logs --json`, once one of them has this text.
    fn objects(&self, awaited: &str) -> Vec<Value> {
        wait_for(awaited, || {
            let objects: Vec<Value> =
                self.logs(&["--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            objects.iter().any(|object| object["line"] == awaited).then_some(objects)
        })
    }

    fn keeper(&self) -> u32 {
        let is_keeper = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"keeper")
        };
        wait_for("the keeper", || processes_of(self.rig.root.path()).into_iter().find(is_keeper))
    }

    fn kill_daemon(&mut self) {
        let mut lost = self.rig.daemon.take().unwrap();
        lost.kill().unwrap();
        lost.wait().unwrap();
    }
}

fn hex(text: &[u8]) -> String {
    text.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn each_line_names_its_process_and_stream() {
    let talker = Talker::serve("");
    talker.out(b"first\n");
    talker.err(b"failure\n");
    let old = talker.rig.status("web");
    talker.objects("first");
    talker.objects("failure");
    talker.rig.call(Request::Restart(service("web"))).unwrap();
    talker.out(b"second\n");
    let new = wait_for("the new process", || {
        Some(talker.rig.status("web")).filter(|status| status.shim.is_some() && status.shim != old.shim)
    });
    let objects = talker.objects("second");
    for (text, generation, shim, stream) in
        [("first", 1, old.shim, "out"), ("failure", 1, old.shim, "err"), ("second", 2, new.shim, "out")]
    {
        let object = objects.iter().find(|object| object["line"] == text).unwrap();
        let pid = u64::from(shim.unwrap());
        assert_eq!((&object["generation"], &object["pid"]), (&generation.into(), &pid.into()), "{object}");
        assert_eq!((&object["service"], &object["stream"]), (&"web".into(), &stream.into()), "{object}");
    }
    let file = std::fs::read_to_string(talker.rig.path("state/services/web/log/current")).unwrap();
    let label = format!("Z web 1 {} out | first\n", old.shim.unwrap());
    assert!(file.contains(&label), "{file}");
    assert!(!file.contains("log-pid"), "{file}");
}

#[test]
fn what_is_no_text_stays_readable() {
    let talker = Talker::serve("");
    talker.out(b"zero \0 byte \xff\xfe colour \x1b[31m\n");
    talker.out(&[&vec![b'x'; 100_000][..], b"\n"].concat());
    talker.out(b"no end");
    talker.ask("close");
    // It has no output any more, and serves on.
    talker.ask("nothing");
    talker.rig.call(Request::Stop(service("web"))).unwrap();
    let objects = talker.objects("no end");
    let lines: Vec<(&str, bool)> = objects
        .iter()
        .map(|object| (object["line"].as_str().unwrap(), object["continues"] == true))
        .filter(|(line, _)| !line.starts_with("handoff: "))
        .collect();
    let (first, rest) = ("x".repeat(65536), "x".repeat(100_000 - 65536));
    let expected = [
        ("zero \\x00 byte \\xff\\xfe colour \u{1b}[31m", false),
        (&first, true),
        (&rest, false),
        ("no end", false),
    ];
    assert_eq!(lines, expected);
}

/// The numbers of `line N` in a log.
fn numbers(text: &str) -> Vec<u32> {
    let number = |line: &str| line.strip_prefix("line ")?.split(' ').next()?.parse().ok();
    text.lines().filter_map(number).collect()
}

#[test]
fn no_line_is_lost_or_doubled_over_rotation_deaths_and_upgrades() {
    let mut talker = Talker::serve("max_size = \"64KiB\"\nfiles = 100");
    let mut written = 0;
    let say = |talker: &Talker, written: &mut u32, count: u32| {
        talker.ask(&format!("lines {written} {} 20", *written + count));
        *written += count;
    };
    for round in 0..4 {
        say(&talker, &mut written, 2_000);
        talker.kill_daemon();
        say(&talker, &mut written, 2_000);
        talker.rig.start_daemon();
        talker.rig.settled("web");
        say(&talker, &mut written, 2_000);
        wait_for("the lines", || {
            (numbers(&talker.logs(&["--text"])).len() == written as usize).then_some(())
        });
        // What is in the pipes waits for the next keeper.
        let (keeper, daemon) = (talker.keeper(), talker.rig.daemon.as_ref().unwrap().id());
        signal(daemon, Signal::SIGSTOP);
        signal(keeper, Signal::SIGSTOP);
        say(&talker, &mut written, 100);
        signal(keeper, Signal::SIGKILL);
        if round % 2 == 0 {
            signal(daemon, Signal::SIGCONT);
        } else {
            talker.kill_daemon();
            talker.rig.start_daemon();
        }
        wait_for("another keeper", || (talker.keeper() != keeper).then_some(()));
        talker.rig.settled("web");
        talker.rig.call(Request::Restart(service("web"))).unwrap();
        let expected: Vec<u32> = (0..written).collect();
        wait_for("all lines", || (numbers(&talker.logs(&["--text"])) == expected).then_some(()));
    }
    assert!(talker.rig.path("state/services/web/log/3").exists(), "it was rotated");
    let labels: std::collections::BTreeSet<String> = talker
        .logs(&["--grep", "^line "])
        .lines()
        .map(|line| line.split(' ').skip(2).take(3).collect::<Vec<_>>().join(" "))
        .collect();
    // One process for each round, and all of them are known.
    assert!(labels.len() == 4 && labels.iter().all(|label| !label.contains('-')), "{labels:?}");
}
