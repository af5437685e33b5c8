//! Finds the process that keeps another one from the lock of its data.
//!
//! The waiting process is blocked in the kernel and cannot report anything. So the daemon looks from outside: which
//! lock the process waits for and which process holds it. Before an upgrade, it checks whether a stranger waits for
//! the lock and would get it in place of the new process.

use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::Mode;
use handoff_protocol::supervisor::Phase;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::control::{Error, Kind};
use crate::supervisor::input::{Input, Inputs};
use crate::supervisor::service::{Handle, Service};
use crate::sys::lock::LOCK_FILE;
use crate::sys::lock_users::{LockUsers, open_file_named};
use crate::sys::process::tree_of;

/// A process that gets its lock at once has it by then.
const GRACE: Duration = Duration::from_millis(500);
/// A look at files that takes longer is abandoned: their file system hangs.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

impl Service {
    /// Watches a process that was asked to begin: in exclusive mode it now takes the lock of its data.
    pub(in crate::supervisor) fn watch_the_lock(&mut self, id: HandoffId) {
        self.problems.lock_is_asked_for();
        if self.config.mode == Mode::Exclusive {
            spawn_local(watch(self.inputs.clone(), id));
        }
    }

    /// The process that is taking its lock, if it begins in this handoff.
    pub(in crate::supervisor) fn lock_taker(&self, id: HandoffId) -> Option<u32> {
        let begins = self.machine.phase() == Phase::Beginning && self.machine.handoff() == id;
        self.processes.successor().filter(|_| begins).map(|process| process.pid())
    }

    /// Records that another process keeps this one from its lock.
    pub(in crate::supervisor) fn note_lock_conflict(&mut self, id: HandoffId, pid: u32, trouble: String) {
        if self.lock_taker(id) == Some(pid) && self.problems.lock_is_held(trouble.clone()) {
            tracing::warn!(pid, trouble, "the new process waits");
        }
    }

    /// What keeps a process from its lock, as long as that matters.
    pub(in crate::supervisor) fn shown_lock_conflict(&self) -> Option<String> {
        let matters = matches!(self.machine.phase(), Phase::Beginning | Phase::Reaping | Phase::Resuming);
        let trouble = self.problems.lock().filter(|_| matters);
        trouble.map(|trouble| format!("The new process waits: {trouble}."))
    }
}

/// Refuses an upgrade in which another process would get the lock that the old process releases. At this point
/// nothing has happened yet.
pub(in crate::supervisor) async fn check_queue(handle: &Handle) -> Result<(), Error> {
    let found = handle.read(|service| {
        let exclusive = service.config.mode == Mode::Exclusive;
        service
            .processes
            .incumbent()
            .filter(|_| exclusive)
            .map(|process| (service.name.clone(), process.pid()))
    });
    let Some((name, pid)) = found else { return Ok(()) };
    let Some(stranger) = run_in_thread(move || queued(pid)).await else { return Ok(()) };
    let message = format!(
        "{stranger} waits for the lock of the data of {:?}: it would get it in an upgrade, in the place of the new process.",
        name.as_str()
    );
    Err(Error::new(
        Kind::Busy,
        message,
        "End that process, or wait until it has given up; then upgrade again.",
    ))
}

async fn watch(inputs: Inputs, id: HandoffId) {
    loop {
        sleep(GRACE).await;
        let Some(pid) = inputs.ask(|reply| Input::LockTaker(id, reply)).await.flatten() else { return };
        if let Some(trouble) = run_in_thread(move || lock_conflict(pid)).await {
            inputs.send(Input::LockConflict(id, pid, trouble));
        }
    }
}

/// Runs `inspect` in a thread of its own: if a file system hangs, only that thread does.
async fn run_in_thread<T: Send + 'static>(inspect: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    let thread =
        std::thread::Builder::new().name("handoff-lock".to_owned()).spawn(move || sender.send(inspect()));
    thread.ok()?;
    timeout(CHECK_TIMEOUT, receiver).await.ok()?.ok()?
}

/// The holder of the lock that this process waits for.
fn lock_conflict(pid: u32) -> Option<String> {
    let path = open_file_named(pid, LOCK_FILE)?;
    let (users, own) = (LockUsers::of(&path), tree_of(pid));
    if !users.waiters.iter().any(|user| own.contains(&user.pid)) {
        return None;
    }
    let holder = users.holders_but(&own);
    let holder =
        if holder.is_empty() { "a process that cannot be seen from here".to_owned() } else { holder };
    Some(format!("{holder} holds the lock of its data, {}", path.display()))
}

/// The processes that wait for the lock that this process holds.
fn queued(pid: u32) -> Option<String> {
    let waiting = LockUsers::waiting_for(&open_file_named(pid, LOCK_FILE)?);
    // Every upgrade comes here, and hardly ever finds a waiter. So the process tree is read only if there is one.
    let strangers =
        if waiting.waiters.is_empty() { String::new() } else { waiting.waiters_but(&tree_of(pid)) };
    (!strangers.is_empty()).then_some(strangers)
}
