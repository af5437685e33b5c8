//! The tasks that detect that the keeper has ended or hangs.

use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{KeeperConnection, leaves_it_usable};
use crate::keeper::TIMEOUT;
use crate::sys::errno::retry;
use crate::sys::poll::{PollFlags, poll_one};
use crate::sys::process::is_frozen;
use crate::sys::readable::readable;

/// A keeper that dies sooner than this after its start is not replaced until this time has passed.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// How long a pipe may contain data, or an answer be outstanding, before the keeper is suspected.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(500);

/// A process that stays stopped for longer than this was not stopped together with this one.
const STOP_MARGIN: Duration = Duration::from_millis(100);

/// The pause before another attempt when this process has no descriptor left for a watch.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Replaces the keeper whenever it ends.
pub(super) async fn keeper(inner: Weak<KeeperConnection>) {
    let mut started = Instant::now();
    loop {
        let Some(pidfd) =
            inner.upgrade().map(|inner| inner.state.borrow().client.pidfd().try_clone_to_owned())
        else {
            return;
        };
        match pidfd.and_then(readable) {
            Ok(pidfd) => drop(pidfd.readable().await.map(|_| ())),
            Err(error) => {
                tracing::error!("the keeper cannot be watched: {error}; trying again in {RETRY_PAUSE:?}");
                sleep(RETRY_PAUSE).await;
                continue;
            }
        }
        if let Some(inner) = inner.upgrade() {
            let client = &inner.state.borrow().client;
            match client.reap() {
                Some(exit) => tracing::error!(pid = client.pid(), "the keeper {exit}; starting another"),
                None => tracing::error!(pid = client.pid(), "the keeper is gone; starting another"),
            }
        }
        sleep_until(started + SHORT_LIFE).await;
        started = Instant::now();
        let Some(inner) = inner.upgrade() else { return };
        while let Err(error) = inner.replace() {
            tracing::error!("{error}; trying again in {SHORT_LIFE:?}");
            sleep(SHORT_LIFE).await;
        }
        tracing::info!(pid = inner.state.borrow().client.pid(), "another keeper holds everything");
    }
}

/// Suspects the keeper if a pipe is not read. Removes the pipe from the record when it has no writer any more and was
/// read to the end. That is later than the end of the process that it was made for, which may have left children.
pub(super) async fn pipe(inner: Weak<KeeperConnection>, number: u64, pipe: Rc<OwnedFd>) {
    loop {
        // Registered for one event at a time; otherwise every line of the service would wake this process.
        match pipe.try_clone().and_then(readable) {
            Ok(pipe) => drop(pipe.readable().await.map(|_| ())),
            Err(error) => {
                tracing::error!("a log pipe cannot be watched: {error}; trying again in {RETRY_PAUSE:?}");
                sleep(RETRY_PAUSE).await;
            }
        }
        sleep(SILENCE_TIMEOUT).await;
        let Some(inner) = inner.upgrade() else { return };
        match contents(&pipe) {
            PipeContents::Nothing => {}
            PipeContents::Some => inner.check().await,
            PipeContents::End => {
                inner.state.borrow_mut().logs.remove(&number);
                return;
            }
        }
    }
}

/// Logs the answers to requests that did not wait for one, and suspects the keeper if an answer is missing.
pub(super) async fn answers(inner: Weak<KeeperConnection>) {
    sleep(SILENCE_TIMEOUT).await;
    let Some(inner) = inner.upgrade() else { return };
    inner.hearing.set(false);
    if !inner.has_answered() {
        inner.check().await;
    }
}

impl KeeperConnection {
    /// Reads the answers that have arrived. Returns whether those were all.
    fn has_answered(&self) -> bool {
        let client = &mut self.state.borrow_mut().client;
        loop {
            match client.hear() {
                Ok(all) => return all,
                Err(error) => {
                    tracing::error!("{error}");
                    if !leaves_it_usable(&error) {
                        return false;
                    }
                }
            }
        }
    }

    /// Returns when everything that was in the log pipes at the time of the call is in the files, or the keeper takes
    /// too long.
    pub(super) async fn catch_up(&self, asked: (u32, u64)) {
        let (pid, ticket) = asked;
        let until = Instant::now() + SILENCE_TIMEOUT;
        loop {
            let answers = {
                let client = &mut self.state.borrow_mut().client;
                match client.lacks(ticket) {
                    Ok(true) if client.pid() == pid && Instant::now() < until => {
                        client.answers().and_then(readable)
                    }
                    _ => return,
                }
            };
            let Ok(answers) = answers else { return };
            let _ = timeout_at(until, answers.readable()).await.map(drop);
        }
    }

    /// Asks the keeper for a sign of life, and kills it if none comes.
    async fn check(&self) {
        let asked = {
            let client = &mut self.state.borrow_mut().client;
            client.ask_for_sign().map(|ticket| (client.pid(), ticket))
        };
        let Ok((pid, ticket)) = asked else { return self.state.borrow().client.kill() };
        // A stopped keeper needs a SIGCONT, and nothing is sure to send one. A pause of the whole machine is over in
        // a moment.
        if is_frozen(pid) {
            sleep(STOP_MARGIN).await;
            let client = &self.state.borrow().client;
            if client.pid() == pid && is_frozen(pid) {
                tracing::error!(pid, "the keeper is stopped");
                return client.kill();
            }
        }
        let until = Instant::now() + TIMEOUT;
        loop {
            let answers = {
                let client = &mut self.state.borrow_mut().client;
                // Another task may have read the answer, and the keeper may have been replaced.
                match client.lacks(ticket) {
                    _ if client.pid() != pid => return,
                    Ok(false) => return,
                    Ok(true) if Instant::now() < until => client.answers().and_then(readable),
                    Ok(true) | Err(_) => {
                        tracing::error!(pid, "the keeper hangs");
                        return client.kill();
                    }
                }
            };
            match answers {
                Ok(answers) => drop(timeout_at(until, answers.readable()).await.map(drop)),
                Err(error) => return tracing::error!("the keeper cannot be listened to: {error}"),
            }
        }
    }
}

enum PipeContents {
    Nothing,
    Some,
    End,
}

fn contents(pipe: &OwnedFd) -> PipeContents {
    match retry(|| poll_one(pipe, PollFlags::POLLIN, Some(Duration::ZERO))) {
        Ok(events) if events.contains(PollFlags::POLLIN) => PipeContents::Some,
        Ok(events) if events.is_empty() => PipeContents::Nothing,
        Ok(_) | Err(_) => PipeContents::End,
    }
}
