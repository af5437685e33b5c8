//! The journal after a power cut at any moment, and after any failure of the storage.

mod disk;
mod faults;
mod page;
mod power;

use std::path::Path;
use std::sync::Arc;

use handoff::journal::{Journal, JournalError};
use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::reason::Exit;
use handoff_protocol::record::{Binary, Fact, Process};

use disk::Disk;

fn open(disk: &Arc<Disk>) -> Result<Journal, JournalError> {
    Journal::with_storage(Path::new("/journal"), Arc::clone(disk) as _)
}

fn id(n: u8) -> HandoffId {
    HandoffId::from_bytes([n; 16])
}

/// Records everything before the end of handoff `n`. The caller tolerates failures, as the supervisor does once a
/// process is started.
fn begin(journal: &mut Journal, n: u8) -> Result<(), JournalError> {
    let generation = journal.standing().generation().next();
    let binary = Binary { path: format!("/v{n}"), sha256: [n; 32] };
    journal.append(Fact::Intent { handoff: id(n), generation, binary })?;
    let process = Process { pid: n.into(), start_ticks: 1, boot_id: [7; 16] };
    journal.append(Fact::Spawned { handoff: id(n), process })?;
    journal.append(Fact::Begun { handoff: id(n) })
}

fn durably(disk: &Disk, journal: &mut Journal, fact: Fact) -> Result<(), JournalError> {
    let pending = journal.prepare(fact)?;
    journal.settle(pending, journal.storage().sync())?;
    disk.promise(journal.standing().current.clone());
    Ok(())
}

fn upgrade(disk: &Disk, journal: &mut Journal, n: u8) -> Result<(), JournalError> {
    begin(journal, n)?;
    durably(disk, journal, Fact::Committed { handoff: id(n) })
}

fn exited(journal: &mut Journal) -> Result<(), JournalError> {
    let generation: Generation = journal.standing().generation();
    journal.append(Fact::Exited { generation, exit: Exit::Signal(9) })
}

/// Compacts the journal as the supervisor does. A failed stage is ignored.
fn compact(journal: &mut Journal, meanwhile: impl FnOnce(&mut Journal)) -> Result<(), JournalError> {
    let Some(compaction) = journal.compaction(0) else { return Ok(()) };
    if compaction.stage().is_ok() && journal.replace(compaction)? {
        meanwhile(journal);
        journal.replaced(journal.storage().sync())?;
    }
    Ok(())
}

/// The life of a service: start, upgrade, rollback, revert, compaction, crash and restart, a stop during a commit, a
/// compaction during a commit. Each step may fail; the next one runs anyway.
fn life(disk: &Arc<Disk>, journal: &mut Journal, mut after_each: impl FnMut(&mut Journal)) {
    type Step = fn(&Arc<Disk>, &mut Journal) -> Result<(), JournalError>;
    let steps: [Step; 10] = [
        |_, journal| journal.append(Fact::Wanted { up: true }),
        |disk, journal| upgrade(disk, journal, 1),
        |_, journal| {
            begin(journal, 2)?;
            journal.append(Fact::RolledBack { handoff: id(2), reason: "sick".into() })
        },
        |disk, journal| upgrade(disk, journal, 3),
        |disk, journal| durably(disk, journal, Fact::Reverted { handoff: id(3) }),
        |_, journal| compact(journal, |_| {}),
        |_, journal| exited(journal),
        |disk, journal| {
            begin(journal, 4)?;
            let pending = journal.prepare(Fact::Committed { handoff: id(4) })?;
            let before = journal.append(Fact::Wanted { up: false });
            let synced = journal.storage().sync();
            let behind = journal.append(Fact::Wanted { up: true });
            journal.settle(pending, synced)?;
            disk.promise(journal.standing().current.clone());
            before.and(behind)
        },
        |_, journal| exited(journal),
        |disk, journal| {
            let mut committed = Ok(());
            compact(journal, |journal| committed = upgrade(disk, journal, 5))?;
            committed
        },
    ];
    for step in steps {
        let failed = step(disk, journal).is_err();
        after_each(journal);
        if failed {
            // A failed mend is retried in the next step.
            let _ = journal.repair();
        }
    }
}
