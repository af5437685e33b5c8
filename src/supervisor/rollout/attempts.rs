//! What the history records of an upgrade before the machine is asked: that it was refused, or that the daemon ended
//! meanwhile.

use super::install::{Pipeline, RequestedVersion};
use crate::control::Error;
use crate::history::{self, Ending, Entry};
use crate::supervisor::service::Service;

impl Pipeline {
    /// Prepares the entry of a step that takes its time. If the daemon ends meanwhile, the next one reports it.
    pub(super) fn record_step(&self, wanted: &RequestedVersion, doing: &str) {
        let reason = format!("the daemon ended while {doing}");
        self.handle.read(|service| {
            let entry =
                self.entry(service, Ending::Rejected, Some(&reason), self.wanted_version(service, wanted));
            service.operations.recorder().prepare(Entry { phases: self.phases.ended(), ..entry });
        });
    }

    pub(super) fn record_refusal(&self, wanted: &RequestedVersion, error: &Error) {
        self.handle.read(|service| {
            let aim = self.wanted_version(service, wanted);
            service.operations.recorder().append(self.entry(
                service,
                Ending::Rejected,
                Some(&error.message),
                aim,
            ));
        });
    }

    /// Drops the prepared entry: other entries report what comes now, or there is nothing to report.
    pub(super) fn forget_steps(&self) {
        self.handle.read(|service| service.operations.recorder().forget(self.id));
    }

    fn wanted_version(&self, service: &Service, wanted: &RequestedVersion) -> history::Version {
        match wanted {
            RequestedVersion::Path(path, _, version) => {
                history::Version { path: path.clone(), sha256: None, version: version.clone() }
            }
            RequestedVersion::Kept(version) => history::Version {
                path: service.versions.store.path_of(version),
                sha256: Some(version.metadata.id.to_string()),
                version: version.name().map(str::to_owned),
            },
        }
    }

    /// The entry of an attempt that has no handoff.
    pub(super) fn entry(
        &self,
        service: &Service,
        ending: Ending,
        reason: Option<&str>,
        to: history::Version,
    ) -> Entry {
        Entry {
            id: self.id,
            from: service.current_version(),
            to: Some(to),
            took_us: self.requested.elapsed_us(),
            phases: self.requested.before.clone(),
            accept_gap_us: None,
            ..service.entry(&self.requested, ending, reason)
        }
    }
}
