//! Keeps the journal of a service short.

use std::io;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::timeout;

use super::{Handle, Service};
use crate::journal::Compaction;
use crate::supervisor::input::Input;

/// A journal over this size is replaced by a shorter one. An upgrade adds some 500 bytes.
const LIMIT_BYTES: u64 = 64 * 1024;

/// How long a request lets a compaction go first. A disk takes milliseconds; one that hangs holds nothing up here.
const TIMEOUT: Duration = Duration::from_secs(1);

impl Service {
    /// At rest, replaces a journal that has grown. Another thread waits for the disk.
    pub(in crate::supervisor) fn compact_journal(&mut self) {
        if self.disk.is_compacting() {
            return;
        }
        let Some(compaction) = self.journal.compaction(LIMIT_BYTES) else { return };
        self.disk.compacts(true);
        let inputs = self.inputs.clone();
        let staged = self.lanes.journal.run(move || compaction.stage().map(|()| compaction));
        spawn_local(async move {
            inputs.send(Input::CompactionStaged(staged.await.and_then(|staged| staged)));
        });
    }

    /// Puts the shorter journal in place of the one in use, unless writing it has failed.
    pub(in crate::supervisor) fn compaction_staged(&mut self, staged: io::Result<Compaction>) {
        let replaced = staged
            .map_err(|error| error.to_string())
            .and_then(|compaction| self.journal.replace(compaction).map_err(|error| error.to_string()));
        match replaced {
            Ok(true) => {}
            // A record was added since. A later rest may be longer.
            Ok(false) => return self.end_compaction(Ok(())),
            Err(error) => return self.end_compaction(Err(error)),
        }
        let (storage, inputs) = (self.journal.storage(), self.inputs.clone());
        let synced = self.lanes.journal.run(move || storage.sync());
        spawn_local(async move {
            inputs.send(Input::CompactionSynced(synced.await.and_then(|synced| synced)));
        });
    }

    /// Ends the compaction: the disk has the shorter journal, or has refused it.
    pub(in crate::supervisor) fn compaction_synced(&mut self, synced: io::Result<()>) {
        let replaced = self.journal.replaced(synced).map_err(|error| error.to_string());
        self.end_compaction(replaced);
    }

    fn end_compaction(&mut self, compacted: Result<(), String>) {
        self.disk.compacts(false);
        self.settled.notify_waiters();
        if let Err(error) = compacted {
            tracing::warn!(error, "the journal stays as long as it is");
            self.problems.journal_stays_long(self.journal.latched());
        }
    }
}

impl Handle {
    /// Completes when the journal is as short as it gets. A request that records something would make a shorter
    /// journal stale, and a series of requests would let the journal grow without end.
    pub(in crate::supervisor) async fn compacted(&self) {
        let compacted = self.until(|service| !service.disk.is_compacting());
        // A disk that takes longer is not waited for.
        let _ = timeout(TIMEOUT, compacted).await;
    }
}
