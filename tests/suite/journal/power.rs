//! The power is cut after every operation, and again during the next opening of the journal.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use handoff_protocol::log_image;
use handoff_protocol::record::{Binary, Current, Fact, Record, Standing, fold};

use super::disk::Disk;
use super::{compact, life, open, upgrade};
use crate::support::all_or;

#[test]
fn whatever_a_power_cut_leaves_is_a_journal_with_every_commit() {
    let disk = Arc::new(Disk::default());
    let mut journal = open(&disk).unwrap();
    life(&disk, &mut journal, |journal| assert_eq!(journal.latched(), None));
    let lives = lives(&disk);
    // Each later file begins with the final state of the previous one: a snapshot, and the facts that do not fit into
    // it.
    assert_eq!(lives.iter().map(Vec::len).collect::<Vec<_>>(), [14, 10, 5]);
    for (shorter, longer) in lives.iter().skip(1).zip(&lives) {
        let end = fold(longer);
        let first = 1 + end.beside_snapshot().count();
        assert_eq!(fold(&shorter[..first]), end);
    }
    assert_eq!(*journal.standing(), fold(lives.last().unwrap()));

    let mut seen = HashSet::new();
    let mut images = 0;
    for moment in disk.moments() {
        // Sorted, so that a sample is always the same.
        for image in moment.after_power_cut().into_iter().collect::<BTreeSet<_>>() {
            // The check depends only on these two values.
            let is_new =
                seen.insert((image.clone(), moment.promised.as_ref().map(|current| current.generation)));
            if is_new && seen.len() % all_or(1, 19) == 0 {
                images += 1;
                survives(&image, &lives, moment.promised.as_ref());
            }
        }
    }
    println!("{images} images after {} operations", disk.moments().len());
    assert!(images > 2000, "only {images} images");
}

/// The longest content of each file that had the journal's name.
fn lives(disk: &Disk) -> Vec<Vec<Record>> {
    let mut lives: Vec<Vec<Record>> = Vec::new();
    for moment in disk.moments() {
        let found = records(moment.cache());
        match lives.last_mut() {
            Some(last) if found.starts_with(last) => *last = found,
            _ => lives.push(found),
        }
    }
    lives
}

/// Opens the journal, cuts the power at every moment of the opening, and then continues with an upgrade.
fn survives(image: &[u8], lives: &[Vec<Record>], promised: Option<&Current>) {
    let disk = Arc::new(Disk::of(image));
    let mut journal = open(&disk).expect("what a crash leaves can be opened");
    let found = records(disk.state().cache());
    let written = lives.iter().any(|written| written.starts_with(&found));
    assert!(written, "a fact that was never written, or in another order");
    assert_eq!(*journal.standing(), fold(&found));
    keeps(&found, promised);

    for moment in disk.moments() {
        for image in moment.after_power_cut() {
            let again = log_image::parse(&image).expect("opening it damages nothing");
            assert_eq!(again.records, found, "opened twice, it is the same");
        }
    }

    journal.append(Fact::Wanted { up: true }).unwrap();
    upgrade(&disk, &mut journal, 9).unwrap();
    let state = disk.state();
    let longer = records(state.cache());
    assert!(longer.starts_with(&found) && longer.len() == found.len() + 5);
    for image in state.after_power_cut() {
        assert_eq!(records(&image), longer);
    }
    let [durable] = state.durable()[..] else { panic!("one file") };
    assert_eq!(open(&Arc::new(Disk::of(durable))).unwrap().standing(), journal.standing());
}

/// The promised generation is or was the current one.
fn keeps(found: &[Record], promised: Option<&Current>) {
    let Some(promised) = promised else { return };
    let kept =
        (0..=found.len()).any(|end| fold(&found[..end]).current.as_ref().map(runs) == Some(runs(promised)));
    assert!(kept, "generation {} was durable and is lost", promised.generation);
}

/// The parts of a generation that do not change when its process ends.
fn runs(current: &Current) -> (u64, &Binary) {
    (current.generation.0, &current.binary)
}

fn records(bytes: &[u8]) -> Vec<Record> {
    log_image::parse(bytes).expect("a journal").records
}

/// Tests the check itself: it detects a record that is acknowledged before it is on the disk.
#[test]
fn a_promise_without_a_sync_is_found_out() {
    let disk = Arc::new(Disk::default());
    let mut journal = open(&disk).unwrap();
    upgrade(&disk, &mut journal, 1).unwrap();
    super::begin(&mut journal, 2).unwrap();
    journal.append(Fact::Committed { handoff: super::id(2) }).unwrap();
    disk.promise(journal.standing().current.clone());
    assert!(loses_a_promise(&disk));
}

/// It detects a compacted journal that gets its name before its data is on the disk.
#[test]
fn a_name_before_the_bytes_is_found_out() {
    for stages_in_haste in [false, true] {
        let disk = Arc::new(Disk::hasty(stages_in_haste));
        let mut journal = open(&disk).unwrap();
        upgrade(&disk, &mut journal, 1).unwrap();
        compact(&mut journal, |_| assert_eq!(loses_a_promise(&disk), stages_in_haste)).unwrap();
        assert!(!loses_a_promise(&disk), "the next sync writes the data, too");
    }
}

/// It detects a commit in a file whose name may not be on the disk.
#[test]
fn a_commit_without_the_name_is_found_out() {
    let disk = Arc::new(Disk::default());
    let mut journal = open(&disk).unwrap();
    upgrade(&disk, &mut journal, 1).unwrap();
    compact(&mut journal, |journal| {
        upgrade(&disk, journal, 2).unwrap();
        assert!(!loses_a_promise(&disk));
    })
    .unwrap();
    let compaction = journal.compaction(0).unwrap();
    compaction.stage().unwrap();
    assert!(journal.replace(compaction).unwrap());
    super::begin(&mut journal, 3).unwrap();
    let pending = journal.prepare(Fact::Committed { handoff: super::id(3) }).unwrap();
    journal.settle(pending, Ok(())).unwrap();
    disk.promise(journal.standing().current.clone());
    assert!(loses_a_promise(&disk), "no code waited for the disk");
}

fn loses_a_promise(disk: &Disk) -> bool {
    let state = disk.state();
    let lost = |image: &Vec<u8>| {
        let Ok(found) = log_image::parse(image) else { return true };
        let stood = |end: usize| -> Standing { fold(&found.records[..end]) };
        !(0..=found.records.len()).any(|end| stood(end).current == state.promised)
    };
    state.after_power_cut().iter().any(lost)
}

/// A fact that arrives during a compaction is in the old file only, so the compacted one is discarded.
#[test]
fn a_fact_that_comes_meanwhile_is_never_lost() {
    let disk = Arc::new(Disk::default());
    let mut journal = open(&disk).unwrap();
    upgrade(&disk, &mut journal, 1).unwrap();
    let compaction = journal.compaction(0).unwrap();
    compaction.stage().unwrap();
    upgrade(&disk, &mut journal, 2).unwrap();
    assert!(!journal.replace(compaction).unwrap());
    assert!(!loses_a_promise(&disk));
    assert_eq!(open(&disk).unwrap().standing(), journal.standing());

    let pending = journal.prepare(Fact::Reverted { handoff: super::id(2) }).unwrap();
    assert!(journal.compaction(0).is_none(), "a durable fact is in progress");
    journal.settle(pending, journal.storage().sync()).unwrap();
    assert!(journal.compaction(1 << 20).is_none(), "it is short enough");
}
