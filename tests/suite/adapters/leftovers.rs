//! Programs below a launcher that closes unknown descriptors, as `npm start` and the `subprocess` module of Python do.
//! The server has none of the shim's files open. When the shim is killed, the server outlives it, and the next shim
//! must find it by other means.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use handoff::control::api::{Ending, Request, Response, ServiceStatus, State};
use handoff::sys::process::Signal;

use crate::support::{Rig, ask, executable, free_address, kill, service, signal, stop, wait_for};

/// Answers each line with its pid, and writes the pid to a file continuously.
const SERVER: &str = r#"#!/usr/bin/python3
import os, socket, sys, threading
(host, port), out = sys.argv[1].rsplit(":", 1), sys.argv[2]
def write():
    while True:
        with open(out, "a") as file:
            file.write(f"{os.getpid()}\n")
        threading.Event().wait(0.002)
def serve(client):
    with client, client.makefile("rw") as lines:
        for line in lines:
            lines.write(f"{os.getpid()}\n")
            lines.flush()
listener = socket.socket()
listener.bind((host, int(port)))
listener.listen()
threading.Thread(target=write, daemon=True).start()
while True:
    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
"#;
const PYTHON: &str =
    "#!/usr/bin/python3\nimport subprocess, sys\nsys.exit(subprocess.call([\"SERVER\"] + sys.argv[1:]))\n";
const SHELL: &str = "#!/bin/sh\ncd /\npython3 -c 'import subprocess, sys\nsys.exit(subprocess.call([\"sh\", \"-c\", \"\\\"$@\\\"; exit $?\", \"-\", \"SERVER\"] \
                     + sys.argv[1:]))' \"$@\"\nexit $?\n";

struct LaunchedService {
    rig: Rig,
    address: SocketAddr,
    out: PathBuf,
}

impl LaunchedService {
    fn serve(launcher: &str, mode: &str, keys: &str) -> Self {
        let rig = Rig::new();
        let (server, binary, out) = (rig.path("server"), rig.path("launcher"), rig.path("data/out"));
        std::fs::write(&server, SERVER).unwrap();
        std::fs::write(&binary, launcher.replace("SERVER", server.to_str().unwrap())).unwrap();
        [&server, &binary].into_iter().for_each(|path| executable(path));
        let address = free_address();
        let text = format!(
            "binary = {binary:?}\nargs = [\"{address}\", {out:?}]\nstore = false\nautostart = false\nadapter = \"inject\"\n\
             mode = \"{mode}\"\nstop_grace = \"2s\"\n{keys}[listen]\nmain = \"{address}\"\n[probe]\ntcp = true\ntimeout = \"1s\"\n"
        );
        std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
        let launched = Self { rig, address, out };
        launched.rig.call(Request::Start(service("s"))).unwrap();
        launched
    }

    fn pid(&self) -> u32 {
        ask(self.address, "pid").unwrap().trim().parse().unwrap()
    }

    fn shim(&self) -> u32 {
        self.rig.status("s").shim.unwrap()
    }

    /// The status after one kill of a shim, when another one serves. The status before that is correct at each moment,
    /// too.
    fn restarted(&self) -> ServiceStatus {
        wait_for("the restart", || {
            let status = self.rig.status("s");
            assert!(status.state != State::Serving || status.pid.is_some(), "no process serves: {status:?}");
            (status.restarts == 1 && status.state == State::Serving).then_some(status)
        })
    }

    /// The recorded pids, in order.
    fn written(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(&self.out).unwrap();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn another_writes_alone(&self, old: u32, what: &str) {
        let new = wait_for("another server to answer", || {
            let answer = ask(self.address, "pid").ok()?.trim().parse::<u32>().ok()?;
            (answer != old).then_some(answer)
        });
        let lines = wait_for("it to write", || {
            let lines = self.written();
            (lines.iter().filter(|pid| **pid == new).count() > 50).then_some(lines)
        });
        let first = lines.iter().position(|pid| *pid == new).unwrap();
        let is_old = |pid: &&u32| **pid == old;
        let beside = lines.iter().skip(first).filter(is_old).count();
        let lives = is_there(old);
        // A leftover must not outlive the test.
        if lives {
            kill(old);
        }
        assert_eq!(
            (lives, beside),
            (false, 0),
            "{what}: the old server {old} writes beside the new one {new}"
        );
    }
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).exists()
}

fn ended(pid: u32, what: &str) {
    let lives = is_there(pid);
    if lives {
        kill(pid);
    }
    assert!(!lives, "{what}: the server {pid} is left");
}

#[test]
fn no_program_is_started_beside_what_a_killed_shim_has_left() {
    for (launcher, mode) in [(PYTHON, "exclusive"), (SHELL, "exclusive"), (SHELL, "overlap")] {
        let launched = LaunchedService::serve(launcher, mode, "");
        let old = launched.pid();
        signal(launched.shim(), Signal::SIGKILL);
        let problem = launched.restarted().problem.unwrap();
        assert!(problem.contains("signal 9; it was started again"), "{problem}");
        assert!(!problem.contains("can only stop it"), "of the process that is gone: {problem}");
        launched.another_writes_alone(old, &format!("{mode} {launcher}"));
        // A server that replaced another one is found as well.
        let second = launched.pid();
        signal(launched.shim(), Signal::SIGKILL);
        launched.another_writes_alone(second, &format!("{mode} {launcher}, once more"));
    }
}

#[test]
fn a_server_that_is_stopped_is_ended_before_another_one_is_started() {
    for launcher in [PYTHON, SHELL] {
        let launched = LaunchedService::serve(launcher, "exclusive", "liveness = \"50ms\"\n");
        let old = launched.pid();
        stop(old);
        launched.another_writes_alone(old, launcher);
    }
}

#[test]
fn a_stop_and_the_end_of_the_daemon_leave_nothing() {
    for launcher in [PYTHON, SHELL] {
        let mut launched = LaunchedService::serve(launcher, "exclusive", "");
        let old = launched.pid();
        signal(launched.shim(), Signal::SIGKILL);
        let stopped = launched.rig.call(Request::Stop(service("s")));
        match stopped.unwrap() {
            Response::Outcome(outcome) => assert_eq!(outcome.outcome, Ending::Stopped, "{launcher}"),
            other => panic!("{other:?}"),
        }
        ended(old, "stop");
        launched.rig.call(Request::Start(service("s"))).unwrap();
        let old = launched.pid();
        stop(old);
        signal(launched.shim(), Signal::SIGKILL);
        assert!(launched.rig.stop_daemon().unwrap().success());
        ended(old, "the end of the daemon");
    }
}

#[test]
fn the_next_daemon_ends_what_was_left_without_one() {
    let mut launched = LaunchedService::serve(SHELL, "exclusive", "");
    let (old, shim) = (launched.pid(), launched.shim());
    let mut daemon = launched.rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    signal(shim, Signal::SIGKILL);
    launched.rig.start_daemon();
    wait_for("what was left to be gone", || (!is_there(old)).then_some(()));
}
