//! Drives the machines of the service: one thread that waits for the channel, the server's threads and the clock, and
//! carries out what the machine says. No decision is taken here.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use handoff_protocol::ids::HandoffId;
use handoff_protocol::incumbent::{self, Incumbent};
use handoff_protocol::message::{FromService, Mode, Progress, ToService, Welcome};
use handoff_protocol::successor::{self, Successor};
use handoff_protocol::version::{VersionRange, negotiate};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::adoption::{Adopter, Adoption};
use super::inbox::{Inbox, Input};
use super::state::State;
use super::{Drain, Ended, Error, Seal};
use crate::crash_points::crash_point;
use crate::sys::channel::Channel;
use crate::sys::lock::DataLock;
use crate::sys::wire::{WireError, recv_message};

mod perform;

/// What the driver wants of the server.
#[derive(Debug)]
pub(super) enum Order {
    /// Open the data and accept, with what was handed over.
    Open(Option<State>),
    /// Take what the process that went before hands over.
    TakeOver(State),
    /// Run the drain code.
    Drain(Drain),
    /// Run the seal code.
    Seal(Seal),
    /// Run the resume code.
    Resume,
    /// Leave.
    End(Result<Ended, Error>),
}

/// What a process does before it exits because it is not wanted any more.
pub(super) static BEFORE_EXIT: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

enum Role {
    Successor(Successor),
    Incumbent(Incumbent),
}

/// What is worth a look.
struct Ready {
    inputs: bool,
    channel: bool,
    adoption: bool,
}

pub(super) struct Driver {
    /// `None` while there is no supervisor.
    channel: Option<Channel>,
    /// `None` if no other supervisor can come.
    adoption: Option<Adoption>,
    version: u16,
    mode: Mode,
    role: Role,
    inbox: Arc<Inbox>,
    orders: Box<dyn Fn(Order) + Send>,
    drain: Option<Drain>,
    /// What was handed over to this process, which has not begun.
    state: Option<State>,
    /// The descriptor that came with the message at hand, or is to travel with it.
    file: Option<OwnedFd>,
    data: Option<PathBuf>,
    lock: Option<DataLock>,
    lease: Option<Instant>,
    heartbeat: Duration,
    next_heartbeat: Option<Instant>,
    /// What was last said about a failure.
    failure: Option<String>,
    /// Whether an answer could not be sent.
    lost: bool,
    ended: bool,
}

