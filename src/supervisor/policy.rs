//! The times of a service as the machine counts them.

use handoff_protocol::deadline::{Policy, Stragglers};

use crate::config;

pub(super) fn policy(config: &config::Service) -> Policy {
    Policy {
        deadline_ms: config.deadline_ms,
        drain_grace_ms: config.drain_grace_ms,
        stragglers: match config.stragglers {
            config::Stragglers::Abort => Stragglers::Abort,
            config::Stragglers::Cut => Stragglers::Cut,
        },
        lease_ms: config.lease_ms,
        resume_limit_ms: config.resume_limit_ms,
        probes: config.probe.is_some(),
        // The probe has its own limit, and the better reason: this one is for a probe that hangs.
        probe_limit_ms: config.probe.as_ref().map_or(0, |probe| probe.limit_ms + 2 * probe.timeout_ms),
        stop_grace_ms: config.stop_grace_ms,
        canary: config.trial.canary.clone(),
        probation_ms: config.trial.probation_ms,
        liveness: config.liveness.is_some(),
        ..Policy::default()
    }
}
