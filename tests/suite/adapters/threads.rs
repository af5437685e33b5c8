//! Multithreaded programs in which one specific thread must take the stop signal. They are held when the signal comes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use handoff::control::api::{Ending, Request, Response};
use handoff::sys::process::{Signal, is_stopped};
use handoff::sys::signals::send;

use crate::support::{LIMIT, Rig, executable, free_address, service, signal, wait_for};

/// One thread per connection, which answers each line with the pid. `WAITS` defines the action of the main thread and
/// the thread that takes SIGTERM.
const SERVER: &str = r#"#!/usr/bin/python3
import ctypes, os, signal, socket, struct, sys, threading
from time import sleep as stay_in_the_kernel
(host, port), out = sys.argv[1].rsplit(":", 1), sys.argv[2]
def end(*_):
    with open(out, "a") as file:
        file.write(f"{os.getpid()} saved\n")
    os._exit(0)
def serve(client):
    with client, client.makefile("rw") as lines:
        for line in lines:
            lines.write(f"{os.getpid()}\n")
            lines.flush()
def accept():
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
def start(work):
    threading.Thread(target=work, daemon=True).start()
def rest():
    while True:
        stay_in_the_kernel(3600)
def pause():
    while True:
        signal.pause()
def take(what):
    if what == 15:
        end()
def wait_for_it():
    take(signal.sigwait([signal.SIGTERM]))
def read_it():
    names = ctypes.create_string_buffer(128)
    names[1] = 1 << 6
    signals = ctypes.CDLL(None).signalfd(-1, names, 0)
    take(struct.unpack("I", os.read(signals, 128)[:4])[0])
def block():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
def catch():
    signal.signal(signal.SIGTERM, end)
listener = socket.socket()
before, beside, main = WAITS
before()
listener.bind((host, int(port)))
listener.listen()
for work in accept, *beside:
    start(work)
main()
"#;

/// The action before other threads exist, the actions of other threads, and the action of the main thread.
const WAITS: [&str; 6] = [
    "catch, [], rest",
    "catch, [], pause",
    "block, [], wait_for_it",
    "block, [wait_for_it], rest",
    "block, [read_it], rest",
    // The main thread has ended.
    "block, [wait_for_it], lambda: ctypes.CDLL(None).syscall(EXIT, 0)",
];

/// Many threads; each reads and writes one byte. SIGTERM ends the process.
const READERS: &str = "
import os, threading
def work():
    os.write(1, os.read(0, 1))
for _ in range(16):
    threading.Thread(target=work, daemon=True).start()
os.write(2, b'ready')
threading.Event().wait()
";

/// Opens connections, so that some threads of the program wait in their reads.
fn connect(address: SocketAddr) -> Vec<BufReader<TcpStream>> {
    let connect = || {
        let connection = TcpStream::connect(address).unwrap();
        connection.set_read_timeout(Some(LIMIT)).unwrap();
        let mut connection = BufReader::new(connection);
        connection.get_mut().write_all(b"x\n").unwrap();
        connection.read_line(&mut String::new()).unwrap();
        connection
    };
    (0..4).map(|_| connect()).collect()
}

#[test]
fn the_thread_that_ends_a_program_in_order_gets_the_stop_signal() {
    std::thread::scope(|scope| {
        let running: Vec<_> = WAITS.into_iter().map(|waits| scope.spawn(move || restarts(waits))).collect();
        running.into_iter().for_each(|running| running.join().unwrap());
    });
}

fn restarts(waits: &str) {
    let (rig, address) = (Rig::new(), free_address());
    let (server, saved) = (rig.path("server"), rig.path("data/saved"));
    let exit = if cfg!(target_arch = "aarch64") { "93" } else { "60" };
    std::fs::write(&server, SERVER.replace("WAITS", waits).replace("EXIT", exit)).unwrap();
    executable(&server);
    let text = format!(
        "binary = {server:?}\nargs = [\"{address}\", {saved:?}]\nstore = false\nautostart = false\nadapter = \"inject\"\n\
         mode = \"exclusive\"\nstop_grace = \"15s\"\ndrain_grace = \"10s\"\n[listen]\nmain = \"{address}\"\n"
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    for count in 1..=10 {
        let kept = connect(address);
        let outcome = match rig.call(Request::Restart(service("s"))).unwrap() {
            Response::Outcome(outcome) => outcome,
            other => panic!("{other:?}"),
        };
        assert_eq!((outcome.outcome, outcome.killed), (Ending::Committed, vec![]), "{waits}, {count}");
        assert_eq!(std::fs::read_to_string(&saved).unwrap().lines().count(), count, "{waits}");
        drop(kept);
    }
}

/// After SIGCONT the threads wake in any order. A thread with work must not begin it before another thread takes the
/// signal.
#[test]
fn a_held_program_that_a_signal_ends_does_nothing_more() {
    for round in 0..40 {
        let mut command = Command::new("/usr/bin/env");
        command.args(["python3", "-c", READERS]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut program = command.spawn().unwrap();
        program.stderr.take().unwrap().read_exact(&mut [0; 5]).unwrap();
        signal(program.id(), Signal::SIGSTOP);
        wait_for("a stop", || is_stopped(program.id()).then_some(()));
        program.stdin.take().unwrap().write_all(&[b'x'; 16]).unwrap();
        send(program.id(), Signal::SIGTERM);
        send(program.id(), Signal::SIGCONT);
        let ended = program.wait_with_output().unwrap();
        assert_eq!(ended.status.signal(), Some(Signal::SIGTERM as i32), "{ended:?}");
        assert_eq!(ended.stdout, b"", "round {round}");
    }
}
