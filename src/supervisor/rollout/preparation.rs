//! The work before the machine is asked. It can be called off, because it has not changed anything yet.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use handoff_protocol::ids::{HandoffId, ServiceName};
use handoff_protocol::record::Fact;
use handoff_protocol::supervisor::Phase;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use super::binary::hex;
use crate::control::{Error, api};
use crate::history::{Ending, Entry};
use crate::supervisor::operations::RequestedOperation;
use crate::supervisor::service::{Handle, Service};
use crate::sys::clock::as_ms;

const CANCELLED: &str = "it was cancelled before the new version was started";

const TOO_LATE: &str = "the deadline of the upgrade was over before the new version was started";
const LATE_HINT: &str =
    "Nothing has changed. Raise deadline if it takes so long to bring a version in and to try it.";

/// What was called off ends within this time: a command that was killed, a copy at its next block. A disk that hangs
/// may take longer.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// The work of bringing in and trying a new version.
#[derive(Debug)]
pub(in crate::supervisor) struct Preparation {
    since: Instant,
    /// For the threads that do the work.
    is_called_off: Arc<AtomicBool>,
    called_off: watch::Sender<bool>,
    ended: watch::Sender<bool>,
    /// The deadline of the upgrade, of which this is the first part.
    until: Option<Instant>,
}

impl Preparation {
    /// Begins now. `limit` is the time for the whole upgrade, if it has a limit.
    pub(in crate::supervisor) fn begin(limit: Option<Duration>) -> Rc<Self> {
        let (called_off, ended) = (watch::Sender::new(false), watch::Sender::new(false));
        let since = Instant::now();
        let until = limit.and_then(|limit| since.checked_add(limit));
        Rc::new(Self { since, is_called_off: Arc::default(), called_off, ended, until })
    }

    /// What is left of that time, in milliseconds.
    pub(in crate::supervisor) fn left_ms(&self) -> Option<u64> {
        let left = self.until?.saturating_duration_since(Instant::now());
        Some(as_ms(left))
    }

    /// Whether this is for the first start of a service, and not for an upgrade.
    fn is_first(&self) -> bool {
        self.until.is_none()
    }

    async fn too_late(&self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    }

    /// A flag that is set when the work is called off.
    pub(in crate::supervisor) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_called_off)
    }

    /// Completes when the work is called off.
    pub(in crate::supervisor) async fn called_off(&self) {
        // The sender lives as long as `self`.
        let _ = self.called_off.subscribe().wait_for(|is| *is).await;
    }

    /// Completes when the work has ended, or has had [`ENDED_WITHIN`] to do so.
    pub(in crate::supervisor) async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|is| *is).await;
    }

    /// Runs `work`. If it is called off, waits until it has ended. A service has one at a time: the caller must hold
    /// its turn.
    pub(in crate::supervisor) async fn guard<T>(
        self: &Rc<Self>,
        handle: &Handle,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        handle.with(|service| service.versions.preparation = Some(Rc::clone(self)));
        let mut work = pin!(work);
        let done = tokio::select! {
            biased;
            done = &mut work => Some(done),
            () = self.called_off() => timeout(ENDED_WITHIN, &mut work).await.ok(),
            () = self.too_late() => {
                self.call_off();
                _ = timeout(ENDED_WITHIN, &mut work).await;
                Some(Err(handle.read(|service| Error::rejected(&service.name, TOO_LATE, LATE_HINT))))
            }
        };
        self.ended.send_replace(true);
        handle.with(|service| {
            // Calling it off has removed it.
            let is_wanted = service.versions.preparation.take_if(|it| Rc::ptr_eq(it, self)).is_some();
            match done.filter(|_| is_wanted) {
                Some(done) => done,
                None => Err(called_off(&service.name)),
            }
        })
    }

    fn call_off(&self) {
        self.is_called_off.store(true, Ordering::Relaxed);
        self.called_off.send_replace(true);
    }
}

fn called_off(name: &ServiceName) -> Error {
    Error::rejected(name, CANCELLED, "Nothing has changed.")
}

