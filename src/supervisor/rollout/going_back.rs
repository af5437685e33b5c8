//! The version to which a rollback leads, and the versions to which none does.

use std::path::Path;
use std::sync::Arc;

use crate::control::{Error, Kind};
use crate::store::Version;
use crate::supervisor::service::Service;

impl Service {
    /// The version that a rollback means.
    pub(super) fn to_go_back_to(&self, generation: Option<u64>) -> Result<Version, Error> {
        let current = self.current_binary().map(|binary| binary.sha256);
        let versions = self.versions.store.versions();
        let ran = || versions.iter().filter(|it| it.usage.last_generation().is_some());
        let found = match generation {
            Some(generation) => ran().find(|it| it.usage.generations.contains(&generation)),
            // One that was taken back would fail again.
            None => ran().find(|it| Some(it.metadata.id.0) != current && !it.usage.is_undone()),
        };
        found.cloned().ok_or_else(|| {
            let mut kept: Vec<u64> = ran().flat_map(|it| it.usage.generations.iter().copied()).collect();
            kept.sort_unstable();
            let kept: Vec<String> = kept.iter().map(u64::to_string).collect();
            let cause = match generation {
                Some(generation) => format!("the version of generation {generation} is not kept"),
                None if ran().any(|it| it.usage.is_undone()) => {
                    "no other version is kept that ran and was not taken back; name a generation to go back to such a version".to_owned()
                }
                None => "no other version that ran is kept".to_owned(),
            };
            let kept = if kept.is_empty() { "none".to_owned() } else { kept.join(", ") };
            let hint =
                format!("Generations whose versions are kept: {kept}; see: handoff versions {}", self.name);
            let message = format!("Service {:?} cannot go back: {cause}.", self.name.as_str());
            Error::new(Kind::UnknownVersion, message, hint)
        })
    }

    /// Notes in the store that the version that ran last was taken back. Does not wait for that.
    pub(in crate::supervisor) fn note_undone(&self) {
        let Some(undone) = &self.journal.standing().previous else { return };
        let Some(version) = self.versions.store.version_at(Path::new(&undone.binary.path)) else { return };
        let (store, id, generation) =
            (Arc::clone(&self.versions.store), version.metadata.id, undone.generation.0);
        self.lanes.history.post(move || {
            if let Err(error) = store.note_undone(&id, generation) {
                tracing::warn!(%error, generation, "the store does not know that this generation was undone");
            }
        });
    }
}
