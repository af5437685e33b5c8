//! Every operation of the storage fails once, in every way.

use std::io::ErrorKind;
use std::sync::Arc;

use handoff::journal::Journal;
use handoff_protocol::log_image;
use handoff_protocol::record::{Standing, fold};

use super::disk::{Disk, Fault};
use super::{life, open, upgrade};

#[test]
fn every_operation_fails_once() {
    let faults = [
        Fault::Error(ErrorKind::StorageFull, 0),
        Fault::Error(ErrorKind::StorageFull, 1),
        Fault::Error(ErrorKind::StorageFull, 20),
        Fault::Error(ErrorKind::WriteZero, usize::MAX),
        Fault::Error(ErrorKind::Other, 0),
        Fault::Dropped,
    ];
    for fault in faults {
        let reached = (0..).take_while(|number| lives_with(*number, fault)).count();
        assert!(reached > 40, "only {reached} operations were reached");
    }
}

/// Whether an operation of this number exists.
fn lives_with(number: usize, fault: Fault) -> bool {
    let disk = Arc::new(Disk::default());
    disk.fail(number, fault);
    let mut journal = match open(&disk) {
        Ok(journal) => journal,
        // The fault is over, and nothing is lost yet.
        Err(_) => open(&disk).expect("a new journal"),
    };
    life(&disk, &mut journal, |journal| claims_no_more_than_the_disk_has(&disk, journal));
    if disk.is_faulty() {
        return false;
    }
    let live = journal.standing().clone();
    let is_latched = journal.latched().is_some();
    drop(journal);
    let mut again = open(&disk).expect("the page cache has a journal");
    match is_latched {
        false => assert_eq!(*again.standing(), live, "{number} {fault:?}"),
        true => assert_eq!(what_runs(again.standing()), what_runs(&live), "{number} {fault:?}"),
    }
    goes_on(&disk, &mut again);
    true
}

fn claims_no_more_than_the_disk_has(disk: &Disk, journal: &Journal) {
    let Some(current) = &journal.standing().current else { return };
    let is = |standing: &Standing| {
        let found = standing.current.as_ref();
        found.is_some_and(|it| (it.generation, &it.binary) == (current.generation, &current.binary))
    };
    // For each file that may have the journal's name on the disk.
    for durable in disk.state().durable() {
        let found = log_image::parse(durable).expect("a journal").records;
        assert!((0..=found.len()).any(|end| is(&fold(&found[..end]))), "{current:?} is not on the disk");
    }
}

/// The generations that a restart after a failed sync must find again.
fn what_runs(standing: &Standing) -> Vec<(u64, String)> {
    let each = standing.current.iter().chain(&standing.previous);
    each.map(|it| (it.generation.0, it.binary.path.clone())).collect()
}

/// A reopened journal accepts a commit, and no power cut loses it.
fn goes_on(disk: &Disk, journal: &mut Journal) {
    upgrade(disk, journal, 9).expect("the fault is over");
    let standing = journal.standing();
    for image in disk.state().after_power_cut() {
        let found = open(&Arc::new(Disk::of(&image))).expect("a journal");
        assert_eq!(found.standing(), standing);
    }
}

#[test]
fn opening_fails_or_latches_but_never_lies() {
    let whole = Arc::new(Disk::default());
    let mut journal = open(&whole).unwrap();
    upgrade(&whole, &mut journal, 1).unwrap();
    super::begin(&mut journal, 2).unwrap();
    let mut bytes = whole.state().cache().to_vec();
    bytes.extend_from_slice(b"torn");
    for (number, opens, mends) in
        [(0, false, false), (1, false, false), (2, true, true), (3, true, false), (4, true, false)]
    {
        let disk = Arc::new(Disk::of(&bytes));
        disk.fail(number, Fault::Error(ErrorKind::Other, 3));
        let opened = open(&disk);
        assert!(!disk.is_faulty(), "operation {number} is one of opening");
        assert_eq!(opened.is_ok(), opens, "{number}");
        if let Ok(mut opened) = opened {
            assert_eq!(opened.standing(), journal.standing());
            // Operation 4 writes the note in the header, which nothing depends on.
            assert_eq!(opened.latched().is_some(), number != 4);
            assert_eq!(opened.repair().unwrap(), mends);
        }
        let mut again = open(&disk).unwrap();
        assert_eq!(again.standing(), journal.standing());
        goes_on(&disk, &mut again);
    }
}
