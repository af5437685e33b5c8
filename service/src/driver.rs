//! Drives the protocol machine of the process. One thread waits for the channel, the server's threads and the clock,
//! and performs the machine's actions. It makes no decisions.

use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{FromService, Progress, ToService, Welcome};
use handoff_protocol::process::{Event, Process, ProcessState};
use handoff_protocol::version::{VersionRange, negotiate};

use super::adoption::{Adopter, Adoption};
use super::inbox::{Inbox, Input};
use super::state::State;
use super::{Drain, Ended, Error, Seal};
use handoff_crash_points::crash_point;
use handoff_sys::channel::Channel;
use handoff_sys::lock::DataLock;
use handoff_sys::outbox::Outbox;
use handoff_sys::poll::{PollFd, PollFlags, found, poll};
use handoff_sys::wire::{WireError, recv_message};

mod perform;

/// A request of the driver to the server.
#[derive(Debug)]
pub(super) enum DriverRequest {
    /// Open the data and accept, with the state of the predecessor.
    Open(Option<State>),
    /// Process the state of the predecessor.
    TakeOver(State),
    /// Run the drain code.
    Drain(Drain),
    /// Run the seal code.
    Seal(Seal),
    /// Run the resume code.
    Resume,
    /// Return from `run`.
    End(Result<Ended, Error>),
}

/// A callback of the server: before a dismissed process exits, or when the process is committed.
#[derive(Clone, Default)]
pub(super) struct Callback(Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>);

impl Callback {
    /// The first call wins.
    pub(super) fn set(&self, act: Box<dyn Fn() + Send + Sync>) {
        let _ = self.0.set(act);
    }

    fn act(&self) {
        if let Some(act) = self.0.get() {
            act();
        }
    }
}

impl std::fmt::Debug for Callback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Callback({})", self.0.get().is_some())
    }
}

/// What the last poll found ready.
struct Ready {
    inputs: bool,
    channel: bool,
    adoption: bool,
}

pub(super) struct Driver {
    /// `None` without a supervisor.
    channel: Option<Channel>,
    /// Messages that wait for room in the channel.
    outbox: Outbox,
    /// `None` if no other supervisor can connect.
    adoption: Option<Adoption>,
    version: u16,
    machine: Process,
    inbox: Arc<Inbox>,
    requests: Box<dyn Fn(DriverRequest) + Send>,
    pub(super) before_exit: Callback,
    pub(super) on_commit: Callback,
    /// Whether it was called.
    is_committed: bool,
    drain: Option<Drain>,
    /// The grant to pass to the next seal.
    granted: Option<Duration>,
    /// The predecessor's state, for a process that has not begun.
    state: Option<State>,
    /// The server's own version text, for this and every later supervisor.
    release: Option<String>,
    /// The descriptor of the current message, incoming or outgoing.
    file: Option<OwnedFd>,
    data: Option<PathBuf>,
    lock: Option<DataLock>,
    lease: Option<Instant>,
    heartbeat: Duration,
    next_heartbeat: Option<Instant>,
    /// Why locking failed.
    lock_error: Option<io::Error>,
    /// The last failure that the server reported.
    failure: Option<String>,
    /// Whether an answer could not be sent.
    lost: bool,
    ended: bool,
}

pub(super) fn spawn(driver: Driver) -> io::Result<()> {
    // Only the kernel closes the channel and releases the lock: end of file proves to the supervisor that the process
    // is gone, and no successor opens the data while this one runs. So nothing drops the driver, not even a panic.
    let mut driver = ManuallyDrop::new(driver);
    std::thread::Builder::new().name("handoff".to_owned()).spawn(move || {
        if catch_unwind(AssertUnwindSafe(|| driver.run())).is_err() {
            driver.close_after_panic();
        }
    })?;
    Ok(())
}

impl Driver {
    pub(super) fn new(
        channel: Channel,
        id: HandoffId,
        welcome: &Welcome,
        adoption: Option<Adoption>,
        inbox: Arc<Inbox>,
        requests: Box<dyn Fn(DriverRequest) + Send>,
    ) -> Self {
        Self {
            channel: Some(channel),
            outbox: Outbox::new(usize::MAX),
            adoption,
            version: welcome.version,
            machine: Process::new(welcome.mode, id),
            inbox,
            requests,
            before_exit: Callback::default(),
            on_commit: Callback::default(),
            is_committed: false,
            drain: None,
            granted: None,
            state: None,
            release: None,
            file: None,
            data: None,
            lock: None,
            lease: None,
            heartbeat: heartbeat(welcome.lease_ms),
            next_heartbeat: None,
            lock_error: None,
            failure: None,
            lost: false,
            ended: false,
        }
    }

