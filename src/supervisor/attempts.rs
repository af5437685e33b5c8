//! What is told of an upgrade before the machine is asked: that it was refused, or that the daemon ended meanwhile.

use handoff_protocol::ids::HandoffId;
use tokio::task::spawn_local;

use super::install::{Pipeline, Wanted};
use super::recording::Recorder;
use super::service::Service;
use crate::control::Error;
use crate::history::{self, Ending, Entry};

impl Pipeline {
    /// The daemon begins with something that takes its time. Should it end meanwhile, the next one tells of it.
    pub(super) fn record_step(&self, wanted: &Wanted, doing: &str) {
        let reason = format!("the daemon ended while {doing}");
        self.handle.with(|service| {
            let entry = self.entry(service, Ending::Rejected, Some(&reason), self.aim(service, wanted));
            service.recorder.prepare(Entry { phases: self.phases.ended(), ..entry });
        });
    }

    pub(super) fn record_refusal(&self, wanted: &Wanted, error: &Error) {
        self.handle.with(|service| {
            let aim = self.aim(service, wanted);
            service.recorder.append(self.entry(service, Ending::Rejected, Some(&error.message), aim));
        });
    }

    /// What comes now is told by other entries, or there is nothing to tell.
    pub(super) fn forget_steps(&self) {
        self.handle.with(|service| service.recorder.forget(self.id));
    }

    fn aim(&self, service: &Service, wanted: &Wanted) -> history::Version {
        match wanted {
            Wanted::Path(path, _, version) => {
                history::Version { path: path.clone(), sha256: None, version: version.clone() }
            }
            Wanted::Kept(version) => history::Version {
                path: service.store.path_of(version),
                sha256: Some(version.made.id.to_string()),
                version: version.name().map(str::to_owned),
            },
        }
    }

    /// What is told of an attempt for which no handoff was made.
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
            took_us: self.asked.elapsed_us(),
            phases: self.asked.before.clone(),
            accept_gap_us: None,
            ..service.entry(&self.asked, ending, reason)
        }
    }
}

impl Recorder {
    /// Puts down what is told of an attempt if this daemon ends before more of it is. Never blocks, never fails.
    fn prepare(&self, entry: Entry) {
        let directory = self.directory.clone();
        self.lane.post(move || {
            if let Err(error) = history::prepare(&directory, &entry) {
                tracing::warn!(service = %entry.service, %error, "the next daemon would not tell of this attempt");
            }
        });
    }

    /// Forgets that, when all that was told since is written.
    pub(super) fn forget(&self, id: HandoffId) {
        let recorder = self.clone();
        spawn_local(async move {
            recorder.flushed().await;
            let directory = recorder.directory.clone();
            // What stays is known to be told already.
            recorder.lane.post(move || _ = history::forget(&directory, id));
        });
    }
}

impl Service {
    /// An attempt that an earlier daemon was about to begin, if none of the entries tells of it.
    pub(super) fn recall_prepared(&self, left: Option<Entry>, entries: &[Entry]) {
        let Some(left) = left else { return };
        let request = |entry: &Entry| (entry.at, entry.operation, entry.by.clone());
        let id = left.id;
        if !entries.iter().any(|entry| request(entry) == request(&left)) {
            self.recorder.append(left);
        }
        self.recorder.forget(id);
    }
}
