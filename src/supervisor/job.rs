//! Jobs: services that run to their end (`type = "oneshot"`).

use std::time::Instant;

use handoff_protocol::supervisor::Phase;

use super::service::{Handle, Service};
use crate::config::ServiceKind;
use crate::control::{Error, api};

impl Service {
    /// Whether it is a job, and runs.
    pub(super) fn is_running_job(&self) -> bool {
        self.config.kind == ServiceKind::Oneshot && self.machine.phase() == Phase::Serving
    }

    /// An error if it is a job, and runs: to replace its process would break it off.
    pub(super) fn check_no_job(&self) -> Result<(), Error> {
        if self.is_running_job() { Err(Error::busy(&self.name, "its job runs")) } else { Ok(()) }
    }
}

impl Handle {
    /// Completes when no job runs.
    pub(super) async fn job_over(&self) {
        self.until(|service| !service.is_running_job()).await;
    }

    /// The outcome of a start. For a job it is its end, and this waits for that.
    pub(super) async fn done(&self, started: api::Outcome) -> api::Outcome {
        if started.outcome != api::Ending::Started || self.config().kind != ServiceKind::Oneshot {
            return started;
        }
        let since = Instant::now();
        self.until(|service| service.machine.phase() == Phase::Stopped).await;
        let took_us =
            started.took_us.saturating_add(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.read(|service| {
            let (outcome, reason) = if service.is_exited() {
                (api::Ending::Completed, None)
            } else if service.has_failed() {
                let exit = service.last_exit().map_or_else(|| "ended".to_owned(), |exit| exit.to_string());
                (api::Ending::Failed, Some(format!("the job {exit}")))
            } else {
                (api::Ending::Stopped, None)
            };
            api::Outcome { outcome, reason, took_us, pid: None, shim: None, ..started }
        })
    }
}
