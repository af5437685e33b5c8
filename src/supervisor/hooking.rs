//! The commands of a service file that are run around an upgrade, and what they are told.

use std::path::Path;

use handoff_protocol::supervisor::Target;

use super::binary::hex;
use super::service::{Handle, Service};
use crate::config;
use crate::control::{Error, api};
use crate::hooks::{self, Command};

/// What the commands of one upgrade are told, as variables of their environment.
#[derive(Debug, Clone)]
pub(super) struct Told(Vec<(String, String)>);

impl Service {
    /// An upgrade to the binary at `path` is about to begin.
    pub(super) fn told(&self, path: &Path, reason: &str) -> Told {
        let mut told = Told(vec![
            ("HANDOFF_SERVICE".to_owned(), self.name.to_string()),
            ("HANDOFF_REASON".to_owned(), reason.to_owned()),
            ("HANDOFF_GENERATION".to_owned(), self.journal.standing().generation().to_string()),
        ]);
        told.add(
            "FROM",
            self,
            &self.path_of(Target::Committed),
            self.current_binary().map(|it| hex(&it.sha256)),
        );
        told.add("TO", self, path, self.stored_binary(path).map(|it| hex(&it.sha256)));
        told
    }
}

impl Told {
    /// The path of a binary, and its hash and version where they are known.
    fn add(&mut self, side: &str, service: &Service, path: &Path, sha256: Option<String>) {
        let version = service.store.version_at(path).and_then(|version| version.made.version);
        self.0.push((format!("HANDOFF_{side}"), path.to_string_lossy().into_owned()));
        self.0.push((format!("HANDOFF_{side}_SHA256"), sha256.unwrap_or_default()));
        self.0.push((format!("HANDOFF_{side}_VERSION"), version.unwrap_or_default()));
    }

    fn and(mut self, name: &str, value: impl ToString) -> Self {
        self.0.push((name.to_owned(), value.to_string()));
        self
    }
}

/// Runs the preflight, or the hook before an upgrade. The error says that the new version was refused.
pub(super) async fn must_pass(
    command: &Command,
    told: &Told,
    path: &Path,
    config: &config::Service,
) -> Result<(), Error> {
    let ran = hooks::run(command, Some(path), &told.0, &config.working_dir).await;
    ran.map(|_| ()).map_err(|error| Error::rejected(&config.name, &error, error.hint()))
}

/// Runs the hook after an upgrade, if there is one. That it fails is told, and changes nothing.
pub(super) async fn afterwards(
    handle: &Handle,
    config: &config::Service,
    told: Told,
    outcome: &api::Outcome,
    path: &Path,
) {
    let hook = match outcome.outcome {
        api::Ending::Committed => &config.hooks.post_commit,
        api::Ending::RolledBack => &config.hooks.post_rollback,
        api::Ending::Started | api::Ending::Stopped | api::Ending::Unchanged => return,
    };
    let Some(command) = hook else { return };
    let told = told
        .and("HANDOFF_ID", outcome.handoff)
        .and("HANDOFF_CAUSE", outcome.reason.as_deref().unwrap_or_default())
        .and("HANDOFF_PID", outcome.pid.unwrap_or_default());
    if let Err(error) = hooks::run(command, Some(path), &told.0, &config.working_dir).await {
        tracing::warn!(service = %config.name, %error, "a hook failed");
        let problem = format!("The upgrade has ended, but its hook failed: {error}; {}.", error.hint());
        handle.with(|service| service.problem = Some(problem));
    }
}
