//! Carries out what the machines say, one arm for each action.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handoff_protocol::ids::HandoffId;
use handoff_protocol::incumbent::{self, Incumbent};
use handoff_protocol::message::{FromService, Stage};
use handoff_protocol::successor;

use super::{BEFORE_EXIT, Driver, Order, Role, say};
use crate::crash_points::{crash_point, name};
use crate::service::inbox::Input;
use crate::service::state::{Heir, unpack};
use crate::service::{Drain, Ended, Error, Seal};
use crate::sys::lock::DataLock;
use crate::sys::wire::{WireError, send_message};

impl Driver {
    pub(super) fn as_successor(&mut self, actions: Vec<successor::Action>) {
        for action in actions {
            crash_point!("library/successor/{}", name(&action));
            match action {
                successor::Action::Send(id, message) => {
                    if let FromService::Ready(ready) = &message {
                        self.failure = Some(ready.reason.clone());
                    }
                    self.send(id, &message);
                }
                successor::Action::Adopted(id, stage) => self.adopted(id, stage),
                successor::Action::KeepState(state) => self.keep_state(state),
                successor::Action::HangUp => self.channel = None,
                successor::Action::TakeLock => self.take_lock(),
                successor::Action::Open => {
                    let state = self.state.take();
                    (self.orders)(Order::Open(state));
                }
                successor::Action::ArmLease { lease_ms } => self.arm_lease(lease_ms),
                successor::Action::DisarmLease => self.lease = None,
                successor::Action::Leave { grace_ms } => {
                    self.order_drain(grace_ms);
                    self.order_seal(true);
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

    pub(super) fn as_incumbent(&mut self, actions: Vec<incumbent::Action>) {
        for action in actions {
            crash_point!("library/incumbent/{}", name(&action));
            match action {
                incumbent::Action::Send(id, message) => {
                    if let FromService::ResumeFailed(failed) = &message {
                        self.failure = Some(failed.reason.clone());
                    }
                    self.send(id, &message);
                }
                incumbent::Action::Adopted(id, stage) => self.adopted(id, stage),
                incumbent::Action::TakeOver(state) => match unpack(state, self.file.take()) {
                    Ok(state) => (self.orders)(Order::TakeOver(state)),
                    Err(error) => say(&error),
                },
                incumbent::Action::HangUp => self.channel = None,
                incumbent::Action::Drain { grace_ms } => self.order_drain(grace_ms),
                incumbent::Action::CancelDrain => {
                    if let Some(drain) = self.drain.take() {
                        drain.cancel();
                    }
                }
                incumbent::Action::Seal { cut } => self.order_seal(cut),
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

    fn adopted(&mut self, id: HandoffId, stage: Stage) {
        let (Some(channel), Some(adoption)) = (&self.channel, &self.adoption) else { return };
        let (answer, fds) = adoption.answer(self.version, stage);
        // A supervisor that does not get the answer does not know this process.
        self.lost = send_message(channel, self.version, id, &answer, &fds).is_err();
        crash_point!("library/{}/sent.Adopted", self.role_name());
    }

    /// A supervisor that reads nothing for so long that its queue is full misses a sign of life. If it would miss an
    /// answer, it is given up. That the channel is closed is seen where it is read, after what was sent before.
    pub(super) fn send(&mut self, id: HandoffId, message: &FromService) {
        let Some(channel) = &self.channel else { return };
        let file = self.file.take();
        let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        match send_message(channel, self.version, id, message, &fds) {
            Err(WireError::Frame(error)) => say(&format_args!("{} is not sent: {error}", message.name())),
            Err(error) if error.would_block() && !matches!(message, FromService::Progress(_)) => {
                self.lost = true
            }
            Ok(()) | Err(_) => {}
        }
        crash_point!("library/{}/sent.{}", self.role_name(), message.name());
    }

    /// For the names of points.
    fn role_name(&self) -> &'static str {
        match self.role {
            Role::Successor(_) => "successor",
            Role::Incumbent(_) => "incumbent",
        }
    }

    fn order_drain(&mut self, grace_ms: u64) {
        let drain = Drain::new(Duration::from_millis(grace_ms), Heir::new(Arc::clone(&self.inbox)));
        self.drain = Some(drain.clone());
        (self.orders)(Order::Drain(drain));
    }

    fn order_seal(&mut self, cut: bool) {
        let heir = Heir::new(Arc::clone(&self.inbox));
        (self.orders)(Order::Seal(Seal { cut, heir }));
    }

    /// A process that cannot take what was handed over is not fit to follow.
    fn keep_state(&mut self, state: handoff_protocol::state::State) {
        match unpack(state, self.file.take()) {
            Ok(state) => self.state = Some(state),
            Err(error) => self.unfit(error),
        }
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

    /// Without its lock the process can never write: it says so and ends.
    pub(super) fn lock_failed(&mut self, source: io::Error) {
        match &self.role {
            Role::Successor(_) => self.unfit(source.to_string()),
            Role::Incumbent(_) => self.end(Err(Error::Lock(source))),
        }
    }

    fn unfit(&mut self, reason: String) {
        if let Role::Successor(machine) = &mut self.role {
            let actions = machine.step(successor::Event::Opened(Err(reason)));
            self.as_successor(actions);
        }
    }

    fn end(&mut self, end: Result<Ended, Error>) {
        self.adoption = None;
        (self.orders)(Order::End(end));
        self.ended = true;
    }

    /// A successor that is not wanted has touched nothing that it would have to put in order.
    fn leave_at_once(&mut self, code: i32) {
        if code == 0 {
            self.adoption = None;
            say(&"this process is not wanted any more and exits");
            if let Some(act) = BEFORE_EXIT.get() {
                act();
            }
            std::process::exit(0);
        }
        let reason = self.failure.take().unwrap_or_default();
        self.end(Err(Error::Unhealthy(reason)));
    }
}
