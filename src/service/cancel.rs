//! The drain that a server is asked for, and how it is called off.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::state::{self, Heir};

/// A drain under way.
#[derive(Debug, Clone)]
pub struct Drain {
    grace: Duration,
    state: Arc<State>,
    heir: Heir,
}

#[derive(Debug, Default)]
struct State {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    cancelled: bool,
    wakers: Vec<Waker>,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drain {
    pub(super) fn new(grace: Duration, heir: Heir) -> Self {
        Self { grace, state: Arc::default(), heir }
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

    /// The time that the drain may take, from its beginning.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Like [`super::Seal::hand_over`]. In overlap mode the process that follows serves already, and gets it at once.
    pub fn hand_over(&self, state: &state::State) -> io::Result<()> {
        self.heir.hand_over(state)
    }

    /// Whether the drain is to end now, whatever is still running.
    pub fn is_cancelled(&self) -> bool {
        self.state.lock().cancelled
    }

    /// Blocks for `time`, or until the drain is cancelled. Returns whether it is.
    pub fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut inner = self.state.lock();
        while !inner.cancelled {
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                return false;
            };
            inner = self.state.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Completes when the drain is cancelled. Works on any executor.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + 'static {
        Cancelled(Arc::clone(&self.state))
    }
}

struct Cancelled(Arc<State>);

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
        let drain = Drain::new(Duration::from_secs(1), Heir::default());
        assert!(!drain.wait(Duration::from_millis(1)));
        let other = drain.clone();
        let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(60)));
        drain.cancel();
        assert!(waiter.join().unwrap());
        assert!(drain.is_cancelled());
    }
}
