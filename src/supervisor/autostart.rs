//! Whether a service starts with the daemon: what a person has decided, and what its file says.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use handoff_protocol::ids::ServiceName;
use handoff_protocol::record::Fact;
use handoff_protocol::supervisor::Phase;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_local;

use super::service::{Handle, START_LIMIT, Service};
use crate::config::Dirs;
use crate::control::{Error, Kind, api};
use crate::sys::regular;

const FILE: &str = "autostart.json";

/// What a person has decided. It is kept beside the journal, and on the disk: it counts after a restart of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Autostart {
    /// By `enable` or `disable`; without it, the service file decides.
    enabled: Option<bool>,
    /// Whether the service was stopped since, and not started again.
    stopped: bool,
}

impl Autostart {
    /// What was decided last; the default if nothing was. Blocks on the file system.
    pub(super) fn read(dirs: &Dirs, name: &ServiceName) -> io::Result<Self> {
        match regular::read(&path(dirs, name)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Puts it on the disk. Blocks on the file system.
    fn write(self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("new");
        let mut file = regular::create(&beside)?;
        file.write_all(&serde_json::to_vec(&self)?)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }

    /// Whether the service starts when the daemon starts, and what decides that. `file`: the key `autostart`.
    pub(super) fn decide(self, file: bool) -> api::Autostart {
        let (starts, decided_by) = match (self.stopped, self.enabled) {
            (_, Some(false)) => (false, api::DecidedBy::Disable),
            (true, _) => (false, api::DecidedBy::Stop),
            (false, Some(true)) => (true, api::DecidedBy::Enable),
            (false, None) => (file, api::DecidedBy::File),
        };
        api::Autostart { starts, decided_by }
    }
}

impl Service {
    pub(super) fn autostart(&self) -> api::Autostart {
        self.autostart.decide(self.config.autostart)
    }

    /// A person has asked for a start. Unless that was refused, it is started by the next daemon too.
    pub(super) fn started_by_person(&mut self) {
        let is_stopped = !self.machine.is_wanted() && self.journal.standing().rest.is_none();
        self.set_stopped(self.autostart.stopped && is_stopped);
    }

    /// A person has asked for a stop. Unless that was refused, it stays stopped under the next daemon.
    pub(super) fn stopped_by_person(&mut self) {
        // It has exited or failed: from now on it is stopped.
        if self.journal.standing().rest.is_some() && self.machine.phase() == Phase::Stopped {
            self.note(Fact::Wanted { up: false });
            self.problems.stopped();
        }
        self.set_stopped(!self.machine.is_wanted());
    }

    fn set_stopped(&mut self, stopped: bool) {
        self.autostart.stopped = stopped;
        // A stop takes its time, and the daemon may be lost meanwhile.
        if let Some(handle) = self.handle() {
            spawn_local(async move {
                if let Err(error) = handle.keep_autostart().await {
                    tracing::error!("{error}");
                }
            });
        }
    }
}

impl Handle {
    /// Enables or disables the service. An error if that cannot be kept.
    pub(super) async fn enable(&self, enabled: bool) -> Result<(), Error> {
        self.with(|service| service.autostart = Autostart { enabled: Some(enabled), stopped: false });
        self.keep_autostart().await
    }

    /// The end of an order of a person, once it is on the disk what that means for the next daemon.
    pub(super) async fn kept(&self, outcome: api::Outcome) -> api::Outcome {
        match self.keep_autostart().await {
            Ok(()) => outcome,
            Err(error) => {
                let reason = outcome.reason.iter().cloned().chain([error.to_string()]).collect::<Vec<_>>();
                api::Outcome { reason: Some(reason.join("; ")), ..outcome }
            }
        }
    }

    /// Puts the decision of a person on the disk, unless it is there.
    pub(super) async fn keep_autostart(&self) -> Result<(), Error> {
        let (value, kept, lane, path) = self.read(|service| {
            let path = path(&service.shared.dirs, &service.name);
            (service.autostart, service.kept_autostart, service.lanes.history.clone(), path)
        });
        if value == kept {
            return Ok(());
        }
        let what = path.display().to_string();
        let written = lane.run_within(START_LIMIT, what.clone(), move || value.write(&path)).await;
        written.and_then(|written| written).map_err(|error| {
            let message = format!(
                "{what} cannot be written: {error}. The next daemon goes by what was decided before."
            );
            Error::new(Kind::StorageFailed, message, "Mend that, then ask again.")
        })?;
        self.with(|service| service.kept_autostart = value);
        Ok(())
    }
}

fn path(dirs: &Dirs, name: &ServiceName) -> PathBuf {
    dirs.service_state(name).join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::DecidedBy::{Disable, Enable, File, Stop};

    #[test]
    fn the_last_decision_of_a_person_counts_before_the_file() {
        for (enabled, stopped, file, starts, decided_by) in [
            (None, false, true, true, File),
            (None, false, false, false, File),
            (None, true, true, false, Stop),
            (None, true, false, false, Stop),
            (Some(true), false, false, true, Enable),
            (Some(true), true, true, false, Stop),
            (Some(false), false, true, false, Disable),
            (Some(false), true, true, false, Disable),
        ] {
            let decided = Autostart { enabled, stopped }.decide(file);
            assert_eq!(decided, api::Autostart { starts, decided_by }, "{enabled:?} {stopped} {file}");
        }
    }
}