pub(super) fn spawn(mut driver: Driver) -> io::Result<()> {
    std::thread::Builder::new().name("handoff".to_owned()).spawn(move || {
        driver.run();
        // Only the kernel closes the channel and releases the lock: to the supervisor the end of the file is the proof
        // that the process is gone, and no successor opens the data while this one still runs.
        std::mem::forget(driver);
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
        orders: Box<dyn Fn(Order) + Send>,
    ) -> Self {
        Self {
            channel: Some(channel),
            adoption,
            version: welcome.version,
            mode: welcome.mode,
            role: Role::Successor(Successor::new(welcome.mode, id)),
            inbox,
            orders,
            drain: None,
            state: None,
            file: None,
            data: None,
            lock: None,
            lease: None,
            heartbeat: heartbeat(welcome.lease_ms),
            next_heartbeat: None,
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
                self.receive();
            }
            self.clock();
            self.give_up_lost();
            if ready.adoption {
                self.look_for_adopters();
                self.give_up_lost();
            }
        }
    }

    fn wait(&self) -> Ready {
        let rested = self.adoption.as_ref().and_then(Adoption::rested);
        let until = [self.lease, self.next_heartbeat, rested].into_iter().flatten().min();
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = timeout.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let mut fds = vec![PollFd::new(&self.inbox, PollFlags::IN)];
        fds.extend(self.channel.iter().map(|channel| PollFd::new(channel, PollFlags::IN)));
        let first = fds.len();
        let watched = self.adoption.iter().flat_map(Adoption::watched);
        fds.extend(watched.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // A failure is an interruption by a signal: look again.
        let _ = poll(&mut fds, timeout.as_ref());
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
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
        match &mut self.role {
            Role::Successor(machine) => {
                crash_point!("library/successor/got.{}", message.name());
                let actions = machine.step(successor::Event::Message(id, message));
                self.as_successor(actions);
            }
            Role::Incumbent(machine) => {
                crash_point!("library/incumbent/got.{}", message.name());
                let actions = machine.step(incumbent::Event::Message(id, message));
                self.as_incumbent(actions);
            }
        }
    }

    /// Gives whichever machine there is its form of an event that both know.
    fn step(&mut self, to_successor: successor::Event, to_incumbent: incumbent::Event) {
        match &mut self.role {
            Role::Successor(machine) => {
                let actions = machine.step(to_successor);
                self.as_successor(actions);
            }
            Role::Incumbent(machine) => {
                let actions = machine.step(to_incumbent);
                self.as_incumbent(actions);
            }
        }
    }

    fn closed(&mut self) {
        self.step(successor::Event::Closed, incumbent::Event::Closed);
    }

    fn locked(&mut self) {
        self.step(successor::Event::Locked, incumbent::Event::Locked);
    }

    fn clock(&mut self) {
        if self.lease.is_some_and(|lease| lease <= Instant::now()) {
            self.lease = None;
            self.step(successor::Event::Lease, incumbent::Event::Lease);
        }
    }

    fn give_up_lost(&mut self) {
        if std::mem::take(&mut self.lost) {
            self.hang_up();
        }
    }

    fn hang_up(&mut self) {
        if self.channel.take().is_some() {
            self.closed();
        }
    }

    fn look_for_adopters(&mut self) {
        while !self.ended
            && let Some(adopter) = self.adoption.as_mut().and_then(Adoption::next)
        {
            self.adopt(adopter);
        }
    }

    /// What the old supervisor said last comes first, then its end: a process that is not to go on alone is gone by
    /// then. So what is adopted is always one that does.
    fn adopt(&mut self, adopter: Adopter) {
        let version = match negotiate(VersionRange::OURS, adopter.adopt.versions) {
            Ok(version) => version,
            Err(error) => return say(&format_args!("a supervisor that came is sent away: {error}")),
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
        self.step(successor::Event::Adopt(adopter.id), incumbent::Event::Adopt(adopter.id));
    }

    fn input(&mut self, input: Input) {
        let input = match input {
            Input::Started(data) => {
                self.data = data;
                Input::Started(None)
            }
            Input::Locked(Ok(lock)) => {
                self.lock = Some(lock);
                return self.locked();
            }
            Input::Locked(Err(error)) => return self.lock_failed(error),
            Input::HandOver(state, file) => {
                self.file = file;
                Input::HandOver(state, None)
            }
            other => other,
        };
        match &mut self.role {
            Role::Successor(machine) => {
                let event = match input {
                    Input::Started(_) => successor::Event::Started,
                    Input::Opened(result) => successor::Event::Opened(result),
                    Input::Sealed(_) => successor::Event::SealDone,
                    Input::Drained(_) | Input::Resumed(_) | Input::Locked(_) | Input::HandOver(..) => return,
                };
                let actions = machine.step(event);
                self.as_successor(actions);
            }
            Role::Incumbent(machine) => {
                let event = match input {
                    Input::HandOver(state, _) => incumbent::Event::HandOver(state),
                    Input::Drained(result) => incumbent::Event::DrainDone(result),
                    Input::Sealed(result) => incumbent::Event::SealDone(result),
                    Input::Resumed(result) => incumbent::Event::ResumeDone(result),
                    Input::Started(_) | Input::Opened(_) | Input::Locked(_) => return,
                };
                let actions = machine.step(event);
                self.as_incumbent(actions);
            }
        }
    }

    fn keep_heartbeat(&mut self) {
        let (working, id) = match &self.role {
            Role::Successor(machine) => (machine.is_working(), machine.handoff()),
            Role::Incumbent(machine) => (machine.is_working(), machine.handoff()),
        };
        if !working || self.channel.is_none() {
            self.next_heartbeat = None;
            return;
        }
        let now = Instant::now();
        match self.next_heartbeat {
            Some(next) if next > now => {}
            Some(_) => {
                self.send(id, &FromService::Progress(Progress { note: String::new() }));
                self.next_heartbeat = now.checked_add(self.heartbeat);
            }
            None => self.next_heartbeat = now.checked_add(self.heartbeat),
        }
    }
}

/// A third of what the supervisor tolerates, so that one late wake-up is no silence.
fn heartbeat(lease_ms: u64) -> Duration {
    Duration::from_millis((lease_ms / 3).max(1))
}

/// Unlike `eprintln!` it does not panic when nobody reads the standard error any more.
pub(super) fn say(text: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "handoff: {text}");
}
