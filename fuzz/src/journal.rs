//! Journals: any file, and journals that something has happened to.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use handoff::journal::{Journal, Storage};
use handoff_protocol::log_image::{
    self, BODY_MAX, HEADER_LEN, Image, PROVEN_AT, RECORD_HEADER_LEN, header, parse, proven,
};
use handoff_protocol::record::{Fact, Record, fold};

/// Any file is refused with a reason, or read as records that are written as the same bytes; and then it can be opened and
/// goes on.
pub fn journal_image(file: &[u8]) {
    reads_what_was_written(file);
    reads_what_was_written(&mended(file));
}

fn reads_what_was_written(file: &[u8]) {
    let image = match parse(file) {
        Ok(image) => image,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(image.proven <= image.end && image.end <= file.len());
    assert_eq!(image.next_sequence, image.records.len() as u64 + 1);
    let whole = &file[..image.end];
    if image.end > 0 {
        assert_eq!(whole[HEADER_LEN..], written(&image.records), "it has exactly one meaning");
    }
    assert_eq!(parse(whole).as_ref(), Ok(&image), "what lies behind the end says nothing");
    goes_on(file, &image);
}

/// It is opened, takes a record, is replaced by a shorter one, and opened again after each.
fn goes_on(file: &[u8], image: &Image) {
    let memory = Arc::new(Memory { file: Mutex::new(file.to_vec()), ..Memory::default() });
    let open =
        || Journal::with_storage(Path::new("/journal"), Arc::clone(&memory) as _).expect("it is whole");
    let mut journal = open();
    assert_eq!(*journal.standing(), fold(&image.records));
    journal.append(Fact::Wanted { up: true }).expect("memory takes everything");
    assert_eq!(open().standing(), journal.standing());
    let Some(compaction) = journal.compaction(0) else { return };
    compaction.stage().expect("memory takes everything");
    assert!(journal.replace(compaction).expect("memory takes everything"));
    assert_eq!(open().standing(), journal.standing());
}

/// Facts are written as a journal; then it is cut and a byte of it is changed, as the first six bytes say. What is read
/// is the beginning of what was written, and not less than the disk had, or the file is refused.
pub fn journal_damage(input: &[u8]) {
    let Some((damage, bodies)) = input.split_first_chunk::<6>() else { return };
    let records = records(bodies);
    let known = u64::from(damage[0]).min(records.len() as u64);
    let mut file = header().to_vec();
    file[PROVEN_AT..HEADER_LEN].copy_from_slice(&proven(known));
    file.extend(written(&records));

    let at = |high: u8, low: u8| usize::from(u16::from_be_bytes([high, low]));
    let flipped = at(damage[2], damage[3]) % file.len();
    let kept = file.len() - at(damage[4], damage[5]) % file.len();
    file[flipped] ^= damage[1];
    file.truncate(kept);
    let Ok(image) = parse(&file) else { return };
    assert!(records.starts_with(&image.records), "a fact that nobody wrote");
    // The number itself may be what was changed, or cut off.
    if flipped >= HEADER_LEN && kept >= HEADER_LEN {
        assert!(image.records.len() as u64 >= known, "a fact was lost that the disk had");
    }
}

/// The facts of the input: a length of two bytes before each body. What is no fact is left out.
fn records(mut input: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (body, rest) = rest.split_at(length);
        records.extend(handoff_protocol::frame::decode_body::<Record>(0, body));
        input = rest;
    }
    records
}

fn written(records: &[Record]) -> Vec<u8> {
    let encode =
        |(sequence, record)| log_image::encode(sequence, record).expect("it is no longer than it was");
    (1..).zip(records).flat_map(encode).collect()
}

/// The file with a header, sequence numbers and checksums that fit, as far as its lengths make sense.
fn mended(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    if file.len() < HEADER_LEN {
        return file;
    }
    file[..PROVEN_AT].copy_from_slice(&header()[..PROVEN_AT]);
    let mut at = HEADER_LEN;
    for sequence in 1_u64.. {
        let Some((head, rest)) = file[at..].split_first_chunk_mut::<RECORD_HEADER_LEN>() else { break };
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some(body) = rest.get(..length).filter(|body| body.len() <= BODY_MAX) else { break };
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&sequence.to_le_bytes());
        hasher.update(body);
        head[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
        head[8..].copy_from_slice(&sequence.to_le_bytes());
        at += RECORD_HEADER_LEN + length;
    }
    file
}

/// A storage that never fails.
#[derive(Debug, Default)]
struct Memory {
    file: Mutex<Vec<u8>>,
    staged: Mutex<Vec<u8>>,
}

impl Storage for Memory {
    fn read_all(&self) -> io::Result<Vec<u8>> {
        Ok(self.file.lock().expect("one thread").clone())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.file.lock().expect("one thread");
        let (offset, end) = (offset as usize, offset as usize + bytes.len());
        let length = file.len().max(end);
        file.resize(length, 0);
        file[offset..end].copy_from_slice(bytes);
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.file.lock().expect("one thread").truncate(length as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn stage(&self, bytes: &[u8]) -> io::Result<()> {
        *self.staged.lock().expect("one thread") = bytes.to_vec();
        Ok(())
    }

    fn swap(&self) -> io::Result<()> {
        *self.file.lock().expect("one thread") =
            std::mem::take(&mut *self.staged.lock().expect("one thread"));
        Ok(())
    }

    fn discard(&self) {}
}
