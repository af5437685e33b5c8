//! What comes before the machine is asked can be called off: nothing of it has changed anything.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use handoff_protocol::ids::HandoffId;
use tokio::sync::Notify;

use super::binary::hex;
use super::service::{Handle, Service};
use crate::control::{Error, api};

const CANCELLED: &str = "it was cancelled before the new version was started";

/// A new version that is brought in and tried.
#[derive(Debug)]
pub(super) struct Preparation {
    since: Instant,
    /// For the threads that are at it.
    is_called_off: Arc<AtomicBool>,
    called_off: Notify,
}

impl Preparation {
    pub(super) fn begin() -> Rc<Self> {
        Rc::new(Self { since: Instant::now(), is_called_off: Arc::default(), called_off: Notify::new() })
    }

    /// Set when it is called off.
    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_called_off)
    }

    /// Does `work`, unless it is called off. One at a time for each service: whoever calls has its turn.
    pub(super) async fn guard<T>(
        self: &Rc<Self>,
        handle: &Handle,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        handle.with(|service| service.preparation = Some(Rc::clone(self)));
        let done = tokio::select! {
            biased;
            () = self.called_off.notified() => {
                Err(handle.with(|service| Error::rejected(&service.name, CANCELLED, "Nothing has changed.")))
            }
            done = work => done,
        };
        handle.with(|service| service.preparation = None);
        done
    }
}

impl Service {
    /// Calls off what is brought in, if anything is. Whoever has asked for it is told by an error.
    pub(super) fn call_off_preparation(&mut self) -> Option<api::Outcome> {
        let preparation = self.preparation.take()?;
        preparation.is_called_off.store(true, Ordering::Relaxed);
        preparation.called_off.notify_one();
        let took = preparation.since.elapsed();
        let outcome =
            self.as_it_is(api::Ending::RolledBack, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        Some(api::Outcome { reason: Some(CANCELLED.to_owned()), ..outcome })
    }

    /// How things stand, as the outcome of something that no handoff was made for.
    pub(super) fn as_it_is(&self, outcome: api::Ending, took_us: u64) -> api::Outcome {
        let shown = self.shown();
        api::Outcome {
            service: self.name.clone(),
            handoff: HandoffId::NIL,
            outcome,
            reason: None,
            generation: self.journal.standing().generation(),
            pid: self.incumbent.as_ref().map(|party| party.process.pid),
            binary: shown.path,
            stored: shown.stored,
            version: shown.version,
            sha256: self.current_binary().map(|binary| hex(&binary.sha256)),
            took_us,
            accept_gap_us: None,
            phases: Vec::new(),
        }
    }
}
