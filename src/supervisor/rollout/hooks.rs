//! The commands of a service file that run around an upgrade, and the variables that they get.

use std::future::Future;
use std::path::Path;

use handoff_protocol::supervisor::Target;
use tokio::task::spawn_local;

use super::binary::hex;
use crate::config;
use crate::control::{Error, api};
use crate::hooks::{self, Command};
use crate::supervisor::process::Process;
use crate::supervisor::service::{Handle, Service};

/// Environment variables for the commands of one upgrade.
#[derive(Debug, Clone)]
pub(in crate::supervisor) struct HookVariables(Vec<(String, String)>);

impl Service {
    /// The variables of an upgrade to the binary at `path` that is about to begin.
    pub(in crate::supervisor) fn variables(&self, path: &Path, reason: &str) -> HookVariables {
        let mut variables = HookVariables(vec![
            ("HANDOFF_SERVICE".to_owned(), self.name.to_string()),
            ("HANDOFF_REASON".to_owned(), reason.to_owned()),
            ("HANDOFF_GENERATION".to_owned(), self.journal.standing().generation().to_string()),
        ]);
        variables.add(
            "FROM",
            self,
            &self.path_of(Target::Committed),
            self.current_binary().map(|it| hex(&it.sha256)),
        );
        variables.add("TO", self, path, self.stored_binary(path).map(|it| hex(&it.sha256)));
        variables
    }
}

/// The event that the drain command is run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) enum DrainEvent {
    /// The process is about to be ended: its clients should move on.
    Begins,
    /// The process continues to serve after all.
    GoesOn,
}

impl Service {
    /// Runs the drain command, if there is one. Nothing waits for it.
    pub(in crate::supervisor) fn run_drain_command(&self, process: Option<&Process>, drains: DrainEvent) {
        let (Some(command), Some(process)) = (self.config.hooks.drain.clone(), process) else { return };
        let pid = self.program_run_by(process).unwrap_or(process.pid());
        let drain = match drains {
            DrainEvent::Begins => "begin",
            DrainEvent::GoesOn => "cancel",
        };
        let variables = HookVariables(Vec::new())
            .and("HANDOFF_SERVICE", &self.name)
            .and("HANDOFF_PID", pid)
            .and("HANDOFF_DRAIN", drain);
        let (service, directory) = (self.name.clone(), self.config.working_dir.clone());
        spawn_local(async move {
            if let Err(error) = hooks::run(&command, None, &variables.0, &directory).await {
                tracing::warn!(%service, %error, "the command of the drain failed");
            }
        });
    }
}

impl HookVariables {
    /// Adds the path of a binary, and its hash and version if they are known.
    fn add(&mut self, side: &str, service: &Service, path: &Path, sha256: Option<String>) {
        let version =
            service.versions.store.version_at(path).and_then(|version| Some(version.name()?.to_owned()));
        self.0.push((format!("HANDOFF_{side}"), path.to_string_lossy().into_owned()));
        self.0.push((format!("HANDOFF_{side}_SHA256"), sha256.unwrap_or_default()));
        self.0.push((format!("HANDOFF_{side}_VERSION"), version.unwrap_or_default()));
    }

    /// Updates the new version: since the earlier commands, a process may have reported it.
    fn named(mut self, version: Option<String>) -> Self {
        let mut variables = self.0.iter_mut().filter(|(name, _)| name == "HANDOFF_TO_VERSION");
        if let Some(((_, known), version)) = variables.next().zip(version) {
            *known = version;
        }
        self
    }

    fn and(mut self, name: &str, value: impl ToString) -> Self {
        self.0.push((name.to_owned(), value.to_string()));
        self
    }
}

/// Runs the preflight, or the hook before an upgrade. The error says that the new version was refused.
pub(in crate::supervisor) async fn must_pass(
    command: &Command,
    variables: &HookVariables,
    path: &Path,
    config: &config::Service,
    called_off: impl Future<Output = ()>,
) -> Result<(), Error> {
    let ran = hooks::run_until(command, Some(path), &variables.0, &config.working_dir, called_off).await;
    ran.map(|_| ()).map_err(|error| Error::rejected(&config.name, &error, error.hint()))
}

/// Runs the hook after an upgrade, if there is one. A failure is reported, and changes nothing.
pub(in crate::supervisor) async fn afterwards(
    handle: &Handle,
    config: &config::Service,
    variables: HookVariables,
    outcome: &api::Outcome,
    path: &Path,
) {
    let hook = match outcome.outcome {
        api::Ending::Committed => &config.hooks.post_commit,
        api::Ending::RolledBack => &config.hooks.post_rollback,
        api::Ending::Started
        | api::Ending::Completed
        | api::Ending::Stopped
        | api::Ending::Unchanged
        | api::Ending::Staged
        | api::Ending::Failed => return,
    };
    let Some(command) = hook else { return };
    let variables = variables
        .named(handle.read(|service| match outcome.outcome {
            api::Ending::Committed => outcome.version.clone(),
            _ => service.versions.store.version_at(path).and_then(|version| Some(version.name()?.to_owned())),
        }))
        .and("HANDOFF_ID", outcome.handoff.map_or_else(String::new, |handoff| handoff.to_string()))
        .and("HANDOFF_CAUSE", outcome.reason.as_deref().unwrap_or_default())
        .and("HANDOFF_PID", outcome.pid.unwrap_or_default());
    if let Err(error) = hooks::run(command, Some(path), &variables.0, &config.working_dir).await {
        tracing::warn!(service = %config.name, %error, "a hook failed");
        handle.with(|service| service.problems.hook_failed(&error));
    }
}
