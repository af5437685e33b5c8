//! Keeps the journal of a service short.

use std::cell::RefCell;
use std::rc::Weak;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::timeout;

use super::lane::Lane;
use super::service::{Handle, Service};
use crate::journal::Compaction;

/// Over this size a journal is replaced by a shorter one. An upgrade adds some 500 bytes.
const LIMIT_BYTES: u64 = 64 * 1024;

/// How long a request lets a shorter journal go first: a disk takes milliseconds. A disk that hangs holds nobody up here.
const PATIENCE: Duration = Duration::from_secs(1);

impl Service {
    /// At rest, replaces a journal that has grown. The waits for the disk are on another thread.
    pub(super) fn compact_journal(&mut self) {
        if self.is_compacting {
            return;
        }
        let Some(compaction) = self.journal.compaction(LIMIT_BYTES) else { return };
        self.is_compacting = true;
        let (this, lane) = (self.this.clone(), self.lanes.journal.clone());
        spawn_local(async move {
            let compacted = compact(&this, &lane, compaction).await;
            let Some(service) = this.upgrade() else { return };
            let mut service = service.borrow_mut();
            service.is_compacting = false;
            service.settled.notify_waiters();
            if let Err(error) = compacted {
                tracing::warn!(service = %service.name, error, "the journal stays as long as it is");
                service.problem = service.journal.latched().map(str::to_owned).or(service.problem.take());
            }
        });
    }
}

async fn compact(this: &Weak<RefCell<Service>>, lane: &Lane, compaction: Compaction) -> Result<(), String> {
    let (compaction, staged) = lane
        .run(move || {
            let staged = compaction.stage();
            (compaction, staged)
        })
        .await
        .map_err(|error| error.to_string())?;
    staged.map_err(|error| error.to_string())?;
    let Some(service) = this.upgrade() else { return Ok(()) };
    let storage = {
        let journal = &mut service.borrow_mut().journal;
        match journal.replace(compaction).map_err(|error| error.to_string())? {
            true => journal.storage(),
            // The next rest is longer.
            false => return Ok(()),
        }
    };
    let synced = lane.run(move || storage.sync()).await.and_then(|synced| synced);
    service.borrow_mut().journal.replaced(synced).map_err(|error| error.to_string())
}

impl Handle {
    /// Completes when the journal is as short as it gets. A request that records something would make the shorter one
    /// stale, and one request after the other would let it grow without end.
    pub(super) async fn compacted(&self) {
        let compacted = self.until(|service| !service.is_compacting);
        // A disk that takes longer than that has waited long enough.
        let _ = timeout(PATIENCE, compacted).await;
    }
}
