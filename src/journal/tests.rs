use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::record::Binary;

use super::*;

fn id(n: u8) -> HandoffId {
    HandoffId::from_bytes([n; 16])
}

fn upgrade(journal: &mut Journal, n: u8) {
    let binary = Binary { path: format!("/bin/v{n}"), sha256: [n; 32] };
    let generation = Generation(n.into());
    journal.append(Fact::Intent { handoff: id(n), generation, binary }).unwrap();
    journal.append(Fact::Committed { handoff: id(n) }).unwrap();
}

#[test]
fn what_was_appended_is_there_when_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    journal.append(Fact::Wanted { up: true }).unwrap();
    upgrade(&mut journal, 1);
    upgrade(&mut journal, 2);
    let live = journal.standing().clone();
    drop(journal);
    let again = Journal::open(&path).unwrap();
    assert_eq!(*again.standing(), live);
    assert_eq!(live.generation(), Generation(2));
    assert_eq!(live.previous.unwrap().binary.path, "/bin/v1");
}

#[test]
fn a_journal_of_an_earlier_format_is_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    upgrade(&mut journal, 1);
    let standing = journal.standing().clone();
    drop(journal);
    let mut bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes[8..12], [3, 0, 0, 0]);
    bytes[8] = 1;
    std::fs::write(&path, &bytes).unwrap();
    let mut journal = Journal::open(&path).unwrap();
    assert_eq!((journal.standing(), journal.latched()), (&standing, None));
    assert_eq!(
        std::fs::read(&path).unwrap()[8..12],
        [3, 0, 0, 0],
        "an earlier version refuses it from now on"
    );
    upgrade(&mut journal, 2);
    assert_eq!(Journal::open(&path).unwrap().standing().generation(), Generation(2));
}

#[test]
fn a_commit_that_is_given_up_is_no_commit_whatever_the_disk_says_later() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    upgrade(&mut journal, 1);
    let binary = Binary { path: "/bin/v2".to_owned(), sha256: [2; 32] };
    journal.append(Fact::Intent { handoff: id(2), generation: Generation(2), binary }).unwrap();
    let pending = journal.prepare(Fact::Committed { handoff: id(2) }).unwrap();
    journal.append(Fact::Wanted { up: true }).unwrap();
    let (error, cut) = journal.give_up().unwrap();
    assert!(error.to_string().contains("has not answered in time"), "{error}");
    assert!(journal.give_up().is_none());
    assert_eq!((journal.standing().generation(), journal.standing().wanted), (Generation(1), true));
    assert!(matches!(journal.append(Fact::Wanted { up: false }), Err(JournalError::Latched { .. })));
    assert!(!journal.repair().unwrap(), "only a new daemon can learn the content of the disk");
    journal.settle(pending, Ok(())).unwrap();
    assert_eq!(journal.standing().generation(), Generation(1));
    cut();
    assert_eq!(Journal::open(&path).unwrap().standing().generation(), Generation(1));
}

#[test]
fn only_a_journal_that_was_read_can_be_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    upgrade(&mut Journal::open(&path).unwrap(), 1);
    std::fs::write(directory.path().join("other"), "no journal").unwrap();
    let damaged = Journal::open(&directory.path().join("other")).unwrap_err();
    assert!(Journal::in_memory(&path, &damaged).is_damaged());
    let source = io::Error::other("no thread");
    let unreached = JournalError::Storage { path: path.clone(), what: "open it", source };
    let journal = Journal::unreached(&path, &unreached);
    assert!(journal.refused().is_some() && !journal.is_damaged());
    assert_eq!(journal.last_generation(), Generation(0), "it was not read");
    assert_eq!(Journal::in_memory(&path, &unreached).last_generation(), Generation(1));
}

#[test]
fn a_torn_tail_is_dropped_at_every_byte_and_writing_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    upgrade(&mut journal, 1);
    let durable = journal.end;
    journal.append(Fact::Wanted { up: true }).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in durable as usize..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let mut journal = Journal::open(&path).unwrap();
        assert!(!journal.standing().wanted);
        upgrade(&mut journal, 2);
        assert_eq!(Journal::open(&path).unwrap().standing().generation(), Generation(2));
    }
}

#[test]
fn damage_of_what_was_on_the_disk_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    upgrade(&mut journal, 1);
    upgrade(&mut journal, 2);
    drop(Journal::open(&path).unwrap());
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[40] ^= 1;
    let cut = whole[..whole.len() - 1].to_vec();
    for (bytes, place) in [(flipped, "at byte 16 "), (cut, "at byte ")] {
        std::fs::write(&path, &bytes).unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains(place) && error.contains("journal"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "a refused journal is left as it is");
    }
}