    fn run(&mut self) {
        while !self.ended {
            self.keep_heartbeat();
            let ready = self.wait();
            if ready.inputs {
                for input in self.inbox.drain() {
                    self.input(input);
                }
            }
            if ready.channel {
                if let Some(channel) = &self.channel {
                    // A closed channel is detected on read.
                    let _ = self.outbox.flush(channel);
                }
                self.receive();
            }
            self.clock();
            self.give_up_lost();
            let alone = self.channel.is_none();
            if let Some(adoption) = &mut self.adoption {
                adoption.is_alone(alone);
            }
            if ready.adoption {
                self.accept_adopters();
                self.give_up_lost();
            }
        }
    }

    /// Handles a panic of this thread. The server continues to serve and keeps its lock. The closed channel shows the
    /// supervisor that it can no longer control this process; the next supervisor cannot connect.
    fn close_after_panic(&mut self) {
        self.close_channel();
        self.adoption = None;
        print_error(
            &"the thread that listens to the supervisor has panicked; this process keeps serving, but can only be stopped",
        );
    }

    fn wait(&self) -> Ready {
        let rested = self.adoption.as_ref().and_then(Adoption::rested);
        let until = [self.lease, self.next_heartbeat, rested].into_iter().flatten().min();
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut fds = vec![PollFd::new(self.inbox.as_fd(), PollFlags::POLLIN)];
        let out = if self.outbox.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        let wanted = PollFlags::POLLIN | out;
        fds.extend(self.channel.iter().map(|channel| PollFd::new(channel.as_fd(), wanted)));
        let first = fds.len();
        let watched = self.adoption.iter().flat_map(Adoption::watched);
        fds.extend(watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // The only error is EINTR: check everything.
        let _ = poll(&mut fds, timeout);
        let is_ready = |fd: &PollFd<'_>| !found(fd).is_empty();
        Ready {
            inputs: is_ready(&fds[0]),
            channel: fds[1..first].iter().any(is_ready),
            adoption: fds[first..].iter().any(is_ready) || rested.is_some(),
        }
    }

    fn receive(&mut self) {
        while let Some(channel) = &self.channel {
            match recv_message::<ToService>(channel, self.version) {
                Ok(Some((id, message, fds))) => {
                    self.file = fds.into_iter().next();
                    self.message(id, message);
                    self.file = None;
                }
                Err(error) if error.would_block() => return,
                Ok(None) | Err(WireError::Io(_) | WireError::Frame(_)) => self.hang_up(),
            }
            if self.ended {
                return;
            }
        }
    }

    fn message(&mut self, id: HandoffId, message: ToService) {
        if let ToService::Grant(grant) = &message {
            self.granted = Some(Duration::from_millis(grant.end_ms));
        }
        crash_point!("library/{}/got.{}", self.role_name(), message.name());
        self.step(Event::Message(id, message));
    }

    fn step(&mut self, event: Event) {
        for action in self.machine.step(event) {
            self.perform(action);
        }
        if self.machine.state() == ProcessState::Serving && !std::mem::replace(&mut self.is_committed, true) {
            self.on_commit.act();
        }
    }

    fn clock(&mut self) {
        if self.lease.is_some_and(|lease| lease <= Instant::now()) {
            self.lease = None;
            self.step(Event::Lease);
        }
    }

    fn give_up_lost(&mut self) {
        if std::mem::take(&mut self.lost) {
            self.hang_up();
        }
    }

    fn hang_up(&mut self) {
        if self.channel.is_some() {
            self.close_channel();
            self.step(Event::Closed);
        }
    }

    fn close_channel(&mut self) {
        self.channel = None;
        self.outbox.clear();
    }

    fn accept_adopters(&mut self) {
        while !self.ended
            && let Some(adopter) = self.adoption.as_mut().and_then(Adoption::next)
        {
            self.adopt(adopter);
        }
    }

    /// Reads the old supervisor's last messages and its end of file first. A process that must not continue alone has
    /// exited by then, so only processes that can continue are adopted.
    fn adopt(&mut self, adopter: Adopter) {
        let version = match negotiate(VersionRange::OURS, adopter.adopt.versions) {
            Ok(version) => version,
            Err(error) => {
                return print_error(&format_args!("cannot be adopted by another supervisor: {error}"));
            }
        };
        self.receive();
        if !self.ended {
            self.hang_up();
        }
        if self.ended {
            return;
        }
        self.channel = Some(adopter.channel);
        self.version = version;
        self.heartbeat = heartbeat(adopter.adopt.lease_ms);
        self.next_heartbeat = None;
        self.lost = false;
        self.step(Event::Adopt(adopter.id));
    }

    fn input(&mut self, input: Input) {
        let event = match input {
            Input::Version(version) => {
                self.release = Some(version);
                return self.send_version();
            }
            Input::Started(data) => {
                self.data = data;
                Event::Started
            }
            Input::Locked(Ok(lock)) => {
                self.lock = Some(lock);
                Event::Locked
            }
            Input::Locked(Err(error)) => self.lock_failed(error),
            Input::HandOver(state, file) => {
                self.file = file;
                Event::HandOver(state)
            }
            Input::Opened(result) => Event::Opened(result),
            Input::Drained(result) => Event::DrainDone(result),
            Input::Sealed(result) => Event::SealDone(result),
            Input::Resumed(result) => Event::ResumeDone(result),
        };
        self.step(event);
    }

    fn keep_heartbeat(&mut self) {
        if !self.machine.is_working() || self.channel.is_none() {
            self.next_heartbeat = None;
            return;
        }
        let now = Instant::now();
        match self.next_heartbeat {
            Some(next) if next > now => {}
            Some(_) => {
                self.send(self.machine.handoff(), &FromService::Progress(Progress { note: String::new() }));
                self.next_heartbeat = now.checked_add(self.heartbeat);
            }
            None => self.next_heartbeat = now.checked_add(self.heartbeat),
        }
    }
}

/// A third of the lease, so that one late wake-up does not count as silence.
fn heartbeat(lease_ms: u64) -> Duration {
    Duration::from_millis((lease_ms / 3).max(1))
}

/// Unlike `eprintln!`, it does not panic when standard error has no reader.
pub(super) fn print_error(text: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "handoff: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff_protocol::ids::Generation;
    use handoff_protocol::message::{Begin, Mode, Prepare};
    use handoff_sys::wire::send_message;

    #[test]
    fn a_panic_of_its_thread_ends_the_channel_and_releases_no_lock() {
        let data = tempfile::tempdir().unwrap();
        let (supervisor, theirs) = Channel::pair().unwrap();
        let channel = Channel::from_fd(theirs).unwrap();
        channel.set_nonblocking(true).unwrap();
        let (id, version) = (HandoffId::from_bytes([7; 16]), VersionRange::OURS.current);
        let welcome = Welcome {
            version,
            service: "s".parse().unwrap(),
            generation: Generation(1),
            mode: Mode::Exclusive,
            listeners: Vec::new(),
            lease_ms: 10_000,
        };
        let inbox = Arc::new(Inbox::new().unwrap());
        // It holds the lock by the time the server receives the order to open its data.
        let requests = Box::new(|request| panic!("a panic for the test: {request:?}"));
        spawn(Driver::new(channel, id, &welcome, None, Arc::clone(&inbox), requests)).unwrap();
        inbox.push(Input::Started(Some(data.path().to_owned())));
        let prepare = ToService::Prepare(Prepare { grace_ms: 10_000, lease_ms: 10_000 });
        for message in [prepare, ToService::Begin(Begin {})] {
            send_message(&supervisor, version, id, &message, &[]).unwrap();
            if matches!(message, ToService::Prepare(_)) {
                while !matches!(
                    recv_message::<FromService>(&supervisor, version).unwrap(),
                    Some((_, FromService::Prepared(_), _))
                ) {}
            }
        }
        while recv_message::<FromService>(&supervisor, version).unwrap().is_some() {}
        assert!(DataLock::try_take(data.path()).unwrap().is_none(), "the server may still write");
    }
}
