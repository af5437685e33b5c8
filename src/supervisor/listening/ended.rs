//! Listeners that a program ends or closes while it runs on. What clients send is kept for the next process, which is
//! started if clients wait for it.
//!
//! | a running program               | is noticed                           | until another process serves, clients |
//! |---------------------------------|--------------------------------------|---------------------------------------|
//! | ends a stream listener          | at once                              | wait at a new socket                  |
//! | ends a datagram socket          | at a check                           | wait at a new socket                  |
//! | closes or replaces its listener | when a client waits, or at a check   | wait where they are                   |
//!
//! A program ends a listener with shutdown(2), and a datagram socket also with connect(2). The kernel reports a
//! waiting client at most once per [`PAUSE`]. So a busy service wakes the daemon no more often than that, and a
//! service at rest never wakes it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use handoff_protocol::restart::When;
use handoff_protocol::supervisor::Phase;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{sleep, timeout};

use super::upkeep::not_noted;
use super::{FIRST, Listening, PAIR, number};
use crate::config::ListenAddress;
use crate::history::Operation;
use crate::shim;
use crate::slots::{Side, SlotError, SlotId};
use crate::supervisor::daemon::operation;
use crate::supervisor::input::{Input, Inputs, IsFirst};
use crate::supervisor::process::Token;
use crate::supervisor::service::Service;
use crate::sys::descriptor::inode;
use crate::sys::epoll::{Epoll, EpollFlags};
use crate::sys::held::held_by_none;
use crate::sys::process::tree_of;
use crate::sys::readable::readable;

/// How long a client waits, and a program that has ended its listener may take to end itself, before the daemon
/// checks.
const PAUSE: Duration = Duration::from_secs(1);

/// If the next process does the same, it is not replaced before this time has passed.
const REPLACE_PAUSE: Duration = Duration::from_secs(60);

/// A listener was ended for all its holders.
const ENDS: EpollFlags = EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLET);

/// The same, or a listener got a client.
const WATCHED_EVENTS: EpollFlags = EpollFlags::EPOLLIN.union(ENDS);

/// What is known of the listeners of the serving process, by their positions in the service file.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct EndedListeners {
    /// The process that this is about.
    process: Option<Token>,
    /// The process has ended these, and other sockets have taken their places.
    renewed: BTreeSet<usize>,
    /// The process has had these.
    received: BTreeSet<usize>,
    /// When a process was last started to serve clients that waited at such a listener.
    replaced_at: Option<Instant>,
}

/// The watch over the listeners of the serving process. It ends when this is dropped.
#[derive(Debug)]
pub(in crate::supervisor) struct SlotWatch {
    token: Token,
    process: Token,
    sockets: Vec<u64>,
    epoll: Rc<AsyncFd<Epoll>>,
    task: AbortHandle,
}

impl Drop for SlotWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listening {
    /// The sockets that receive what clients send. `active` only matters if processes share their slots.
    fn receiving_at(&self, active: Side) -> Vec<(usize, SlotId, BorrowedFd<'_>)> {
        let (active, other) = if active == Side::B { (PAIR[1], FIRST) } else { (FIRST, PAIR[1]) };
        let own = self.slots.get(&self.steered);
        let mut receiving = Vec::new();
        for (at, group) in self.groups.iter().enumerate() {
            let id = match self.is_paired {
                // Clients of a TCP listener that was shut down go to the other side.
                true if self.is_tcp(at) && !group.is_alive(active) && group.is_alive(other) => Some(other),
                true => Some(active),
                false => own.and_then(|ids| ids.get(at).copied()),
            };
            receiving.extend(id.and_then(|id| Some((at, id, group.fd(id)?))));
        }
        receiving
    }

    fn is_tcp(&self, at: usize) -> bool {
        let address = self.groups[at].address();
        address.ip().is_some() && !address.is_datagram()
    }

