//! The watch over a process that gets a share, is on probation, or serves. The daemon checks at intervals whether the
//! process is stopped and whether it passes its probe. For a process on trial it counts the errors as well.

use std::time::Duration;

use handoff_protocol::ids::{HandoffId, ServiceName};
use handoff_protocol::supervisor::{Event, Phase, WatchReason};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;

use super::probing::ProbeConnector;
use crate::config::{ErrorCount, ListenAddress, Liveness, Probe};
use crate::hooks::Command;
use crate::journal::unix_ms;
use crate::probe::{CommandEnvironment, Failure, ProcessAccess, attempt, measure};
use crate::supervisor::input::{Input, Inputs};
use crate::supervisor::service::Service;
use crate::sys::process::{children_of, is_frozen};

/// The watch over a process. It ends when this is dropped.
#[derive(Debug)]
pub(in crate::supervisor) struct Watchdog {
    watched: (HandoffId, WatchReason),
    task: AbortHandle,
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What to check, and how often.
struct WatchdogSettings {
    service: ServiceName,
    watch: WatchReason,
    probe: Option<Probe>,
    errors: Option<ErrorCount>,
    since_unix_s: u64,
    interval_ms: u64,
    /// The number of consecutive failed checks that condemns the process.
    failures: u32,
}

impl Service {
    /// Watches the process that the machine names now, and no other. Findings arrive as events.
    pub(in crate::supervisor) fn adjust_watchdog(&mut self) {
        let wanted = self.machine.watched();
        if self.monitor.watchdog.as_ref().map(|watchdog| watchdog.watched) == wanted {
            return;
        }
        self.monitor.watchdog = wanted.map(|over @ (id, watch)| {
            let task = spawn_local(watch_over(self.inputs.clone(), id, self.settings_for(watch)));
            Watchdog { watched: over, task: task.abort_handle() }
        });
    }

    /// Watches a serving process with the current settings. A process on trial is watched as its trial began.
    pub(in crate::supervisor) fn renew_watchdog(&mut self) {
        self.monitor.watchdog.take_if(|watchdog| watchdog.watched.1 == WatchReason::Liveness);
        self.adjust_watchdog();
    }

    fn settings_for(&self, watch: WatchReason) -> WatchdogSettings {
        let trial = &self.config.trial;
        let (interval_ms, failures, errors) = match watch {
            WatchReason::Share(_) | WatchReason::Probation => {
                (trial.interval_ms, trial.failures, trial.errors.clone())
            }
            WatchReason::Liveness => {
                let Liveness { interval_ms, failures } = self.config.liveness.unwrap_or_default();
                (interval_ms, failures, None)
            }
        };
        let (service, probe) = (self.name.clone(), self.config.probe.clone());
        WatchdogSettings {
            service,
            watch,
            probe,
            errors,
            since_unix_s: unix_ms() / 1_000,
            interval_ms,
            failures,
        }
    }

    /// The process that is stopped: the watched one, or the program behind it if that is a shim.
    fn stopped(&self) -> Option<u32> {
        let pid = self.tried()?.pid();
        let programs = if self.config.adapter.is_foreign() { children_of(pid) } else { Vec::new() };
        std::iter::once(pid).chain(programs).find(|pid| is_frozen(*pid))
    }

    /// A listener at which clients wait, although the serving process does not listen there any more.
    fn left_waiting(&mut self) -> Option<ListenAddress> {
        if self.machine.phase() != Phase::Serving {
            return None;
        }
        self.renew_ended();
        self.left_listeners_with_clients().into_iter().next()
    }

    /// Checks what can be seen of the watched process. An error says why it is unwell.
    pub(in crate::supervisor) fn check_watched(&mut self) -> Result<(), Failure> {
        if let Some(pid) = self.stopped() {
            return Err(Failure::Unwell(format!("the process {pid} is stopped, by a signal or a debugger")));
        }
        if let Some(address) = self.left_waiting() {
            let found = format!("clients wait at {address}, where the process does not listen any more");
            return Err(Failure::Unwell(found));
        }
        Ok(())
    }

    /// Condemns an unwell process, unless another one is watched by now.
    pub(in crate::supervisor) fn condemn(&mut self, id: HandoffId, watch: WatchReason, why: String) {
        if self.monitor.watchdog.as_ref().is_none_or(|watchdog| watchdog.watched != (id, watch)) {
            return;
        }
        if watch == WatchReason::Liveness
            && let Some(process) = self.processes.incumbent()
        {
            let pid = process.pid();
            tracing::warn!(pid, why, "the process is killed, since it does not serve");
            self.monitor.kill_reason = Some(why.clone());
        }
        self.feed(Event::Condemned(id, why));
    }
}

async fn watch_over(inputs: Inputs, id: HandoffId, settings: WatchdogSettings) {
    let mut failures = 0;
    let mut access = ProbeConnector::new(&inputs, id);
    let why = loop {
        sleep(Duration::from_millis(settings.interval_ms)).await;
        let found = match check_once(&inputs, &settings, &mut access).await {
            Ok(None) => {
                failures = 0;
                continue;
            }
            Ok(Some(too_many)) => break too_many,
            Err(Failure::Untried(found)) if settings.watch == WatchReason::Liveness => {
                tracing::warn!(service = %settings.service, found, "it cannot be looked whether the process serves");
                continue;
            }
            Err(Failure::Untried(found) | Failure::Unwell(found) | Failure::Reset(found)) => found,
        };
        failures += 1;
        tracing::warn!(service = %settings.service, failures, found, "the process that is watched is not well");
        if failures >= settings.failures {
            break format!("{found} ({failures} in a row)");
        }
    };
    inputs.send(Input::Condemned(id, settings.watch, why));
}

/// Checks the process once. An error says why it is unwell; `Some` says that there were too many errors, which
/// condemns it at once.
async fn check_once(
    inputs: &Inputs,
    settings: &WatchdogSettings,
    access: &mut ProbeConnector<'_>,
) -> Result<Option<String>, Failure> {
    inputs.ask(Input::CheckWatched).await.unwrap_or(Ok(()))?;
    if let Some(probe) = &settings.probe {
        attempt(&probe.check, Duration::from_millis(probe.timeout_ms), access)
            .await
            .map_err(|failure| failure.map(|found| format!("the probe failed: {found}")))?;
    }
    let Some(ErrorCount { command, max }) = &settings.errors else { return Ok(None) };
    let CommandEnvironment { mut variables, working_dir } = access.surroundings().await;
    variables.push(("HANDOFF_SINCE".to_owned(), settings.since_unix_s.to_string()));
    let command = Command { argv: command.clone(), limit_ms: settings.interval_ms.max(ERRORS_WITHIN_MS) };
    let number = measure(&command, &variables, &working_dir)
        .await
        .map_err(|why| Failure::Untried(format!("its errors cannot be counted: {why}")))?;
    Ok((number > f64::from(*max)).then(|| format!("there were {number} errors; at most {max} are allowed")))
}

/// The minimum time limit of a command that counts errors.
const ERRORS_WITHIN_MS: u64 = 2_000;
