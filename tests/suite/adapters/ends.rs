//! Whatever ends a program or its shim, the report says how the program ended.

use handoff::sys::process::Signal;

use crate::support::{Rig, ask, free_address, service, signal, unlabelled, wait_for};
use handoff::control::api::{Request, State};

/// At SIGTERM it exits with the given code, or dies by a signal.
const PYTHON: &str = r#"
import os, signal, socket, sys
host, port = sys.argv[1].split(":")
if sys.argv[2] != "-":
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(int(sys.argv[2])))
listener = socket.create_server((host, int(port)))
while True:
    connection, _ = listener.accept()
    if connection.recv(100):
        connection.sendall(b"%d\n" % os.getpid())
    connection.close()
"#;

/// The receiver of a signal.
#[derive(Debug, Clone, Copy)]
enum SignalTarget {
    Shim,
    Program,
}

fn ended(adapter_of: &str, code: &str, to: SignalTarget, by: Signal) -> (u32, String) {
    let rig = Rig::new();
    let address = free_address();
    let text = format!(
        "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PYTHON:?}, \"{address}\", \"{code}\"]\nautostart = false\nstore = false\n\
         adapter = \"inject\"\nmode = \"{adapter_of}\"\nstop_grace = \"5s\"\n[listen]\nmain = \"{address}\"\n"
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    let program: u32 = ask(address, "x").unwrap().parse().unwrap();
    let status = rig.status("s");
    assert_eq!(status.pid, Some(program));
    signal(
        match to {
            SignalTarget::Shim => status.shim.unwrap(),
            SignalTarget::Program => program,
        },
        by,
    );
    let problem = wait_for("the end to be reported", || {
        let status = rig.status("s");
        status.problem.filter(|_| status.restarts == 1)
    });
    (program, problem)
}

#[test]
fn the_reported_end_is_that_of_the_program() {
    let cases = [
        (SignalTarget::Program, "-", Signal::SIGTERM, "was killed by signal 15"),
        (SignalTarget::Program, "-", Signal::SIGHUP, "was killed by signal 1"),
        (SignalTarget::Program, "-", Signal::SIGUSR1, "was killed by signal 10"),
        (SignalTarget::Program, "-", Signal::SIGQUIT, "was killed by signal 3"),
        (SignalTarget::Program, "-", Signal::SIGKILL, "was killed by signal 9"),
        (SignalTarget::Program, "3", Signal::SIGTERM, "exited with code 3"),
        (SignalTarget::Program, "0", Signal::SIGTERM, "exited with code 0"),
        (SignalTarget::Shim, "-", Signal::SIGTERM, "was killed by signal 15"),
        (SignalTarget::Shim, "3", Signal::SIGTERM, "exited with code 3"),
        (SignalTarget::Shim, "0", Signal::SIGTERM, "exited with code 0"),
        (SignalTarget::Shim, "-", Signal::SIGHUP, "was killed by signal 1"),
        (SignalTarget::Shim, "-", Signal::SIGKILL, "was killed by signal 9"),
    ];
    for (number, (to, code, by, told)) in cases.into_iter().enumerate() {
        let mode = ["exclusive", "overlap"][number % 2];
        let (program, problem) = ended(mode, code, to, by);
        let told = format!("The process {program} {told};");
        assert!(problem.contains(&told), "{to:?} {code} {by:?}, {mode}: {problem}");
    }
}

/// Writes half a line after a request, and waits for its end.
const HALF_A_LINE: &str = r#"
import os, socket, sys
host, port = sys.argv[1].split(":")
listener = socket.create_server((host, int(port)))
os.write(1, b"whole\n")
while True:
    connection, _ = listener.accept()
    if connection.recv(100):
        os.write(1, b"half of %d" % os.getpid())
        connection.sendall(b"%d\n" % os.getpid())
    connection.close()
"#;

#[test]
fn a_line_that_is_cut_by_the_end_of_a_program_stands_alone() {
    let rig = Rig::new();
    let address = free_address();
    let text = format!(
        "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {HALF_A_LINE:?}, \"{address}\"]\nautostart = false\nstore = false\n\
         adapter = \"inject\"\nmode = \"exclusive\"\n[listen]\nmain = \"{address}\"\n"
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    let mut expected = Vec::new();
    for to in [SignalTarget::Program, SignalTarget::Shim, SignalTarget::Program] {
        let program: u32 = ask(address, "x").unwrap().parse().unwrap();
        let status = rig.status("s");
        signal(
            if matches!(to, SignalTarget::Shim) { status.shim.unwrap() } else { program },
            Signal::SIGKILL,
        );
        wait_for("another process", || (rig.status("s").restarts > status.restarts).then_some(()));
        rig.settled("s");
        expected.push(format!("half of {program}"));
    }
    let is_end = |line: &&str| *line == "handoff: the program was ended by signal 9";
    let log = wait_for("all lines", || {
        let log = unlabelled(&std::fs::read_to_string(rig.path("state/services/s/log/current")).ok()?);
        let has_all = expected.iter().all(|line| log.contains(line.as_str()));
        (has_all && log.lines().filter(is_end).count() >= 2).then_some(log)
    });
    for line in &expected {
        assert!(log.lines().any(|found| found == line), "{line:?} is not a line of its own in {log:?}");
    }
    let ends = log.lines().filter(is_end).count();
    assert_eq!((ends, log.lines().filter(|line| line.is_empty()).count()), (2, 0), "{log:?}");
}

/// Leaves an orphan, which becomes a child of the shim.
const LEAVES_AN_ORPHAN: &str = r#"
import os, signal, socket, sys
host, port = sys.argv[1].split(":")
middle = os.fork()
if middle == 0:
    if os.fork() == 0:
        signal.pause()
    os._exit(0)
os.waitpid(middle, 0)
listener = socket.create_server((host, int(port)))
while True:
    connection, _ = listener.accept()
    if connection.recv(100):
        connection.sendall(b"%d\n" % os.getpid())
    connection.close()
"#;

/// On a full disk the pid file stays empty, and a cleanup may remove it.
#[test]
fn a_program_whose_pid_is_not_written_down_is_known_to_the_next_daemon() {
    for removed in [false, true] {
        let mut rig = Rig::new();
        let address = free_address();
        let text = format!(
            "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {LEAVES_AN_ORPHAN:?}, \"{address}\"]\nautostart = false\n\
             store = false\nadapter = \"inject\"\nmode = \"exclusive\"\n[listen]\nmain = \"{address}\"\n"
        );
        std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
        rig.call(Request::Start(service("s"))).unwrap();
        let program: u32 = ask(address, "x").unwrap().parse().unwrap();
        let mut daemon = rig.daemon.take().unwrap();
        crate::support::kill(daemon.id());
        daemon.wait().unwrap();
        let mut files = std::fs::read_dir(rig.path("run/adopt")).unwrap().map(|entry| entry.unwrap().path());
        let file = files.find(|path| path.extension().is_some_and(|it| it == "pid")).unwrap();
        if removed { std::fs::remove_file(&file) } else { std::fs::write(&file, "") }.unwrap();
        rig.start_daemon();
        assert_eq!(rig.settled("s").pid, Some(program), "removed: {removed}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{program}\n"));
    }
}

/// Its child, which has closed the listener, ends when there is a file, and not at SIGTERM.
const PARENT: &str = r#"
import os, signal, socket, sys, threading
host, port = sys.argv[1].split(":")
listener = socket.create_server((host, int(port)))
if os.fork() == 0:
    listener.close()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while not os.path.exists(sys.argv[2]):
        threading.Event().wait(0.05)
    os._exit(0)
while True:
    connection, _ = listener.accept()
    if connection.recv(100):
        connection.sendall(b"%d\n" % os.getpid())
    connection.close()
"#;

#[test]
fn while_the_rest_of_a_program_ends_the_end_of_its_main_process_is_reported() {
    let rig = Rig::new();
    let (address, file) = (free_address(), rig.path("ends"));
    let text = format!(
        "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PARENT:?}, \"{address}\", {file:?}]\nautostart = false\nstore = false\n\
         adapter = \"inject\"\nmode = \"exclusive\"\nstop_grace = \"50s\"\n[listen]\nmain = \"{address}\"\n"
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    let program: u32 = ask(address, "x").unwrap().parse().unwrap();
    signal(program, Signal::SIGKILL);
    let status = wait_for("the end to be reported", || {
        let is_told = |problem: &String| problem.contains("The main process");
        Some(rig.status("s")).filter(|status| status.problem.as_ref().is_some_and(is_told))
    });
    let problem = status.problem.unwrap();
    assert!(problem.contains(&format!("The main process {program} was ended by signal 9.")), "{problem}");
    assert!(problem.contains("up to 50s to end") && problem.contains("(python3)"), "{problem}");
    assert_eq!((status.state, status.pid, status.restarts), (State::Starting, None, 0));
    std::fs::write(&file, "").unwrap();
    let status = rig.settled("s");
    assert_eq!(status.restarts, 1);
    let problem = status.problem.unwrap();
    assert!(problem.contains(&format!("The process {program} was killed by signal 9;")), "{problem}");
    assert_ne!(ask(address, "x").unwrap().parse::<u32>().unwrap(), program);
}