    /// Opens a new socket in place of each receiving one that was ended. Returns the positions of their listeners.
    /// `note` records at which side of which address a new socket is.
    fn renew(
        &mut self,
        active: Side,
        note: impl Fn(usize, Side) -> io::Result<()>,
    ) -> Result<BTreeSet<usize>, SlotError> {
        let receiving: Vec<(usize, SlotId)> =
            self.receiving_at(active).into_iter().map(|(at, id, _)| (at, id)).collect();
        let mut renewed = BTreeSet::new();
        for (at, id) in receiving {
            let group = &mut self.groups[at];
            if group.is_alive(id) {
                continue;
            }
            group.renew(id)?;
            match self.is_paired {
                false => group.steer_anew()?,
                true if group.address().is_datagram() => {
                    group.steer_to(id)?;
                    note(at, active).map_err(|error| not_noted(group.address(), error))?;
                }
                true => {}
            }
            renewed.insert(at);
        }
        Ok(renewed)
    }
}

impl Service {
    /// Watches the listeners of the serving process, and no others.
    pub(in crate::supervisor) fn adjust_slot_watch(&mut self) {
        let token = self.processes.incumbent().map(|process| process.token);
        let token = token.filter(|_| self.machine.phase() == Phase::Serving && self.listening.is_some());
        if token != self.upkeep.ended_listeners.process && token.is_some() {
            let replaced_at = self.upkeep.ended_listeners.replaced_at;
            self.upkeep.ended_listeners =
                EndedListeners { process: token, replaced_at, ..EndedListeners::default() };
        }
        let receiving = if token.is_some() { self.receiving() } else { Vec::new() };
        let Some(of) = token.filter(|_| !receiving.is_empty()) else {
            self.upkeep.slots = None;
            return;
        };
        let sockets: Vec<u64> = receiving.iter().filter_map(|(_, _, fd)| inode(fd).ok()).collect();
        if self.upkeep.slots.as_ref().is_some_and(|watch| watch.process == of && watch.sockets == sockets) {
            return;
        }
        let watch = watch(&receiving);
        match watch {
            Ok(epoll) => {
                let (epoll, token) = (Rc::new(epoll), self.next_token());
                let task = spawn_local(watch_always(self.inputs.clone(), token, Rc::clone(&epoll)));
                let task = task.abort_handle();
                self.upkeep.slots = Some(SlotWatch { token, process: of, sockets, epoll, task });
            }
            Err(error) => {
                tracing::error!(%error, "it will not be noticed if its program ends a listener");
            }
        }
    }

    /// The side at which the serving program was started. `None` if its shim has not recorded it.
    fn active_side(&self) -> Option<Side> {
        if !self.is_paired() {
            return Some(Side::A);
        }
        let process = self.processes.incumbent()?;
        shim::used_side(&self.shared.dirs.adopt_socket(process.handoff))
    }

    /// The sockets that receive what clients send to the serving process.
    fn receiving(&self) -> Vec<(usize, SlotId, BorrowedFd<'_>)> {
        let found = self.listening.as_ref().zip(self.active_side());
        found.map(|(listening, active)| listening.receiving_at(active)).unwrap_or_default()
    }

    /// Replaces listeners that the serving program has ended.
    pub(in crate::supervisor) fn renew_ended(&mut self) {
        // In the other phases the process may already have been asked to end.
        if !matches!(self.machine.phase(), Phase::Serving | Phase::Greeting)
            || self.processes.incumbent().is_none()
        {
            return;
        }
        let (active, note) = (self.active_side(), self.note_joined());
        let (Some(active), Some(listening)) = (active, &mut self.listening) else { return };
        match listening.renew(active, note) {
            Ok(renewed) if renewed.is_empty() => {}
            Ok(renewed) => {
                let slot = if listening.is_paired { number(FIRST) } else { listening.steered };
                listening.store(&self.shared.keeper, self.name.as_str(), slot);
                for at in &renewed {
                    let address = listening.groups[*at].address();
                    tracing::warn!(%address, "the program has ended its listener and runs on; clients wait at another one");
                }
                self.upkeep.ended_listeners.renewed.extend(renewed);
                self.adjust_slot_watch();
                self.adjust_socket_paths();
            }
            Err(error) => {
                tracing::error!(%error, "a listener that the program has ended cannot be replaced");
                self.problems.listener_not_renewed(&error);
            }
        }
    }

