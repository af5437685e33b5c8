//! Starts that no client waits for, and that are tried again: for an address, or for the version that the service is
//! started from.

use std::time::Duration;

use handoff_protocol::supervisor::Phase;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;

use super::Service;
use crate::control::Error;
use crate::journal::unix_ms;
use crate::supervisor::input::Input;
use crate::supervisor::process::Token;

/// The pause before an address is tried again.
const ADDRESS_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The first pause before anything else is tried again, which can be much work. Each pause is twice as long as the
/// one before.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

impl Service {
    /// Waits for an address that is not available now, but may be soon: the network comes late, or another process is
    /// just leaving.
    pub(in crate::supervisor) fn await_address(&mut self, error: &Error) {
        self.try_again(error, ADDRESS_RETRY_PAUSE);
    }

    /// Waits for a version that cannot be brought in now, but may be soon: a disk is full, or a file system is
    /// mounted late.
    pub(in crate::supervisor) fn await_first(&mut self, error: &Error) {
        let before = self.next_start.awaited.as_ref().and_then(|awaited| awaited.pause);
        let pause = before.map_or(RETRY_PAUSE, |pause| (2 * pause).clamp(RETRY_PAUSE, RETRY_PAUSE_MAX));
        self.try_again(error, pause);
    }

    fn try_again(&mut self, error: &Error, pause: Duration) {
        let Error { message, hint, .. } = error;
        let problem = format!("{message} It is tried again every {} s. {hint}", pause.as_secs());
        if self.problems.start_waits(problem.clone()) {
            tracing::error!("{problem}");
        }
        self.next_start.is_in(pause.as_millis() as u64);
        let (token, inputs) = (self.next_token(), self.inputs.clone());
        let task = spawn_local(async move {
            sleep(pause).await;
            inputs.send(Input::RetryDue(token));
        });
        self.next_start.awaited =
            Some(AwaitedStart { token, timer: Some(task.abort_handle()), pause: Some(pause) });
    }

    /// Tries a start again after its pause.
    pub(in crate::supervisor) fn start_again(&mut self, token: Token) {
        if !self.awaits(token) {
            return;
        }
        match self.machine.phase() {
            // Something may have been installed meanwhile.
            Phase::Stopped => self.start_when_imported(),
            _ => self.next_start.awaited = None,
        }
    }

    /// Begins to bring in what the service is started from. Returns the token of this start for [`Service::awaits`].
    pub(in crate::supervisor) fn begin_awaited(&mut self) -> Token {
        let pause = self.next_start.awaited.as_ref().and_then(|awaited| awaited.pause);
        let token = self.next_token();
        self.next_start.awaited = Some(AwaitedStart { token, timer: None, pause });
        token
    }

    /// Whether this start is still waited for: it was neither called off nor replaced by another one.
    pub(in crate::supervisor) fn awaits(&self, token: Token) -> bool {
        self.next_start.awaited.as_ref().is_some_and(|awaited| awaited.token == token)
    }

    /// Whether a start is on its way: it waits for its next attempt, for a version, or for other services.
    pub(in crate::supervisor) fn has_pending_start(&self) -> bool {
        self.next_start.awaited.is_some()
    }

    /// Whether a start waits for its next attempt.
    pub(in crate::supervisor) fn is_start_awaited(&self) -> bool {
        self.next_start.awaited.as_ref().is_some_and(|awaited| awaited.timer.is_some())
    }

    /// Ends the wait: the service is started now, or will not be. Returns whether a start was waiting.
    pub(in crate::supervisor) fn call_off_start(&mut self) -> bool {
        let has_waited = self.next_start.awaited.take().is_some();
        if has_waited {
            self.next_start.is_not_due();
            self.problems.start_waits_no_longer();
            // Others may wait for this service.
            self.settled.notify_waiters();
        }
        has_waited
    }
}

/// The next attempt of a start: one after a pause of the machine, or one that no client waits for.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct NextStart {
    /// When it is made, in milliseconds since 1970.
    at_unix_ms: Option<u64>,
    /// A start that no client waits for.
    awaited: Option<AwaitedStart>,
}

impl NextStart {
    /// The attempt is made after this time.
    pub(in crate::supervisor) fn is_in(&mut self, ms: u64) {
        self.at_unix_ms = Some(unix_ms().saturating_add(ms));
    }

    /// The attempt is made now, or not at all.
    pub(in crate::supervisor) fn is_not_due(&mut self) {
        self.at_unix_ms = None;
    }

    /// When it is made, in milliseconds since 1970.
    pub(in crate::supervisor) fn at_unix_ms(&self) -> Option<u64> {
        self.at_unix_ms
    }
}

/// A start that no client waits for. Drop calls it off.
#[derive(Debug)]
struct AwaitedStart {
    token: Token,
    /// The timer of the next attempt. `None` during an attempt.
    timer: Option<AbortHandle>,
    /// The last pause.
    pause: Option<Duration>,
}

impl Drop for AwaitedStart {
    fn drop(&mut self) {
        if let Some(timer) = &self.timer {
            timer.abort();
        }
    }
}
