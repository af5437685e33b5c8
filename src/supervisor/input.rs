//! The inputs of a service: everything that its tasks find enters here, one at a time, in the order in which it was
//! found.
//!
//! A task has a sender, and nothing else of the service. An input may be out of date when it is taken, because
//! another one came first. So a timer, a wait and a process have a number ([`Token`]), by which a late input of one
//! that is over is recognized.

use std::cell::RefCell;
use std::io;
use std::rc::Weak;

use handoff_protocol::deadline::Deadline;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::supervisor::WatchReason;
use tokio::sync::{mpsc, oneshot};

use super::monitor::{ShareMeasurement, ShareStep};
use super::operations::{Operation, OperationRequest};
use super::process::{LocatedProgram, ProcessEvent, Token, UnclaimedProcess};
use super::rollout::{CancelCause, CancelledWork, ImportResult, Origin, PathUpdate};
use super::service::Service;
use crate::journal::Compaction;
use crate::probe::{CommandEnvironment, Failure};
use crate::slots::ProbeRoute;

/// Takes the answer to a question.
pub(super) type Reply<T> = oneshot::Sender<T>;

/// An event, or a question of a task.
pub(super) enum Input {
    /// A client, or the daemon itself, asks for an operation.
    Request(OperationRequest, Operation),
    /// A stop or a cancellation begins: calls off the work before a start or an upgrade, after the orders that came
    /// first.
    CallOff(CancelCause, Reply<CancelledWork>),
    /// An event of a process.
    Process(Token, ProcessEvent),
    /// The result of the search for the program of a process.
    Located(LocatedProgram),
    /// Where that program came from.
    Origin(Origin),
    /// A process was started, or could not be.
    Spawned(Token, io::Result<UnclaimedProcess>),
    /// A deadline is over.
    Deadline(Deadline, Token),
    /// The disk has a durable fact, or has refused it.
    Synced(Token, io::Result<()>),
    /// A shorter journal is beside the one in use, or could not be written.
    CompactionStaged(io::Result<Compaction>),
    /// The disk has the shorter journal in place of the other one, or has refused it.
    CompactionSynced(io::Result<()>),
    /// The disk has a journal that was written again, or has refused it.
    Restored(io::Result<()>),
    /// It is time to try a start without a client again.
    RetryDue(Token),
    /// The version for such a start was brought in, or could not be.
    FirstImported(Token, ImportResult),
    /// It is time to check whether the slot of the outgoing process is quiet.
    QuietDue(HandoffId),
    /// A probe has passed, or has failed until its limit.
    Probed(HandoffId, Result<(), String>),
    /// Asks for a route to a listener of the probed process; `None` if no process is probed.
    Route(HandoffId, String, Reply<Option<io::Result<ProbeRoute>>>),
    /// The route is no longer needed.
    EndRoute(HandoffId, String, Reply<io::Result<()>>),
    /// Asks whether the listener of the probed process still listens.
    Listens(String, Reply<bool>),
    /// Asks for the environment of a command that probes a process.
    CommandEnvironment(Reply<CommandEnvironment>),
    /// Asks whether the result of this probe is still needed.
    IsProbing(HandoffId, Reply<bool>),
    /// Asks what can be seen of the watched process.
    CheckWatched(Reply<Result<(), Failure>>),
    /// The watched process is unwell.
    Condemned(HandoffId, WatchReason, String),
    /// Asks for the process that takes its lock now.
    LockTaker(HandoffId, Reply<Option<u32>>),
    /// Another process keeps that one from its lock.
    LockConflict(HandoffId, u32, String),
    /// Asks for the processes that share new connections, as long as the step lasts.
    SharingPids(ShareStep, Reply<Option<[Option<u32>; 2]>>),
    /// How many connections each of them got.
    Measured(ShareStep, ShareMeasurement),
    /// News of a watched path.
    Path(PathUpdate),
    /// A path of a unix socket has changed.
    PathsChanged,
    /// Strangers may have left the slots.
    RepairDue,
    /// The kernel reports something about a listener of the serving process.
    ListenersReady(Token),
    /// It is time to check the listeners of the serving process.
    ListenersDue(Token, IsFirst),
}

/// Whether it is the first check.
pub(super) type IsFirst = bool;

/// An input, and the task that waits until the service has taken it.
struct Delivery {
    input: Input,
    taken: Option<Reply<()>>,
}

