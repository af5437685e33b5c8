//! Drives the machines of the service: one thread that waits for the channel, the server's threads and the clock, and
//! carries out what the machine says. No decision is taken here.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handoff_protocol::ids::HandoffId;
use handoff_protocol::incumbent::{self, Incumbent};
use handoff_protocol::message::{FromService, Mode, Progress, ToService, Welcome};
use handoff_protocol::successor::{self, Successor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::inbox::{Inbox, Input};
use super::{Drain, Ended, Error, Seal};
use crate::sys::channel::Channel;
use crate::sys::lock::DataLock;
use crate::sys::wire::{WireError, recv_message, send_message};

/// What the driver wants of the server.
#[derive(Debug)]
pub(super) enum Order {
    /// Open the data and accept.
    Open(Result<(), Error>),
    /// Run the drain code.
    Drain(Drain),
    /// Run the seal code.
    Seal(Seal),
    /// Run the resume code.
    Resume,
    /// Leave.
    End(Result<Ended, Error>),
}

enum Role {
    Successor(Successor),
    Incumbent(Incumbent),
}

pub(super) struct Driver {
    /// `None` once it is closed.
    channel: Option<Channel>,
    version: u16,
    mode: Mode,
    role: Role,
    inbox: Arc<Inbox>,
    orders: Box<dyn Fn(Order) + Send>,
    drain: Option<Drain>,
    data: Option<PathBuf>,
    lock: Option<DataLock>,
    lease: Option<Instant>,
    /// A third of what the supervisor tolerates, so that one late wake-up is no silence.
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
        inbox: Arc<Inbox>,
        orders: Box<dyn Fn(Order) + Send>,
    ) -> Self {
        Self {
            channel: Some(channel),
            version: welcome.version,
            mode: welcome.mode,
            role: Role::Successor(Successor::new(welcome.mode, id)),
            inbox,
            orders,
            drain: None,
            data: None,
            lock: None,
            lease: None,
            heartbeat: Duration::from_millis((welcome.lease_ms / 3).max(1)),
            next_heartbeat: None,
            failure: None,
            lost: false,
            ended: false,
        }
    }

    fn run(&mut self) {
        while !self.ended {
            self.keep_heartbeat();
            let (readable, inputs) = self.wait();
            if inputs {
                for input in self.inbox.drain() {
                    self.input(input);
                }
            }
            if readable {
                self.receive();
            }
            self.clock();
            if std::mem::take(&mut self.lost) && self.channel.take().is_some() {
                self.closed();
            }
        }
    }

    fn wait(&self) -> (bool, bool) {
        let until = [self.lease, self.next_heartbeat].into_iter().flatten().min();
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = timeout.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let mut fds = vec![PollFd::new(&self.inbox, PollFlags::IN)];
        if let Some(channel) = &self.channel {
            fds.push(PollFd::new(channel, PollFlags::IN));
        }
        // A failure is an interruption by a signal: look again.
        let _ = poll(&mut fds, timeout.as_ref());
        let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        (ready(1), ready(0))
    }

    fn receive(&mut self) {
        while let Some(channel) = &self.channel {
            match recv_message::<ToService>(channel, self.version) {
                Ok(Some((id, message, _))) => self.message(id, message),
                Err(error) if error.would_block() => return,
                Ok(None) | Err(WireError::Io(_) | WireError::Frame(_)) => {
                    self.channel = None;
                    self.closed();
                }
            }
            if self.ended {
                return;
            }
        }
    }

    fn message(&mut self, id: HandoffId, message: ToService) {
        match &mut self.role {
            Role::Successor(machine) => {
                let actions = machine.step(successor::Event::Message(id, message));
                self.as_successor(actions);
            }
            Role::Incumbent(machine) => {
                let actions = machine.step(incumbent::Event::Message(id, message));
                self.as_incumbent(actions);
            }
        }
    }

    fn closed(&mut self) {
        match &mut self.role {
            Role::Successor(machine) => {
                let actions = machine.step(successor::Event::Closed);
                self.as_successor(actions);
            }
            Role::Incumbent(machine) => {
                let actions = machine.step(incumbent::Event::Closed);
                self.as_incumbent(actions);
            }
        }
    }

    fn clock(&mut self) {
        if self.lease.is_some_and(|lease| lease <= Instant::now()) {
            self.lease = None;
            match &mut self.role {
                Role::Successor(machine) => {
                    let actions = machine.step(successor::Event::Lease);
                    self.as_successor(actions);
                }
                Role::Incumbent(machine) => {
                    let actions = machine.step(incumbent::Event::Lease);
                    self.as_incumbent(actions);
                }
            }
        }
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
            other => other,
        };
        match &mut self.role {
            Role::Successor(machine) => {
                let event = match input {
                    Input::Started(_) => successor::Event::Started,
                    Input::Opened(result) => successor::Event::Opened(result),
                    Input::Sealed(_) => successor::Event::SealDone,
                    Input::Drained(_) | Input::Resumed(_) | Input::Locked(_) => return,
                };
                let actions = machine.step(event);
                self.as_successor(actions);
            }
            Role::Incumbent(machine) => {
                let event = match input {
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

    fn as_successor(&mut self, actions: Vec<successor::Action>) {
        for action in actions {
            match action {
                successor::Action::Send(id, message) => {
                    if let FromService::Ready(ready) = &message {
                        self.failure = Some(ready.reason.clone());
                    }
                    self.send(id, &message);
                }
                successor::Action::HangUp => self.channel = None,
                successor::Action::TakeLock => self.take_lock(),
                successor::Action::Open => (self.orders)(Order::Open(Ok(()))),
                successor::Action::ArmLease { lease_ms } => self.arm_lease(lease_ms),
                successor::Action::DisarmLease => self.lease = None,
                successor::Action::Leave { grace_ms } => {
                    self.order_drain(grace_ms);
                    (self.orders)(Order::Seal(Seal { cut: true }));
                }
                successor::Action::BecomeIncumbent => {
                    if let Role::Successor(machine) = &self.role {
                        let mut incumbent = Incumbent::new(self.mode, machine.handoff());
                        if self.channel.is_none() {
                            // Nothing was taken from it yet, so there is nothing to do.
                            let _ = incumbent.step(incumbent::Event::Closed);
                        }
                        self.role = Role::Incumbent(incumbent);
                    }
                }
                successor::Action::Exit { code } => self.leave_at_once(code),
            }
        }
    }

    fn as_incumbent(&mut self, actions: Vec<incumbent::Action>) {
        for action in actions {
            match action {
                incumbent::Action::Send(id, message) => {
                    if let FromService::ResumeFailed(failed) = &message {
                        self.failure = Some(failed.reason.clone());
                    }
                    self.send(id, &message);
                }
                incumbent::Action::HangUp => self.channel = None,
                incumbent::Action::Drain { grace_ms } => self.order_drain(grace_ms),
                incumbent::Action::CancelDrain => {
                    if let Some(drain) = self.drain.take() {
                        drain.cancel();
                    }
                }
                incumbent::Action::Seal { cut } => (self.orders)(Order::Seal(Seal { cut })),
                incumbent::Action::ReleaseLock => {
                    // Closing unlocks too, unless a child that was forked without exec keeps a duplicate.
                    if let Some(Err(error)) = self.lock.take().map(DataLock::release) {
                        say(&error);
                    }
                }
                incumbent::Action::TakeLock => self.take_lock(),
                incumbent::Action::Resume => (self.orders)(Order::Resume),
                incumbent::Action::ArmLease { lease_ms } => self.arm_lease(lease_ms),
                incumbent::Action::DisarmLease => self.lease = None,
                incumbent::Action::Exit { code: 0 } => self.end(Ok(Ended::Released)),
                incumbent::Action::Exit { .. } => {
                    let reason = self.failure.take().unwrap_or_default();
                    self.end(Err(Error::ResumeFailed(reason)));
                }
            }
        }
    }

    /// A supervisor that reads nothing for so long that its queue is full misses a sign of life. If it would miss an
    /// answer, it is given up. That the channel is closed is seen where it is read, after what was sent before.
    fn send(&mut self, id: HandoffId, message: &FromService) {
        let Some(channel) = &self.channel else { return };
        match send_message(channel, self.version, id, message, &[]) {
            Err(error) if error.would_block() && !matches!(message, FromService::Progress(_)) => {
                self.lost = true
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn order_drain(&mut self, grace_ms: u64) {
        let drain = Drain::new(Duration::from_millis(grace_ms));
        self.drain = Some(drain.clone());
        (self.orders)(Order::Drain(drain));
    }

    fn arm_lease(&mut self, lease_ms: u64) {
        self.lease = Instant::now().checked_add(Duration::from_millis(lease_ms));
    }

    /// Takes the lock at once if it is free; otherwise a thread waits for it without end.
    fn take_lock(&mut self) {
        let Some(data) = &self.data else { return self.locked() };
        match DataLock::try_take(data) {
            Ok(Some(lock)) => {
                self.lock = Some(lock);
                self.locked();
            }
            Ok(None) => self.wait_for_lock(data.clone()),
            Err(error) => self.lock_failed(error),
        }
    }

    fn wait_for_lock(&mut self, data: PathBuf) {
        let inbox = Arc::clone(&self.inbox);
        let waiter = std::thread::Builder::new()
            .name("handoff-lock".to_owned())
            .spawn(move || inbox.push(Input::Locked(DataLock::take_blocking(&data))));
        if let Err(error) = waiter {
            self.lock_failed(error);
        }
    }

    fn locked(&mut self) {
        match &mut self.role {
            Role::Successor(machine) => {
                let actions = machine.step(successor::Event::Locked);
                self.as_successor(actions);
            }
            Role::Incumbent(machine) => {
                let actions = machine.step(incumbent::Event::Locked);
                self.as_incumbent(actions);
            }
        }
    }

    /// Without its lock the process can never write: it says so and ends.
    fn lock_failed(&mut self, source: io::Error) {
        if let Role::Successor(machine) = &mut self.role {
            let actions = machine.step(successor::Event::Opened(Err(source.to_string())));
            self.as_successor(actions);
        } else {
            self.end(Err(Error::Lock(source)));
        }
    }

    fn end(&mut self, end: Result<Ended, Error>) {
        (self.orders)(Order::End(end));
        self.ended = true;
    }

    /// A successor that is not wanted has touched nothing that it would have to put in order.
    fn leave_at_once(&mut self, code: i32) {
        if code == 0 {
            say(&"this process is not wanted any more and exits");
            std::process::exit(0);
        }
        let reason = self.failure.take().unwrap_or_default();
        self.end(Err(Error::Unhealthy(reason)));
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

/// Unlike `eprintln!` it does not panic when nobody reads the standard error any more.
fn say(text: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "handoff: {text}");
}
