//! Servers that start other programs, which inherit their listener: a CGI, a compiler, a shell.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Request, Response};

use crate::support::{LIMIT, Rig, ask, executable, free_address, service, wait_for};

/// Answers each line with its pid; `help` when its helper has ended, with the exit status of that. The helper inherits
/// everything. At SIGTERM it serves on, and ends when no request is in progress.
const SERVER: &str = r#"#!/usr/bin/python3
import os, signal, socket, subprocess, sys, threading
(host, port), ends = sys.argv[1].rsplit(":", 1), threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ends.set())
for _ in range(int(os.environ.get("FORKS", "0"))):
    if os.fork():
        threading.Event().wait(0.05)
        os._exit(0)
if "LISTEN_FDS" in os.environ:
    listener = socket.socket(fileno=3)
else:
    listener = socket.socket()
    listener.bind((host, int(port)))
    listener.listen()
listener.set_inheritable(True)
busy = threading.Lock()
def serve(client):
    with client, client.makefile("rw") as lines:
        for line in lines:
            with busy:
                status = ""
                if line == "help\n":
                    status = subprocess.run(["/bin/sleep", "2.5"], close_fds=False).returncode
                lines.write(f"{os.getpid()} {status}\n")
                lines.flush()
def accept():
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
while not ends.wait(0.05):
    pass
with busy:
    os._exit(0)
"#;

struct Helped {
    rig: Rig,
    address: SocketAddr,
}

impl Helped {
    /// `wrapper`: a script in which `SERVER` stands for the server with its arguments.
    fn serve(adapter: &str, wrapper: &str) -> Self {
        let (rig, address) = (Rig::new(), free_address());
        let mut binary = rig.path("server");
        std::fs::write(&binary, SERVER).unwrap();
        executable(&binary);
        if !wrapper.is_empty() {
            let text = wrapper.replace("SERVER", &format!("{} \"$@\"", binary.display()));
            binary = rig.path("wrapper");
            std::fs::write(&binary, format!("#!/bin/sh\n{text}\n")).unwrap();
            executable(&binary);
        }
        let text = format!(
            "binary = {binary:?}\nargs = [\"{address}\"]\nstore = false\nautostart = false\nadapter = \"{adapter}\"\n\
             mode = \"overlap\"\ndrain = \"nothing\"\nstop_grace = \"10s\"\n[listen]\nmain = \"{address}\"\n"
        );
        std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
        rig.call(Request::Start(service("s"))).unwrap();
        Self { rig, address }
    }

    fn pid(&self) -> u32 {
        ask(self.address, "x").unwrap().trim().parse().unwrap()
    }

    /// Sends a request, and returns when its helper runs.
    fn ask_for_help(&self, server: u32) -> std::thread::JoinHandle<String> {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(LIMIT)).unwrap();
        let asked = std::thread::spawn(move || {
            let mut answer = String::new();
            connection.write_all(b"help\n").unwrap();
            BufReader::new(connection).read_line(&mut answer).unwrap();
            answer
        });
        let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        wait_for("the helper", || {
            let helps =
                handoff::sys::process::children_of(server).into_iter().any(|pid| name(pid) == "sleep\n");
            helps.then_some(())
        });
        asked
    }

    /// Waits until this process is shown as the server.
    fn is_shown(&self, server: u32) {
        wait_for("the server to be shown", || (self.rig.status("s").pid == Some(server)).then_some(()));
    }
}

#[test]
fn the_stop_signal_does_not_end_a_helper_that_has_inherited_the_listener() {
    const WRAPPER: &str = "SERVER\nexit $?";
    std::thread::scope(|scope| {
        for (adapter, wrapper) in
            [("inject", ""), ("listen-fds", ""), ("inject", WRAPPER), ("listen-fds", WRAPPER)]
        {
            scope.spawn(move || {
                let helped = Helped::serve(adapter, wrapper);
                let what = format!("{adapter} {wrapper:?}");
                for request in [Request::Restart(service("s")), Request::Stop(service("s"))] {
                    let server = helped.pid();
                    helped.is_shown(server);
                    let asked = helped.ask_for_help(server);
                    let outcome = match helped.rig.call(request).unwrap() {
                        Response::Outcome(outcome) => outcome,
                        other => panic!("{other:?}"),
                    };
                    assert!(matches!(outcome.outcome, Ending::Committed | Ending::Stopped), "{outcome:?}");
                    assert_eq!(outcome.killed, vec![], "{what}");
                    assert_eq!(asked.join().unwrap(), format!("{server} 0\n"), "{what}");
                }
            });
        }
    });
}

#[test]
fn a_process_that_has_ended_is_not_shown_as_the_server() {
    // Each process but the last has the listener, too.
    for forks in 1..=3 {
        let helped = Helped::serve("listen-fds", &format!("FORKS={forks} exec SERVER"));
        for _ in 0..4 {
            let server = helped.pid();
            helped.is_shown(server);
            let since = Instant::now();
            while since.elapsed() < Duration::from_millis(300) {
                assert_eq!(helped.rig.status("s").pid, Some(server));
                std::thread::sleep(Duration::from_millis(50));
            }
            helped.rig.call(Request::Restart(service("s"))).unwrap();
        }
    }
}
