//! The tasks that find out that the keeper has ended or hangs.

use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{Inner, leaves_it_usable};
use crate::keeper::TIMEOUT;
use crate::sys::errno::retry;
use crate::sys::poll::{PollFlags, poll_one};
use crate::sys::process::is_frozen;
use crate::sys::readable::readable;

/// A keeper that dies sooner than this after it was started is not replaced before.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// For so long a pipe may have something in it, or an answer be outstanding, without the keeper being suspected.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whoever is stopped for longer than this was not stopped together with this process.
const MOMENT: Duration = Duration::from_millis(100);

/// So long is waited when this process has no descriptor to watch with.
const NEXT_TRY: Duration = Duration::from_secs(10);

/// Replaces the keeper whenever it has ended.
pub(super) async fn keeper(inner: Weak<Inner>) {
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
                tracing::error!("the keeper cannot be watched: {error}; trying again in {NEXT_TRY:?}");
                sleep(NEXT_TRY).await;
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

/// Suspects the keeper when a pipe is not read, and strikes the pipe off the record when nobody can write to it any more and
/// all of it was read. That is later than the end of the process that it was made for, which may have left children.
pub(super) async fn pipe(inner: Weak<Inner>, number: u64, pipe: Rc<OwnedFd>) {
    loop {
        // Registered for one event at a time, or every line of the service would wake this process.
        match pipe.try_clone().and_then(readable) {
            Ok(pipe) => drop(pipe.readable().await.map(|_| ())),
            Err(error) => {
                tracing::error!("a log pipe cannot be watched: {error}; trying again in {NEXT_TRY:?}");
                sleep(NEXT_TRY).await;
            }
        }
        sleep(PATIENCE).await;
        let Some(inner) = inner.upgrade() else { return };
        match contents(&pipe) {
            Contents::Nothing => {}
            Contents::Some => inner.check().await,
            Contents::End => {
                inner.state.borrow_mut().logs.remove(&number);
                return;
            }
        }
    }
}

/// Tells what the keeper said to those who did not wait, and suspects it when it has not said anything.
pub(super) async fn answers(inner: Weak<Inner>) {
    sleep(PATIENCE).await;
    let Some(inner) = inner.upgrade() else { return };
    inner.hearing.set(false);
    if !inner.has_answered() {
        inner.check().await;
    }
}

impl Inner {
    /// Hears the answers that are there. Says whether that was all of them.
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

    /// Asks the keeper for a sign of life, and ends it if there is none.
    async fn check(&self) {
        let asked = {
            let client = &mut self.state.borrow_mut().client;
            client.ask_for_sign().map(|ticket| (client.pid(), ticket))
        };
        let Ok((pid, ticket)) = asked else { return self.state.borrow().client.kill() };
        // One that was stopped would have to be told to go on, by nobody knows whom. The pause of a whole machine is over in
        // a moment.
        if is_frozen(pid) {
            sleep(MOMENT).await;
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
                // Somebody else may have heard the answer, and another keeper may be here.
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

enum Contents {
    Nothing,
    Some,
    End,
}

fn contents(pipe: &OwnedFd) -> Contents {
    match retry(|| poll_one(pipe, PollFlags::POLLIN, Some(Duration::ZERO))) {
        Ok(events) if events.contains(PollFlags::POLLIN) => Contents::Some,
        Ok(events) if events.is_empty() => Contents::Nothing,
        Ok(_) | Err(_) => Contents::End,
    }
}
