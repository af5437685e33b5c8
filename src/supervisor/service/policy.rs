//! The time limits of a service, for the machine.

use handoff_protocol::deadline::{Policy, Stragglers};

use crate::config;
use crate::supervisor::listening::ANSWER_MS;

pub(in crate::supervisor) fn policy(config: &config::Service) -> Policy {
    // A process seals once its answers are given.
    let answers_ms = config.answer_grace_ms.unwrap_or(0);
    let usual = Policy::default();
    Policy {
        seal_limit_ms: usual.seal_limit_ms + answers_ms,
        seal_ends: config.adapter.is_foreign(),
        quiet_limit_ms: usual.quiet_limit_ms + config.answer_grace_ms.unwrap_or(ANSWER_MS),
        deadline_ms: config.deadline_ms,
        drain_grace_ms: config.drain_grace_ms,
        stragglers: match config.stragglers {
            config::Stragglers::Abort => Stragglers::Abort,
            config::Stragglers::Cut => Stragglers::Cut,
        },
        lease_ms: config.lease_ms,
        resume_limit_ms: config.resume_limit_ms,
        probes: config.probe.is_some(),
        probe_limit_ms: config.probe.as_ref().map_or(0, |probe| probe.limit_ms),
        canary_probe_limit_ms: config.trial.interval_ms.saturating_mul(config.trial.failures.into()),
        probe_margin_ms: config.probe.as_ref().map_or(0, |probe| 2 * probe.timeout_ms),
        stop_grace_ms: config.stop_grace_ms,
        canary: config.trial.canary.clone(),
        probation_ms: config.trial.probation_ms,
        liveness: config.liveness.is_some(),
        restart: config.restart.clone(),
        ..usual
    }
}
