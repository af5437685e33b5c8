//! What happens to a service: whatever its tasks find comes in here, one at a time and in the order in which it was found.
//!
//! A task has a sender, and nothing else of the service. What it sends may be out of date when it is taken, for another input
//! came first: so a timer, a wait and a process have a number ([`Serial`]), by which a late word of one that is over is known.

use std::cell::RefCell;
use std::io;
use std::rc::Weak;

use handoff_protocol::deadline::Deadline;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::supervisor::Watch;
use tokio::sync::{mpsc, oneshot};

use super::monitor::{Measured, Step};
use super::operations::{Operation, Order};
use super::process::{Found, ProcessEvent, Serial, Unclaimed};
use super::rollout::{Brought, CallOff, CalledOff, Origin, PathNews};
use super::service::Service;
use crate::journal::Compaction;
use crate::probe::{Failure, Surroundings};
use crate::slots::ProbeRoute;

/// Where the answer to a question goes.
pub(super) type Reply<T> = oneshot::Sender<T>;

/// One thing that has happened, or that a task has to know.
pub(super) enum Input {
    /// A client, or the daemon itself, asks for something.
    Order(Order, Operation),
    /// A stop or a cancellation begins: what comes before a start or an upgrade is called off. After the orders that came first.
    CallOff(CallOff, Reply<CalledOff>),
    /// A process did something.
    Process(Serial, ProcessEvent),
    /// It was looked for what a process is to be started from.
    Found(Found),
    /// Where that came from.
    Origin(Origin),
    /// A process was started, or could not be.
    Spawned(Serial, io::Result<Unclaimed>),
    /// A deadline is over.
    Deadline(Deadline, Serial),
    /// The disk has a durable fact, or has refused it.
    Synced(Serial, io::Result<()>),
    /// A shorter journal is beside the one in use, or cannot be.
    CompactionStaged(io::Result<Compaction>),
    /// The disk knows that it has taken its place.
    CompactionSynced(io::Result<()>),
    /// The disk has a journal that was written again.
    Restored(io::Result<()>),
    /// A start without a client is to be tried again.
    TryAgain(Serial),
    /// What such a start is made from was brought in.
    Brought(Serial, Brought),
    /// It is to be looked whether the slot of the outgoing process is quiet.
    QuietDue(HandoffId),
    /// A probe has passed, or has failed until its limit.
    Probed(HandoffId, Result<(), String>),
    /// A way to a listener of the process that is tried; nothing if none is.
    Route(HandoffId, String, Reply<Option<io::Result<ProbeRoute>>>),
    /// The way is not needed any more.
    EndRoute(HandoffId, String, Reply<io::Result<()>>),
    /// Whether the listener of the process that is tried is still one.
    Listens(String, Reply<bool>),
    /// What a command that tries a process is to know.
    Surroundings(Reply<Surroundings>),
    /// Whether the answer of this probe is still waited for.
    IsProbing(HandoffId, Reply<bool>),
    /// What can be seen of the process that is watched.
    Look(Reply<Result<(), Failure>>),
    /// The process that is watched is not well.
    Condemned(HandoffId, Watch, String),
    /// The process that takes its lock now.
    Beginner(HandoffId, Reply<Option<u32>>),
    /// Another process keeps it from its lock.
    LockTrouble(HandoffId, u32, String),
    /// The processes that share new connections, as long as the step lasts.
    Sharing(Step, Reply<Option<[Option<u32>; 2]>>),
    /// How many each got.
    Measured(Step, Measured),
    /// Something is at the watched path.
    Path(PathNews),
    /// A path of a unix socket has changed.
    PathsChanged,
    /// Strangers may have left the slots.
    RepairDue,
    /// A listener of the process that serves has news.
    ListenersHeard(Serial),
    /// The listeners of the process that serves are to be looked at.
    ListenersDue(Serial, IsFirst),
}

