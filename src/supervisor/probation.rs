//! The watch over a process that is on trial: one that serves a share, or one on probation. It is probed, and its errors are
//! counted, again and again.

use std::cell::RefCell;
use std::rc::Weak;
use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::supervisor::Event;
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::probing::WayIn;
use super::service::Service;
use crate::config::{ErrorCount, Probe, Trial};
use crate::hooks::Command;
use crate::journal::unix_ms;
use crate::probe::{Way, attempt, measure};

impl Service {
    /// Begins to watch. What it finds comes as an event.
    pub(super) fn watch(&mut self, id: HandoffId) {
        let (probe, trial) = (self.config.probe.clone(), self.config.trial.clone());
        self.stop_watching();
        if probe.is_some() || trial.errors.is_some() {
            let watching = spawn_local(watch(self.this.clone(), id, probe, trial));
            self.watching = Some(watching.abort_handle());
        }
    }

    fn stop_watching(&mut self) {
        if let Some(watching) = self.watching.take() {
            watching.abort();
        }
    }

    fn is_on_trial(&self, id: HandoffId) -> bool {
        self.machine.on_trial() == Some(id)
    }
}

async fn watch(service: Weak<RefCell<Service>>, id: HandoffId, probe: Option<Probe>, trial: Trial) {
    let since_unix_s = unix_ms() / 1_000;
    let mut failures = 0;
    let why = loop {
        sleep(Duration::from_millis(trial.interval_ms)).await;
        if !is_on_trial(&service, id) {
            return;
        }
        let mut way = WayIn::new(&service, id);
        let found = match look(probe.as_ref(), &trial, since_unix_s, &mut way).await {
            Ok(None) => {
                failures = 0;
                continue;
            }
            Ok(Some(too_many)) => break too_many,
            Err(found) => found,
        };
        failures += 1;
        tracing::warn!(%id, failures, found, "the new version is on trial and not well");
        if failures >= trial.failures {
            break format!("{found} ({failures} in a row)");
        }
    };
    if let Some(service) = service.upgrade() {
        service.borrow_mut().feed(Event::Condemned(id, why));
    }
}

fn is_on_trial(service: &Weak<RefCell<Service>>, id: HandoffId) -> bool {
    service.upgrade().is_some_and(|service| service.borrow().is_on_trial(id))
}

/// Looks once. An error is what was found instead of a process that is well; too many errors are told at once.
async fn look(
    probe: Option<&Probe>,
    trial: &Trial,
    since_unix_s: u64,
    way: &mut WayIn<'_>,
) -> Result<Option<String>, String> {
    if let Some(probe) = probe {
        attempt(&probe.check, Duration::from_millis(probe.timeout_ms), way)
            .await
            .map_err(|found| format!("the probe failed: {found}"))?;
    }
    let Some(ErrorCount { command, max }) = &trial.errors else { return Ok(None) };
    let mut variables = way.variables();
    variables.push(("HANDOFF_SINCE".to_owned(), since_unix_s.to_string()));
    let command = Command { argv: command.clone(), limit_ms: trial.interval_ms.max(ERRORS_WITHIN_MS) };
    let number = measure(&command, &variables, &way.working_dir())
        .await
        .map_err(|why| format!("its errors cannot be counted: {why}"))?;
    Ok((number > f64::from(*max)).then(|| format!("there were {number} errors; at most {max} are allowed")))
}

/// A command that counts errors has at least this long.
const ERRORS_WITHIN_MS: u64 = 2_000;