    /// The positions of the listeners from which the serving process takes nothing because it has ended or closed
    /// them. If the daemon may not inspect the program, its listeners count as taken.
    pub(in crate::supervisor) fn left_listeners(&self) -> BTreeSet<usize> {
        let Some(process) = self.processes.incumbent() else { return BTreeSet::new() };
        if self.upkeep.ended_listeners.process != Some(process.token) {
            return BTreeSet::new();
        }
        let mut left = self.upkeep.ended_listeners.renewed.clone();
        if !self.config.adapter.is_foreign() {
            // The library has a duplicate of each listener.
            return left;
        }
        let tree = tree_of(process.pid()).into_iter().filter(|pid| *pid != process.pid());
        let tree: Vec<u32> = tree.collect();
        let receiving = self.receiving();
        let number = |fd: BorrowedFd<'_>| u32::try_from(inode(fd).ok()?).ok();
        let inodes: Vec<(usize, u32)> =
            receiving.into_iter().filter_map(|(at, _, fd)| Some((at, number(fd)?))).collect();
        let wanted = inodes.iter().map(|(_, inode)| *inode).collect();
        if let (false, Ok(lacking)) = (tree.is_empty(), held_by_none(&tree, wanted)) {
            left.extend(inodes.into_iter().filter(|(_, inode)| lacking.contains(inode)).map(|(at, _)| at));
        }
        left
    }

    /// A sentence for the user about listeners that the program has left.
    pub(in crate::supervisor) fn left_listeners_sentence(&self) -> Option<String> {
        let left = match self.machine.phase() == Phase::Serving && self.incumbent_main_exit().is_none() {
            true => self.left_listeners(),
            false => BTreeSet::new(),
        };
        let at = left.first()?;
        let listener = self.config.listeners.get(*at)?;
        let pid =
            self.pid_of_program().or_else(|| self.processes.incumbent().map(|process| process.pid()))?;
        let more =
            if left.len() > 1 { format!(" There are {} such listeners.", left.len()) } else { String::new() };
        Some(format!(
            "Process {pid} runs and does not have the listener {} ({}) any more: what clients send there waits for the next process, which \
             is started by: handoff restart {}.{more}",
            listener.name, listener.address, self.name
        ))
    }

    /// Listeners that the program has left and at which clients wait.
    pub(in crate::supervisor) fn left_listeners_with_clients(&self) -> Vec<ListenAddress> {
        let Some(listening) = &self.listening else { return Vec::new() };
        let receiving = self.receiving();
        let waits = |(at, id): &(usize, SlotId)| {
            listening.groups[*at].queue_len(*id).is_ok_and(|waiting| waiting > 0)
        };
        let mut waiting = receiving.into_iter().map(|(at, id, _)| (at, id)).filter(waits).peekable();
        if waiting.peek().is_none() {
            return Vec::new();
        }
        let left = self.left_listeners();
        let waiting = waiting.filter(|(at, _)| left.contains(at));
        waiting.map(|(at, _)| listening.groups[at].address().clone()).collect()
    }

    /// Whether the next process must get the listeners of this one: clients may wait there, and no other process
    /// serves them.
    pub(in crate::supervisor) fn is_left(&self, slot: u64) -> bool {
        let steered = self.listening.as_ref().is_some_and(|listening| listening.steered == slot);
        // If the process has closed all its listeners, its slot is unknown.
        !steered || !self.left_listeners().is_empty()
    }

    /// The events of this watch, unless another watch has replaced it.
    fn epoll_of(&self, token: Token) -> Option<Rc<AsyncFd<Epoll>>> {
        let watch = self.upkeep.slots.as_ref().filter(|watch| watch.token == token)?;
        Some(Rc::clone(&watch.epoll))
    }

    /// Handles an event of the kernel. Until the next check, new clients wake nothing.
    pub(in crate::supervisor) fn listeners_ready(&mut self, token: Token) {
        let Some(epoll) = self.epoll_of(token) else { return };
        watch_for(ENDS, &epoll, &self.receiving());
        self.renew_ended();
    }