#[test]
fn a_shorter_file_takes_its_place_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    assert!(journal.compaction(journal.end).is_none(), "it is short enough");
    for n in 1..20 {
        upgrade(&mut journal, n);
        let long = journal.end;
        let compaction = journal.compaction(long - 1).unwrap();
        compaction.stage().unwrap();
        let staged = directory.path().join("journal.new");
        assert_eq!(std::fs::metadata(&staged).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(journal.replace(compaction).unwrap());
        journal.replaced(journal.storage().sync()).unwrap();
        assert!(!staged.exists());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), journal.end);
        assert_eq!(Journal::open(&path).unwrap().standing(), journal.standing());
        assert!(n == 1 || journal.end < long, "{long} bytes became {}", journal.end);
    }
}

#[test]
fn a_shorter_file_that_is_late_or_left_behind_is_thrown_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let staged = directory.path().join("journal.new");
    let mut journal = Journal::open(&path).unwrap();
    upgrade(&mut journal, 1);
    let compaction = journal.compaction(0).unwrap();
    compaction.stage().unwrap();
    journal.append(Fact::Wanted { up: true }).unwrap();
    assert!(!journal.replace(compaction).unwrap());
    assert!(!staged.exists());

    journal.compaction(0).unwrap().stage().unwrap();
    drop(journal);
    assert!(Journal::open(&path).unwrap().standing().wanted);
    assert!(!staged.exists());
}

#[test]
fn where_no_shorter_file_can_be_written_the_journal_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    upgrade(&mut journal, 1);
    let staged = directory.path().join("journal.new");
    std::fs::create_dir(&staged).unwrap();
    journal.compaction(0).unwrap().stage().unwrap_err();

    std::fs::remove_dir(&staged).unwrap();
    let compaction = journal.compaction(0).unwrap();
    compaction.stage().unwrap();
    std::fs::remove_file(&staged).unwrap();
    let error = journal.replace(compaction).unwrap_err().to_string();
    assert!(error.contains("replace it by a shorter one") && error.contains("journal"), "{error}");
    upgrade(&mut journal, 2);
    assert_eq!(Journal::open(&path).unwrap().standing().generation(), Generation(2));
}

#[derive(Debug, Default)]
struct Failing {
    bytes: Mutex<Vec<u8>>,
    fails: Mutex<bool>,
}

impl Storage for Failing {
    fn read_all(&self) -> io::Result<Vec<u8>> {
        Ok(self.bytes.lock().unwrap().clone())
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if *self.fails.lock().unwrap() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut all = self.bytes.lock().unwrap();
        let (offset, end) = (offset as usize, offset as usize + bytes.len());
        let length = all.len().max(end);
        all.resize(length, 0);
        all[offset..end].copy_from_slice(bytes);
        Ok(())
    }
    fn truncate(&self, length: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().truncate(length as usize);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn stage(&self, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn swap(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn discard(&self) {}
}

#[test]
fn the_first_error_latches_and_names_the_cause() {
    let storage = Arc::new(Failing::default());
    let mut journal =
        Journal::with_storage(Path::new("/j"), Arc::clone(&storage) as Arc<dyn Storage>).unwrap();
    upgrade(&mut journal, 1);
    *storage.fails.lock().unwrap() = true;
    journal.append(Fact::Wanted { up: true }).unwrap_err();
    *storage.fails.lock().unwrap() = false;
    let error = journal.append(Fact::Wanted { up: true }).unwrap_err().to_string();
    assert!(error.contains("takes no more records") && error.contains("/j"), "{error}");
    assert!(!journal.standing().wanted);
}

#[test]
fn after_a_full_disk_it_is_mended_and_after_a_failed_sync_it_is_not() {
    let storage = Arc::new(Failing::default());
    let mut journal =
        Journal::with_storage(Path::new("/j"), Arc::clone(&storage) as Arc<dyn Storage>).unwrap();
    upgrade(&mut journal, 1);
    assert!(!journal.repair().unwrap(), "nothing is broken");
    *storage.fails.lock().unwrap() = true;
    journal.append(Fact::Wanted { up: true }).unwrap_err();
    storage.bytes.lock().unwrap().extend_from_slice(b"half a record");
    *storage.fails.lock().unwrap() = false;
    assert!(journal.repair().unwrap());
    upgrade(&mut journal, 2);
    let again = Journal::with_storage(Path::new("/j"), Arc::clone(&storage) as Arc<dyn Storage>).unwrap();
    assert_eq!(again.standing().generation(), Generation(2));

    let pending = journal.prepare(Fact::Reverted { handoff: id(2) }).unwrap();
    journal.settle(pending, Err(io::ErrorKind::Other.into())).unwrap_err();
    assert!(!journal.repair().unwrap());
    assert!(journal.latched().is_some());
}
