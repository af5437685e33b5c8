//! Starts that nobody waits for, and that are tried again: for an address, or for what the service is started from.

use std::time::Duration;

use handoff_protocol::supervisor::Phase;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;

use super::Service;
use crate::control::Error;
use crate::journal::unix_ms;
use crate::supervisor::input::Input;
use crate::supervisor::process::Serial;

/// How long it takes until an address is tried again.
const ADDRESS_AGAIN: Duration = Duration::from_secs(1);
/// How long it takes at first until something else is tried again, which can be much work. Each pause is twice as long as the one before.
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_MAX: Duration = Duration::from_secs(60);

impl Service {
    /// An address that cannot be had now may be there soon: the network comes late, or another process is just leaving.
    pub(in crate::supervisor) fn await_address(&mut self, error: &Error) {
        self.try_again(error, ADDRESS_AGAIN);
    }

    /// What cannot be brought in now may be there soon: a disk is full, or a file system is mounted late.
    pub(in crate::supervisor) fn await_first(&mut self, error: &Error) {
        let before = self.next_start.awaited.as_ref().and_then(|awaited| awaited.pause);
        let pause = before.map_or(AGAIN, |pause| (2 * pause).clamp(AGAIN, AGAIN_MAX));
        self.try_again(error, pause);
    }

    fn try_again(&mut self, error: &Error, pause: Duration) {
        let Error { message, hint, .. } = error;
        let problem = format!("{message} It is tried again every {} s. {hint}", pause.as_secs());
        if self.problems.start_waits(problem.clone()) {
            tracing::error!(service = %self.name, "{problem}");
        }
        self.next_start.is_in(pause.as_millis() as u64);
        let (serial, inputs) = (self.next_serial(), self.inputs.clone());
        let task = spawn_local(async move {
            sleep(pause).await;
            inputs.send(Input::TryAgain(serial));
        });
        self.next_start.awaited =
            Some(Awaited { serial, timer: Some(task.abort_handle()), pause: Some(pause) });
    }

    /// The pause of a start that is tried again is over.
    pub(in crate::supervisor) fn start_again(&mut self, serial: Serial) {
        if !self.awaits(serial) {
            return;
        }
        match self.machine.phase() {
            // Something may have been installed meanwhile.
            Phase::Stopped => self.start_when_brought_in(),
            _ => self.next_start.awaited = None,
        }
    }

    /// What the service is started from is brought in now. Gives the number by which [`Service::awaits`] knows this start.
    pub(in crate::supervisor) fn begin_awaited(&mut self) -> Serial {
        let pause = self.next_start.awaited.as_ref().and_then(|awaited| awaited.pause);
        let serial = self.next_serial();
        self.next_start.awaited = Some(Awaited { serial, timer: None, pause });
        serial
    }

    /// Whether it is this start that is waited for: not if it was called off, or another has taken its place.
    pub(in crate::supervisor) fn awaits(&self, serial: Serial) -> bool {
        self.next_start.awaited.as_ref().is_some_and(|awaited| awaited.serial == serial)
    }

    /// Whether a start is tried again after a pause.
    pub(in crate::supervisor) fn is_start_awaited(&self) -> bool {
        self.next_start.awaited.as_ref().is_some_and(|awaited| awaited.timer.is_some())
    }

    /// It is started now, or not to be started any more. Whether it has waited.
    pub(in crate::supervisor) fn call_off_start(&mut self) -> bool {
        let has_waited = self.next_start.awaited.take().is_some();
        if has_waited {
            self.next_start.is_not_due();
            self.problems.start_waits_no_longer();
        }
        has_waited
    }
}

/// The start that is tried again: after a pause of the machine, or one that nobody waits for.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct NextStart {
    /// When it is tried, in milliseconds since 1970.
    at_unix_ms: Option<u64>,
    /// A start that nobody waits for.
    awaited: Option<Awaited>,
}

impl NextStart {
    /// It is tried when so much time has passed.
    pub(in crate::supervisor) fn is_in(&mut self, ms: u64) {
        self.at_unix_ms = Some(unix_ms().saturating_add(ms));
    }

    /// It is tried now, or not at all.
    pub(in crate::supervisor) fn is_not_due(&mut self) {
        self.at_unix_ms = None;
    }

    /// When it is tried, in milliseconds since 1970.
    pub(in crate::supervisor) fn at_unix_ms(&self) -> Option<u64> {
        self.at_unix_ms
    }
}

/// A start that nobody waits for. It is called off when this is dropped.
#[derive(Debug)]
struct Awaited {
    serial: Serial,
    /// When it is tried again. `None` while it is tried.
    timer: Option<AbortHandle>,
    /// The last pause.
    pause: Option<Duration>,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let Some(timer) = &self.timer {
            timer.abort();
        }
    }
}
