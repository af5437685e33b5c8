//! The trampoline and the adapter `inject`: Python programs that do not know the supervisor get its listeners.

mod errors;
mod families;
mod figures;
mod parking;
mod start;
mod swap;
mod tree;

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use handoff::config::ListenAddress;
use handoff::shim::exec::{Spec, StartedProgram, start_by};
use handoff::shim::inject::{EventSink, InjectEvent, Injector, ListenerProvider};
use handoff::slots::{Access, Group};
use handoff::sys::process::Signal;
use handoff::sys::process::{Exit, kill, reap_blocking};
use handoff::sys::seccomp::Calls;
use handoff::sys::socket::local_path;

use crate::support::LIMIT;

fn handoff() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_handoff"))
}

/// The specification of a start of `binary`, and its output.
fn spec(binary: &str, args: &[&str]) -> (Spec, BufReader<PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let spec = Spec {
        binary: binary.into(),
        args: args.iter().map(OsString::from).collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        working_dir: "/".into(),
        stdout: OwnedFd::from(writer.try_clone().unwrap()),
        stderr: writer.into(),
        listeners: Vec::new(),
        inherited: Vec::new(),
        seccomp: None,
        files_limit: None,
    };
    (spec, BufReader::new(reader))
}

/// A program in Python.
fn python(script: &str) -> (Spec, BufReader<PipeReader>) {
    spec("/usr/bin/python3", &["-c", script])
}

fn end_of(started: &StartedProgram) -> Exit {
    reap_blocking(started.pidfd.as_fd()).unwrap()
}

/// Runs the program to its end. Returns its output.
fn output(spec: Spec, mut reader: BufReader<PipeReader>) -> String {
    let started = start_by(handoff(), spec).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let exit = end_of(&started);
    assert_eq!(exit.code, Some(0), "{exit}: {text}");
    text
}

/// The listeners of a service, with one slot each.
struct TestSlots(Vec<(String, Group)>);

impl TestSlots {
    fn fd(&self, name: &str) -> OwnedFd {
        let (_, group) = self.0.iter().find(|(found, _)| found == name).unwrap();
        group.fd(group.steered()).unwrap().try_clone_to_owned().unwrap()
    }
}

impl ListenerProvider for TestSlots {
    fn configured(&self) -> Vec<(String, ListenAddress)> {
        self.0.iter().map(|(name, group)| (name.clone(), group.address().clone())).collect()
    }

    fn current(&self, name: &str) -> std::io::Result<OwnedFd> {
        Ok(self.fd(name))
    }

    fn path_bound(&self, _: &str, _: Access) {}

    fn path_removed(&self, name: &str, path: &Path) {
        let own = local_path(self.fd(name)).unwrap();
        std::fs::hard_link(own, path).unwrap();
    }
}

#[derive(Default)]
struct RecordedEvents {
    events: Mutex<Vec<InjectEvent>>,
    more: Condvar,
}

impl EventSink for RecordedEvents {
    fn record(&self, event: InjectEvent) {
        self.events.lock().unwrap().push(event);
        self.more.notify_all();
    }
}

/// A program whose calls are answered. It ends when this is dropped.
struct Run {
    started: StartedProgram,
    output: BufReader<PipeReader>,
    slots: Arc<TestSlots>,
    injector: Arc<Injector>,
    heard: Arc<RecordedEvents>,
    answering: Option<JoinHandle<std::io::Result<()>>>,
}

impl Run {
    /// Listens at `addresses`, named a, b, …, and starts the program.
    fn start(addresses: &[&str], parks: bool, program: (Spec, BufReader<PipeReader>)) -> Self {
        Self::start_by(handoff(), addresses, parks, program)
    }

    /// The same, with another copy of `handoff`.
    fn start_by(
        handoff: &Path,
        addresses: &[&str],
        parks: bool,
        program: (Spec, BufReader<PipeReader>),
    ) -> Self {
        let names = ('a'..='z').map(String::from);
        let open = |address: &&str| Group::open(&address.parse().unwrap()).unwrap();
        let slots = Arc::new(TestSlots(names.zip(addresses.iter().map(open)).collect()));
        Self::start_on(handoff, slots, parks, program)
    }

    /// Starts another program on the same slots.
    fn again(&self, script: &str) -> Self {
        Self::start_on(handoff(), self.slots.clone(), false, python(script))
    }

    fn start_on(
        handoff: &Path,
        slots: Arc<TestSlots>,
        parks: bool,
        (spec, output): (Spec, BufReader<PipeReader>),
    ) -> Self {
        let started = start_by(handoff, Spec { seccomp: Some(Calls::Sockets), ..spec }).unwrap();
        let notify = started.notify.as_ref().unwrap().try_clone().unwrap();
        let heard = Arc::new(RecordedEvents::default());
        let injector = Arc::new(Injector::new(notify, slots.clone(), heard.clone(), parks));
        let answers = injector.clone();
        let answering = Some(std::thread::spawn(move || answers.run()));
        Self { started, output, slots, injector, heard, answering }
    }

    fn python(addresses: &[&str], parks: bool, script: &str) -> Self {
        Self::start(addresses, parks, python(script))
    }

    /// The next line that the program writes.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits for `count` events that match `is`. Returns all events in order.
    fn events(&self, count: usize, is: impl Fn(&InjectEvent) -> bool) -> Vec<InjectEvent> {
        let until = Instant::now() + LIMIT;
        let mut events = self.heard.events.lock().unwrap();
        while events.iter().filter(|event| is(event)).count() < count {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited too long for {count} events: {events:?}");
            events = self.heard.more.wait_timeout(events, left).unwrap().0;
        }
        events.clone()
    }

    /// Waits until the program has got `count` listeners.
    fn bound(&self, count: usize) -> Vec<InjectEvent> {
        self.events(count, |event| matches!(event, InjectEvent::Bound { .. }))
    }

    /// Waits until the program has got a listener, and sends a request there.
    fn answer(&mut self, address: SocketAddr) -> String {
        self.bound(1);
        answer(address)
    }

    /// Kills the program, and waits until all of its processes are gone.
    fn end(&mut self) -> Exit {
        let _ = kill(&self.started.pidfd, Signal::SIGKILL);
        let exit = end_of(&self.started);
        self.joined();
        exit
    }

    fn joined(&mut self) {
        self.answering.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- events\n{:?}", self.heard.events.lock().unwrap());
            let _ = kill(&self.started.pidfd, Signal::SIGKILL);
            let mut text = String::new();
            let _ = self.output.read_to_string(&mut text);
            eprintln!("--- output\n{text}");
        } else if self.answering.is_some() {
            self.end();
        }
    }
}

/// One connection: sends a byte, and reads to the end.
fn answer(address: SocketAddr) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(LIMIT)).unwrap();
    connection.write_all(b"x").unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

fn null() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/null").unwrap().into()
}