/// The way from a task to its service, as long as the service exists.
#[derive(Debug, Clone)]
pub(super) struct Inputs(mpsc::UnboundedSender<Delivery>);

/// The receiving end of the inputs of a service.
pub(super) struct Inbox(mpsc::UnboundedReceiver<Delivery>);

/// Creates both ends.
pub(super) fn inbox() -> (Inputs, Inbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Inputs(sender), Inbox(receiver))
}

impl Inputs {
    /// Sends an input. Does not wait until it is taken.
    pub(super) fn send(&self, input: Input) {
        // A service that is gone needs no input.
        let _ = self.0.send(Delivery { input, taken: None });
    }

    /// Completes when the service has taken the input, with everything that follows from it. `false` if the service
    /// is gone.
    pub(super) async fn deliver(&self, input: Input) -> bool {
        let (taken, done) = oneshot::channel();
        let _ = self.0.send(Delivery { input, taken: Some(taken) });
        done.await.is_ok()
    }

    /// Asks a question. `None` if the service is gone.
    pub(super) async fn ask<T>(&self, question: impl FnOnce(Reply<T>) -> Input) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.send(question(reply));
        answer.await.ok()
    }
}

impl Inbox {
    /// Lets the service take one input after the other, until it is gone.
    pub(super) async fn drain(mut self, service: Weak<RefCell<Service>>) {
        while let Some(Delivery { input, taken }) = self.0.recv().await {
            let Some(service) = service.upgrade() else { return };
            let mut service = service.borrow_mut();
            let _span = service.span.clone().entered();
            service.take(input);
            service.publish();
            drop(service);
            // The sender may be gone.
            let _ = taken.map(|taken| taken.send(()));
        }
    }
}

/// Answers a question. The task that asked may be gone.
fn answer<T>(reply: Reply<T>, answer: T) {
    let _ = reply.send(answer);
}

impl Service {
    fn take(&mut self, input: Input) {
        match input {
            Input::Request(order, operation) => self.perform_request(order, operation),
            Input::CallOff(what, reply) => answer(reply, self.call_off_before(what)),
            Input::Process(token, event) => self.process_event(token, event),
            Input::Located(found) => self.found(found),
            Input::Origin(origin) => self.remember_origin(origin),
            Input::Spawned(token, spawned) => self.spawned(token, spawned),
            Input::Deadline(deadline, token) => self.deadline_over(deadline, token),
            Input::Synced(token, synced) => self.synced(token, synced),
            Input::CompactionStaged(staged) => self.compaction_staged(staged),
            Input::CompactionSynced(synced) => self.compaction_synced(synced),
            Input::Restored(synced) => self.journal_restored(synced),
            Input::RetryDue(token) => self.start_again(token),
            Input::FirstImported(token, brought) => self.first_imported(token, brought),
            Input::QuietDue(id) => self.check_quiet(id),
            Input::Probed(id, result) => self.probed(id, result),
            Input::Route(id, listener, reply) => {
                if reply.send(self.route_to_tried(id, &listener)).is_err() {
                    // The probe was given up meanwhile.
                    let _ = self.end_route(id, &listener);
                }
            }
            Input::EndRoute(id, listener, reply) => answer(reply, self.end_route(id, &listener)),
            Input::Listens(listener, reply) => answer(reply, self.listens_for_tried(&listener)),
            Input::CommandEnvironment(reply) => answer(reply, self.surroundings()),
            Input::IsProbing(id, reply) => answer(reply, self.is_probing(id)),
            Input::CheckWatched(reply) => answer(reply, self.check_watched()),
            Input::Condemned(id, watch, why) => self.condemn(id, watch, why),
            Input::LockTaker(id, reply) => answer(reply, self.lock_taker(id)),
            Input::LockConflict(id, pid, trouble) => self.note_lock_conflict(id, pid, trouble),
            Input::SharingPids(step, reply) => answer(reply, self.sharing_pids(step)),
            Input::Measured(step, measured) => self.note_measured(step, measured),
            Input::Path(update) => self.path_updated(update),
            Input::PathsChanged => self.restore_paths(),
            Input::RepairDue => self.repair_slots(),
            Input::ListenersReady(token) => self.listeners_ready(token),
            Input::ListenersDue(token, is_first) => self.listeners_due(token, is_first),
        }
    }
}