/// Whether it is the first look.
pub(super) type IsFirst = bool;

/// An input, and who waits until it has been taken.
struct Delivery {
    input: Input,
    taken: Option<Reply<()>>,
}

/// How a task reaches its service, as long as that is there.
#[derive(Debug, Clone)]
pub(super) struct Inputs(mpsc::UnboundedSender<Delivery>);

/// Where the inputs of a service come in.
pub(super) struct Inbox(mpsc::UnboundedReceiver<Delivery>);

/// The two ends.
pub(super) fn inbox() -> (Inputs, Inbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Inputs(sender), Inbox(receiver))
}

impl Inputs {
    /// Does not wait until it is taken.
    pub(super) fn send(&self, input: Input) {
        // A service that is gone wants to know nothing.
        let _ = self.0.send(Delivery { input, taken: None });
    }

    /// Completes when the service has taken it, with all that follows from it. `false` if the service is gone.
    pub(super) async fn deliver(&self, input: Input) -> bool {
        let (taken, done) = oneshot::channel();
        let _ = self.0.send(Delivery { input, taken: Some(taken) });
        done.await.is_ok()
    }

    /// Asks for something. `None` if the service is gone.
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
            service.borrow_mut().take(input);
            // Who waited may be gone.
            let _ = taken.map(|taken| taken.send(()));
        }
    }
}

/// Who asked may be gone by now.
fn answer<T>(reply: Reply<T>, answer: T) {
    let _ = reply.send(answer);
}

impl Service {
    fn take(&mut self, input: Input) {
        match input {
            Input::Order(order, operation) => self.order(order, operation),
            Input::CallOff(what, reply) => answer(reply, self.call_off_before(what)),
            Input::Process(serial, event) => self.process_event(serial, event),
            Input::Found(found) => self.found(found),
            Input::Origin(origin) => self.remember_origin(origin),
            Input::Spawned(serial, spawned) => self.spawned(serial, spawned),
            Input::Deadline(deadline, serial) => self.deadline_over(deadline, serial),
            Input::Synced(serial, synced) => self.synced(serial, synced),
            Input::CompactionStaged(staged) => self.compaction_staged(staged),
            Input::CompactionSynced(synced) => self.compaction_synced(synced),
            Input::Restored(synced) => self.journal_restored(synced),
            Input::TryAgain(serial) => self.start_again(serial),
            Input::Brought(serial, brought) => self.first_brought(serial, brought),
            Input::QuietDue(id) => self.look_for_quiet(id),
            Input::Probed(id, result) => self.probed(id, result),
            Input::Route(id, listener, reply) => {
                if reply.send(self.route_to_tried(id, &listener)).is_err() {
                    // The probe was given up meanwhile.
                    let _ = self.end_route(id, &listener);
                }
            }
            Input::EndRoute(id, listener, reply) => answer(reply, self.end_route(id, &listener)),
            Input::Listens(listener, reply) => answer(reply, self.listens_for_tried(&listener)),
            Input::Surroundings(reply) => answer(reply, self.surroundings()),
            Input::IsProbing(id, reply) => answer(reply, self.is_probing(id)),
            Input::Look(reply) => answer(reply, self.look_at_watched()),
            Input::Condemned(id, watch, why) => self.condemn(id, watch, why),
            Input::Beginner(id, reply) => answer(reply, self.beginner(id)),
            Input::LockTrouble(id, pid, trouble) => self.note_lock_trouble(id, pid, trouble),
            Input::Sharing(step, reply) => answer(reply, self.sharing(step)),
            Input::Measured(step, measured) => self.note_measured(step, measured),
            Input::Path(news) => self.path_news(news),
            Input::PathsChanged => self.mend_paths(),
            Input::RepairDue => self.repair_slots(),
            Input::ListenersHeard(serial) => self.listeners_heard(serial),
            Input::ListenersDue(serial, is_first) => self.listeners_due(serial, is_first),
        }
    }
}
