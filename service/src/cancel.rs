//! A drain request to the server, and its cancellation.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::state::{self, SuccessorLink};

/// A drain in progress.
#[derive(Debug, Clone)]
pub struct Drain {
    grace: Duration,
    state: Arc<DrainState>,
    successor: SuccessorLink,
    refused: bool,
}

#[derive(Debug, Default)]
struct DrainState {
    inner: Mutex<DrainFlags>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct DrainFlags {
    cancelled: bool,
    wakers: Vec<Waker>,
}

impl DrainState {
    fn lock(&self) -> MutexGuard<'_, DrainFlags> {
        // Nothing panics while it holds this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drain {
    pub(super) fn new(grace: Duration, successor: SuccessorLink, refused: bool) -> Self {
        Self { grace, state: Arc::default(), successor, refused }
    }

    /// Whether this process is dismissed before it was committed. Then it has had no clients, except as a canary.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    pub(super) fn cancel(&self) {
        let wakers = {
            let mut inner = self.state.lock();
            inner.cancelled = true;
            std::mem::take(&mut inner.wakers)
        };
        self.state.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Maximum duration of the drain, from its start.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Like [`super::Seal::hand_over`]. In overlap mode the successor already serves, and receives the state at once.
    pub fn hand_over(&self, state: &state::State) -> io::Result<()> {
        self.successor.hand_over(state)
    }

    /// Whether the drain must end now, even with work in progress.
    pub fn is_cancelled(&self) -> bool {
        self.state.lock().cancelled
    }

    /// Blocks for `time`, or until the drain is cancelled. Returns whether it is cancelled.
    pub fn wait(&self, time: Duration) -> bool {
        // An overflow means no deadline.
        let until = Instant::now().checked_add(time);
        let mut inner = self.state.lock();
        while !inner.cancelled {
            let left = until
                .map_or(Duration::from_secs(3_600), |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            inner = self.state.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Completes when the drain is cancelled. Works on any executor.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + 'static {
        Cancelled(Arc::clone(&self.state))
    }
}

struct Cancelled(Arc<DrainState>);

impl Future for Cancelled {
    type Output = ();
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.0.lock();
        if inner.cancelled {
            return Poll::Ready(());
        }
        if !inner.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            inner.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_time_or_with_the_cancellation() {
        let drain = Drain::new(Duration::from_secs(1), SuccessorLink::default(), false);
        assert!(!drain.wait(Duration::from_millis(1)));
        let other = drain.clone();
        let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(60)));
        let patient = drain.clone();
        let endless = std::thread::spawn(move || patient.wait(Duration::MAX));
        drain.cancel();
        assert!(waiter.join().unwrap());
        assert!(endless.join().unwrap());
        assert!(drain.is_cancelled());
    }
}
