//! The power is cut after every operation, and again while the journal is opened after that.

use std::collections::HashSet;
use std::sync::Arc;

use handoff_protocol::log_image;
use handoff_protocol::record::{Current, Fact, Record, fold};

use crate::disk::{Disk, State};
use crate::{life, open, upgrade};

#[test]
fn whatever_a_power_cut_leaves_is_a_journal_with_every_commit() {
    let disk = Arc::new(Disk::default());
    let mut journal = open(&disk).unwrap();
    life(&disk, &mut journal, |journal| assert_eq!(journal.latched(), None));
    let written = records(&disk.state().cache);
    assert_eq!(written.len(), 22);
    assert_eq!(*journal.standing(), fold(&written));

    let mut seen = HashSet::new();
    let mut images = 0;
    for moment in disk.moments() {
        for image in moment.after_power_cut() {
            // What follows depends on nothing else.
            if seen.insert((image.clone(), moment.promised.as_ref().map(|current| current.generation))) {
                images += 1;
                survives(&image, &written, moment.promised.as_ref());
            }
        }
    }
    println!("{images} images after {} operations", disk.moments().len());
    assert!(images > 1000, "only {images} images");
}

/// Opens it, cuts the power at every moment of that, and lets the service live on.
fn survives(image: &[u8], written: &[Record], promised: Option<&Current>) {
    let disk = Arc::new(Disk::of(image));
    let mut journal = open(&disk).expect("what a crash leaves can be opened");
    let found = records(&disk.state().cache);
    assert!(written.starts_with(&found), "a fact that was never written, or in another order");
    assert_eq!(*journal.standing(), fold(&found));
    keeps(&found, promised);

    for moment in disk.moments() {
        for image in moment.after_power_cut() {
            let again = log_image::parse(&image).expect("opening it is no risk");
            assert_eq!(again.records, found, "opened twice, it is the same");
        }
    }

    journal.append(Fact::Wanted { up: true }).unwrap();
    upgrade(&disk, &mut journal, 9).unwrap();
    let state = disk.state();
    let longer = records(&state.cache);
    assert!(longer.starts_with(&found) && longer.len() == found.len() + 5);
    for image in state.after_power_cut() {
        assert_eq!(records(&image), longer);
    }
    assert_eq!(open(&Arc::new(Disk::of(&state.durable))).unwrap().standing(), journal.standing());
}

/// The generation that was promised is, or was, the current one.
fn keeps(found: &[Record], promised: Option<&Current>) {
    let Some(promised) = promised else { return };
    let kept = (0..=found.len()).any(|end| fold(&found[..end]).current.as_ref() == Some(promised));
    assert!(kept, "generation {} was durable and is lost", promised.generation);
}

fn records(bytes: &[u8]) -> Vec<Record> {
    log_image::parse(bytes).expect("a journal").records
}

/// Checks the checker: a record that is acknowledged before it is on the disk is found out.
#[test]
fn a_promise_without_a_sync_is_found_out() {
    let disk = Arc::new(Disk::default());
    let mut journal = open(&disk).unwrap();
    upgrade(&disk, &mut journal, 1).unwrap();
    crate::begin(&mut journal, 2).unwrap();
    journal.append(Fact::Committed { handoff: crate::id(2) }).unwrap();
    disk.promise(journal.standing().current.clone());
    let state: State = disk.state();
    let lost = |image: &Vec<u8>| {
        let found = records(image);
        !(0..=found.len()).any(|end| fold(&found[..end]).current == state.promised)
    };
    assert!(state.after_power_cut().iter().any(lost));
}
