//! Starts that nobody waits for, and that are tried again: for an address, or for what the service is started from.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use handoff_protocol::supervisor::Phase;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;

use super::service::Service;
use crate::control::Error;
use crate::journal::unix_ms;

/// How long it takes until an address is tried again.
const ADDRESS_AGAIN: Duration = Duration::from_secs(1);
/// How long it takes at first until something else is tried again, which can be much work. Each pause is twice as long as the one before.
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_MAX: Duration = Duration::from_secs(60);

impl Service {
    /// An address that cannot be had now may be there soon: the network comes late, or another process is just leaving.
    pub(super) fn await_address(&mut self, error: &Error) {
        self.try_again(error, ADDRESS_AGAIN);
    }

    /// What cannot be brought in now may be there soon: a disk is full, or a file system is mounted late.
    pub(super) fn await_first(&mut self, error: &Error) {
        let before = self.awaited.as_ref().and_then(|awaited| awaited.pause);
        let pause = before.map_or(AGAIN, |pause| (2 * pause).clamp(AGAIN, AGAIN_MAX));
        self.try_again(error, pause);
    }

    fn try_again(&mut self, error: &Error, pause: Duration) {
        let Error { message, hint, .. } = error;
        let problem = format!("{message} It is tried again every {} s. {hint}", pause.as_secs());
        if self.problem.as_ref() != Some(&problem) {
            tracing::error!(service = %self.name, "{problem}");
        }
        self.problem = Some(problem);
        self.next_try_unix_ms = Some(unix_ms() + pause.as_millis() as u64);
        let this = self.this.clone();
        let task = spawn_local(async move {
            sleep(pause).await;
            let Some(service) = this.upgrade() else { return };
            let mut service = service.borrow_mut();
            match service.machine.phase() {
                // Something may have been installed meanwhile.
                Phase::Stopped => service.start_when_brought_in(),
                _ => service.awaited = None,
            }
        });
        let timer = Some(task.abort_handle());
        self.awaited = Some(Awaited { timer, pause: Some(pause), is_called_off: Rc::default() });
    }

    /// What the service is started from is brought in now. What is given becomes true when the start is called off meanwhile.
    pub(super) fn begin_awaited(&mut self) -> Rc<Cell<bool>> {
        let pause = self.awaited.as_ref().and_then(|awaited| awaited.pause);
        let is_called_off = Rc::<Cell<bool>>::default();
        self.awaited = Some(Awaited { timer: None, pause, is_called_off: Rc::clone(&is_called_off) });
        is_called_off
    }

    /// Whether a start is tried again after a pause.
    pub(super) fn is_start_awaited(&self) -> bool {
        self.awaited.as_ref().is_some_and(|awaited| awaited.timer.is_some())
    }

    /// It is started now, or not to be started any more. Whether it has waited.
    pub(super) fn call_off_start(&mut self) -> bool {
        let has_waited = self.awaited.take().is_some();
        if has_waited {
            self.next_try_unix_ms = None;
            self.problem = None;
        }
        has_waited
    }
}

/// A start that nobody waits for. It is called off when this is dropped.
#[derive(Debug)]
pub(super) struct Awaited {
    /// When it is tried again. `None` while it is tried.
    timer: Option<AbortHandle>,
    /// The last pause.
    pause: Option<Duration>,
    is_called_off: Rc<Cell<bool>>,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.is_called_off.set(true);
        if let Some(timer) = &self.timer {
            timer.abort();
        }
    }
}
