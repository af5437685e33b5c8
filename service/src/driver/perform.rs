//! Performs the machine's actions, one arm each.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handoff_protocol::frame::Message;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{Failed, FromService, Ready, Release, Stage};
use handoff_protocol::process::{Action, Event, Role};

use super::{Driver, DriverRequest, print_error};
use crate::inbox::Input;
use crate::state::{SuccessorLink, unpack};
use crate::{Drain, Ended, Error, Seal};
use handoff_crash_points::{crash_point, name};
use handoff_sys::lock::DataLock;
use handoff_sys::wire::{WireError, send_message};

/// How long to wait for unsent messages before the process exits.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) fn perform(&mut self, action: Action) {
        crash_point!("library/{}/{}", self.role_name(), name(&action));
        match action {
            Action::Send(id, message) => {
                if let FromService::Ready(Ready { reason, .. })
                | FromService::ResumeFailed(Failed { reason }) = &message
                {
                    self.failure = Some(reason.clone());
                }
                self.send(id, &message);
            }
            Action::Adopted(id, stage) => self.adopted(id, stage),
            Action::KeepState(state) => self.keep_state(state),
            Action::TakeOver(state) => match unpack(state, self.file.take()) {
                Ok(state) => (self.requests)(DriverRequest::TakeOver(state)),
                Err(error) => print_error(&error),
            },
            Action::HangUp => self.close_channel(),
            Action::TakeLock => self.take_lock(),
            Action::ReleaseLock => {
                // Closing unlocks too, unless a child forked without exec keeps a duplicate.
                if let Some(Err(error)) = self.lock.take().map(DataLock::release) {
                    print_error(&error);
                }
            }
            Action::Open => {
                let state = self.state.take();
                (self.requests)(DriverRequest::Open(state));
            }
            Action::Drain { grace_ms, refused } => self.order_drain(grace_ms, refused),
            Action::CancelDrain => {
                if let Some(drain) = self.drain.take() {
                    drain.cancel();
                }
            }
            Action::Seal { cut } => self.order_seal(cut),
            Action::Resume => (self.requests)(DriverRequest::Resume),
            Action::ArmLease { lease_ms } => self.arm_lease(lease_ms),
            Action::DisarmLease => self.lease = None,
            Action::Exit { code } => self.exit(code),
        }
    }

    fn adopted(&mut self, id: HandoffId, stage: Stage) {
        let (Some(channel), Some(adoption)) = (&self.channel, &self.adoption) else { return };
        let (answer, fds) = adoption.answer(self.version, stage);
        // A supervisor that does not get this answer has not adopted the process.
        self.lost = send_message(channel, self.version, id, &answer, &fds).is_err();
        crash_point!("library/{}/sent.Adopted", self.role_name());
        self.send_version();
    }

    /// Sends the server's version. Supervisors with an earlier protocol version do not receive it.
    pub(super) fn send_version(&mut self) {
        let Some(version) = self.release.clone() else { return };
        let message = FromService::Release(Release { version });
        if self.version >= message.since() {
            let id = self.machine.handoff();
            self.send(id, &message);
        }
    }

    /// Sends or queues a message. Drops `Progress` while the queue is not empty. Everything else waits for room; if the
    /// queue is full because the supervisor reads nothing, the process gives up the connection. A closed channel is
    /// detected on read, after everything that was sent before.
    pub(super) fn send(&mut self, id: HandoffId, message: &FromService) {
        let Some(channel) = &self.channel else { return };
        if matches!(message, FromService::Progress(_)) && !self.outbox.is_empty() {
            return;
        }
        let file = self.file.take();
        let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        match self.outbox.send(channel, self.version, id, message, &fds) {
            Err(WireError::Frame(error)) => {
                print_error(&format_args!("{} is not sent: {error}", message.name()))
            }
            Err(error) if error.would_block() => self.lost = true,
            Ok(()) | Err(_) => {}
        }
        crash_point!("library/{}/sent.{}", self.role_name(), message.name());
    }

    /// For the names of crash points.
    pub(super) fn role_name(&self) -> &'static str {
        match self.machine.role() {
            Role::Successor => "successor",
            Role::Incumbent => "incumbent",
        }
    }

    fn order_drain(&mut self, grace_ms: u64, refused: bool) {
        let drain =
            Drain::new(Duration::from_millis(grace_ms), SuccessorLink::new(Arc::clone(&self.inbox)), refused);
        self.drain = Some(drain.clone());
        (self.requests)(DriverRequest::Drain(drain));
    }

    fn order_seal(&mut self, cut: bool) {
        let successor = SuccessorLink::new(Arc::clone(&self.inbox));
        (self.requests)(DriverRequest::Seal(Seal {
            mode: self.machine.mode(),
            cut,
            grant: self.granted.take(),
            successor,
        }));
    }

    /// A process that cannot read its predecessor's state cannot take over.
    fn keep_state(&mut self, state: handoff_protocol::state::State) {
        match unpack(state, self.file.take()) {
            Ok(state) => self.state = Some(state),
            Err(error) => self.unfit(error),
        }
    }

    fn arm_lease(&mut self, lease_ms: u64) {
        self.lease = Instant::now().checked_add(Duration::from_millis(lease_ms));
    }

    /// Takes the lock at once if it is free. Otherwise a thread waits for it without limit.
    fn take_lock(&mut self) {
        let Some(data) = &self.data else { return self.step(Event::Locked) };
        match DataLock::try_take(data) {
            Ok(Some(lock)) => {
                self.lock = Some(lock);
                self.step(Event::Locked);
            }
            Ok(None) => self.wait_for_lock(data.clone()),
            Err(error) => {
                let event = self.lock_failed(error);
                self.step(event);
            }
        }
    }

    fn wait_for_lock(&mut self, data: PathBuf) {
        let inbox = Arc::clone(&self.inbox);
        let waiter = std::thread::Builder::new()
            .name("handoff-lock".to_owned())
            .spawn(move || inbox.push(Input::Locked(DataLock::take_blocking(&data))));
        if let Err(error) = waiter {
            let event = self.lock_failed(error);
            self.step(event);
        }
    }

    pub(super) fn lock_failed(&mut self, error: io::Error) -> Event {
        let reason = error.to_string();
        self.lock_error = Some(error);
        Event::LockFailed(reason)
    }

    fn unfit(&mut self, reason: String) {
        self.step(Event::Opened(Err(reason)));
    }

    fn end(&mut self, end: Result<Ended, Error>) {
        // Unsent messages are lost when the process exits.
        if let Some(channel) = &self.channel {
            let _ = self.outbox.flush_by(channel, Instant::now() + FLUSH_TIMEOUT);
        }
        self.adoption = None;
        (self.requests)(DriverRequest::End(end));
        self.ended = true;
    }

    fn exit(&mut self, code: i32) {
        let reason = self.failure.take().unwrap_or_default();
        match (self.machine.role(), code) {
            (Role::Successor, 0) => self.exit_at_once(),
            (Role::Successor, _) => self.end(Err(Error::Unhealthy(reason))),
            (Role::Incumbent, 0) => self.end(Ok(Ended::Released)),
            (Role::Incumbent, _) => {
                let lock = self.lock_error.take().map(Error::Lock);
                self.end(Err(lock.unwrap_or(Error::ResumeFailed(reason))));
            }
        }
    }

    /// A dismissed successor has touched nothing that needs cleanup.
    fn exit_at_once(&mut self) {
        self.adoption = None;
        print_error(&"the supervisor has dismissed this process; it exits");
        self.before_exit.act();
        std::process::exit(0);
    }
}