    /// Checks the listeners a moment after an event. The first check also records which listeners a process that has
    /// just begun to serve has taken.
    pub(in crate::supervisor) fn listeners_due(&mut self, token: Token, is_first: IsFirst) {
        let Some(epoll) = self.epoll_of(token) else { return };
        if is_first {
            self.note_taken();
        }
        self.renew_ended();
        self.replace_for_waiting();
        watch_for(WATCHED_EVENTS, &epoll, &self.receiving());
    }

    /// Records that the program has had the listeners that it has now.
    fn note_taken(&mut self) {
        let left = self.left_listeners();
        let count = self.config.listeners.len();
        self.upkeep.ended_listeners.received.extend((0..count).filter(|at| !left.contains(at)));
        // The program must have had these too, or it could not have ended them.
        self.upkeep.ended_listeners.received.extend(self.upkeep.ended_listeners.renewed.iter().copied());
        tracing::debug!(taken = ?self.upkeep.ended_listeners.received, "the program has had its listeners");
    }

    /// Restarts the service, as `handoff restart` does, if clients wait at a listener that the program had and has
    /// left.
    fn replace_for_waiting(&mut self) {
        let waiting = self.left_listeners_with_clients();
        let Some(address) = waiting.first() else { return };
        let left = &self.upkeep.ended_listeners;
        let was_taken = |listener: &crate::config::Listener| {
            let at = self.config.listeners.iter().position(|known| known.name == listener.name);
            waiting.contains(&listener.address) && at.is_some_and(|at| left.received.contains(&at))
        };
        let over = self.incumbent_main_exit();
        let is_early = left.replaced_at.is_some_and(|at| at.elapsed() < REPLACE_PAUSE);
        // A main process that has ended is followed by what its service file says, when the rest has ended as well.
        let rests = over.is_some() && self.config.restart.when != When::Always;
        if is_early || rests || !self.is_open_to_upgrades() || !self.config.listeners.iter().any(was_taken) {
            return;
        }
        tracing::warn!(%address, "clients wait where the program has left its listener; it is restarted");
        self.upkeep.ended_listeners.replaced_at = Some(Instant::now());
        let why = match over {
            Some(how) => format!("clients wait at {address}, and the main {how}"),
            None => format!("clients wait at {address}, where the program does not listen any more"),
        };
        // The status and the history show this reason.
        let (operation, _) = operation(Operation::Restart, &why);
        self.restart(operation);
    }
}

fn watch(receiving: &[(usize, SlotId, BorrowedFd<'_>)]) -> io::Result<AsyncFd<Epoll>> {
    let epoll = Epoll::new()?;
    for (at, _, socket) in receiving {
        epoll.add(socket, WATCHED_EVENTS, *at as u64)?;
    }
    readable(epoll)
}

/// Changes the events that the watch reports.
fn watch_for(what: EpollFlags, epoll: &AsyncFd<Epoll>, receiving: &[(usize, SlotId, BorrowedFd<'_>)]) {
    for (at, _, socket) in receiving {
        // A socket that is missing was replaced, and the new one has a watch of its own.
        let _ = epoll.get_ref().modify(socket, what, *at as u64);
    }
}

async fn watch_always(inputs: Inputs, token: Token, epoll: Rc<AsyncFd<Epoll>>) {
    // A process that has just begun to serve takes its listeners now, or has them already.
    let taken_by = Instant::now() + PAUSE;
    let mut is_noted = false;
    loop {
        let heard = match taken_by.checked_duration_since(Instant::now()).filter(|_| !is_noted) {
            Some(left) => timeout(left, epoll.readable()).await.ok(),
            None if is_noted => Some(epoll.readable().await),
            None => None,
        };
        match heard {
            Some(Ok(mut ready)) => {
                // The check finds what has happened.
                epoll.get_ref().drain();
                ready.clear_ready();
                if !inputs.deliver(Input::ListenersReady(token)).await {
                    return;
                }
                sleep(PAUSE).await;
            }
            Some(Err(_)) => return,
            None => {}
        }
        if !inputs.deliver(Input::ListenersDue(token, !is_noted)).await {
            return;
        }
        is_noted = true;
    }
}