/// Whether this error answers a request that was called off.
pub(in crate::supervisor) fn was_called_off(name: &ServiceName, error: &Error) -> bool {
    *error == called_off(name)
}

/// What calls off the work before the machine is asked.
#[derive(Debug, Clone, Copy)]
pub(in crate::supervisor) enum CancelCause {
    /// A stop, which calls off a first start.
    Stop,
    /// A cancellation, which calls off any work.
    Cancel,
}

/// The work that was called off.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct CancelledWork {
    /// The version that was being brought in: its outcome is decided, and the caller waits until the work has ended.
    pub(in crate::supervisor) preparation: Option<(api::Outcome, Rc<Preparation>)>,
    /// Whether a start was called off that waited for its next attempt.
    pub(in crate::supervisor) waiting_start: bool,
}

impl Service {
    /// Calls off the work before the machine is asked.
    pub(in crate::supervisor) fn call_off_before(&mut self, by: CancelCause) -> CancelledWork {
        let preparation = match by {
            CancelCause::Stop => self.call_off_first(),
            CancelCause::Cancel => self.call_off_preparation(),
        };
        if matches!((by, &preparation), (CancelCause::Stop, Some(_))) {
            self.stopped_by_person();
        }
        let waiting_start = matches!((by, &preparation), (CancelCause::Stop, None)) && self.call_off_start();
        CancelledWork { preparation, waiting_start }
    }

    /// Calls off bringing in a version, if that is in progress. Its caller gets an error. The work is over when
    /// [`Preparation::ended`] completes.
    pub(in crate::supervisor) fn call_off_preparation(&mut self) -> Option<(api::Outcome, Rc<Preparation>)> {
        let preparation = self.versions.preparation.take()?;
        preparation.call_off();
        self.call_off_start();
        let took = preparation.since.elapsed();
        // A first start has nothing to go back to.
        let ending = match self.machine.phase() {
            Phase::Stopped => api::Ending::Stopped,
            _ => api::Ending::RolledBack,
        };
        let outcome = self.current_outcome(ending, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        Some((api::Outcome { reason: Some(CANCELLED.to_owned()), ..outcome }, preparation))
    }

    /// Whether the first version of the service is being brought in.
    pub(in crate::supervisor) fn is_first_imported(&self) -> bool {
        self.versions.preparation.as_ref().is_some_and(|preparation| preparation.is_first())
    }

    /// Calls off the first start of a service, if its version is still being brought in.
    fn call_off_first(&mut self) -> Option<(api::Outcome, Rc<Preparation>)> {
        if !self.is_first_imported() || self.machine.phase() != Phase::Stopped {
            return None;
        }
        if self.journal.standing().wanted {
            self.note(Fact::Wanted { up: false });
        }
        self.call_off_preparation()
    }

    /// Records that a start was stopped while it waited.
    pub(in crate::supervisor) fn stopped_before_start(&self, asked: &RequestedOperation) -> api::Outcome {
        let entry = self.entry(asked, Ending::Stopped, None);
        let took_us = asked.elapsed_us();
        self.operations.recorder().append(Entry {
            id: HandoffId::from_uuid(Uuid::now_v7()),
            took_us,
            phases: Vec::new(),
            accept_gap_us: None,
            ..entry
        });
        self.current_outcome(api::Ending::Stopped, took_us)
    }

    /// The current state, as the outcome of an operation that has no handoff.
    pub(in crate::supervisor) fn current_outcome(&self, outcome: api::Ending, took_us: u64) -> api::Outcome {
        let shown = self.shown();
        api::Outcome {
            service: self.name.clone(),
            handoff: None,
            outcome,
            reason: None,
            generation: self.journal.standing().generation(),
            pid: self.pid(),
            shim: self.pid_of_shim(),
            binary: shown.path,
            stored: shown.stored,
            version: shown.version,
            sha256: self.current_binary().map(|binary| hex(&binary.sha256)),
            took_us,
            accept_gap_us: None,
            restarted: false,
            connections: None,
            lost_datagrams: 0,
            phases: Vec::new(),
            killed: Vec::new(),
            last_lines: None,
        }
    }
}
