//! The status of a service, for the clients of the daemon.

use handoff_protocol::supervisor::{Incumbent, Phase};

use super::rollout::hex;
use super::service::Service;
use crate::config::{self, ServiceKind};
use crate::control::api;

impl Service {
    pub(super) fn status(&self) -> api::ServiceStatus {
        // Read once: the file with it is removed after the process has ended.
        let pid = self.pid();
        let state = self.state(pid);
        let shown = self.shown();
        api::ServiceStatus {
            service: self.name.clone(),
            state,
            phase: self.shown_phase(state),
            detail: self.phase_status(),
            generation: self.journal.standing().generation(),
            pid,
            shim: self.pid_of_shim(),
            binary: shown.path,
            stored: shown.stored,
            version: shown.version,
            skew: None,
            named: None,
            staged: self.staged_status(),
            sha256: self.current_binary().map(|binary| hex(&binary.sha256)),
            started_at: self.serves_since(pid),
            autostart: self.autostart(),
            restarts: self.journal.standing().restarts,
            last_exit: self.last_exit(),
            mode: self.config.mode,
            listeners: self.config.listeners.iter().map(listener_status).collect(),
            file: self.file_status(),
            last_handoff: self.operations.last().cloned(),
            next_try_at: self.next_start.at_unix_ms(),
            problem: self.shown_problem(),
            last_lines: match state {
                api::State::Failed | api::State::Backoff => self.last_lines.shown(),
                _ => None,
            },
        }
    }

    /// What it does. `pid`: the result of [`Self::pid`].
    pub(super) fn state(&self, pid: Option<u32>) -> api::State {
        match (self.machine.phase(), self.machine.incumbent()) {
            (Phase::Recovering, _) => api::State::Recovering,
            (Phase::Stopped, _) if self.is_start_awaited() => api::State::Backoff,
            (Phase::Stopped, _) if self.is_first_imported() => api::State::Starting,
            (Phase::Stopped, _) if self.has_pending_start() => api::State::Waiting,
            (Phase::Stopped, _) if self.is_exited() => api::State::Exited,
            (Phase::Stopped, _) if self.problems.keeps_it_down() || self.has_failed() => api::State::Failed,
            (Phase::Stopped, _) => api::State::Stopped,
            (Phase::Backoff, _) => api::State::Backoff,
            // Its process ended a moment ago, or its main process did. The daemon learns of it a moment later.
            (Phase::Serving, _) if pid.is_none() || self.incumbent_main_exit().is_some() => {
                api::State::Starting
            }
            (Phase::Serving, _) if self.config.kind == ServiceKind::Oneshot => api::State::Running,
            (Phase::Serving, _) => api::State::Serving,
            (Phase::Stopping, _) => api::State::Stopping,
            (_, Incumbent::Absent) => api::State::Starting,
            (_, _) => api::State::Upgrading,
        }
    }

    /// The phase of a state, unless the state says it all.
    pub(super) fn shown_phase(&self, state: api::State) -> Option<String> {
        let phase = self.phase_name();
        let is_known = matches!(phase, "serving" | "stopped" | "backoff") || phase == state.as_str();
        (!is_known).then(|| phase.to_owned())
    }
}

impl Service {
    /// What the user should know now.
    pub(super) fn shown_problem(&self) -> Option<String> {
        let usual = self
            .shown_main_exit()
            .or_else(|| self.shown_lock_conflict())
            .or_else(|| self.shown_wait())
            .or_else(|| self.problem_text())
            .or_else(|| self.foreign_sockets_text())
            .or_else(|| self.shown_refusal());
        let sentences: Vec<String> = usual.into_iter().chain(self.left_listeners_sentence()).collect();
        (!sentences.is_empty()).then(|| sentences.join(" "))
    }
}

pub(super) fn listener_status(listener: &config::Listener) -> api::ListenerStatus {
    api::ListenerStatus { name: listener.name.clone(), address: listener.address.to_string() }
}
