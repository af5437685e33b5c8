//! The journal as bytes: a header, then records. No I/O.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic, `handoffJ` |
//! | 8 | 4 | format version: 2, or 1 for a journal that an earlier version wrote |
//! | 12 | 4 | number of records that are known to be on disk |
//!
//! For each record:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | length of the body |
//! | 4 | 4 | CRC-32 of the sequence number and the body |
//! | 8 | 8 | sequence number: 1, 2, 3 … |
//! | 16 | | body (the encoding of `frame`) |
//!
//! The formats, and the reason for each:
//!
//! | format | reason |
//! |---|---|
//! | 1 | the first |
//! | 2 | the facts `Deadline` and `Order`: an upgrade keeps its deadline when its supervisor dies; ids imply no order |
//!
//! Integers are little-endian. The first broken or missing record is a *torn tail* if it is not among those known to be
//! on disk: a crash may lose it and everything after it. Otherwise no crash can have caused it: that is *corruption*,
//! and parsing fails. An intact later record proves nothing: until the disk confirms records, they can reach it in any
//! order.
//!
//! The number in the header is increased after the disk has confirmed, without waiting for the write. An old number, or
//! one torn during the update, is smaller than the true one: parsing may detect less corruption, but never reports
//! false corruption.

use alloc::vec::Vec;

use crate::frame;
use crate::record::Record;

/// Magic bytes of a journal.
pub const MAGIC: [u8; 8] = *b"handoffJ";
/// The format that this crate writes.
pub const FORMAT: u32 = 3;
/// The oldest format that this crate reads. Appended records need the present format, so the header is rewritten first.
pub const OLDEST: u32 = 1;
/// Size of the header of the file, in bytes.
pub const HEADER_LEN: usize = 16;
/// Size of the header of a record, in bytes.
pub const RECORD_HEADER_LEN: usize = 16;
/// Maximum size of a body, in bytes.
pub const BODY_MAX: usize = frame::FRAME_MAX;

/// Offset of the format, in bytes.
pub const FORMAT_AT: usize = 8;

/// Offset of the number of records known to be on disk, in bytes.
pub const PROVEN_AT: usize = 12;

/// The header of a new journal.
pub fn header() -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[FORMAT_AT..PROVEN_AT].copy_from_slice(&FORMAT.to_le_bytes());
    bytes
}

/// The bytes for [`PROVEN_AT`] once the disk has confirmed every record up to `sequence`.
pub fn proven(sequence: u64) -> [u8; 4] {
    u32::try_from(sequence).unwrap_or(u32::MAX).to_le_bytes()
}

/// Encodes one record. `None` if it exceeds [`BODY_MAX`].
pub fn encode(sequence: u64, record: &Record) -> Option<Vec<u8>> {
    let body = frame::encode_body(0, record).ok().filter(|body| body.len() <= BODY_MAX)?;
    let mut bytes = Vec::with_capacity(RECORD_HEADER_LEN + body.len());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&checksum(sequence, &body).to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&body);
    Some(bytes)
}

/// The content of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The records, oldest first.
    pub records: Vec<Record>,
    /// Offset of the next record, in bytes. Everything after it is a torn tail, to be truncated.
    pub end: usize,
    /// The sequence number of the next record.
    pub next_sequence: u64,
    /// How far the content is known to be on disk, in bytes. At most `end`.
    pub proven: usize,
    /// The format in the header.
    pub format: u32,
}

impl Image {
    const EMPTY: Self = Self { records: Vec::new(), end: 0, next_sequence: 1, proven: 0, format: FORMAT };
}

/// Why a file is not a trustworthy journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It has the wrong magic bytes.
    #[error("it is not a handoff journal (wrong magic)")]
    Magic,
    /// Another version wrote it.
    #[error("it has format {found}; this version reads format {OLDEST} to {FORMAT}")]
    Format {
        /// The format in the file.
        found: u32,
    },
    /// A record that was on disk is broken or missing.
    #[error("the record at byte {offset} is damaged, or missing, although it was once on the disk")]
    Corrupt {
        /// Offset of the broken record, in bytes.
        offset: usize,
    },
}

/// Parses a journal. A file with an incomplete header is a journal in creation: it is empty.
pub fn parse(bytes: &[u8]) -> Result<Image, ImageError> {
    if !bytes.starts_with(&MAGIC) || bytes.len() < HEADER_LEN {
        return not_whole(bytes);
    }
    let format = u32_at(bytes, FORMAT_AT);
    if !(OLDEST..=FORMAT).contains(&format) {
        return not_whole(bytes);
    }
    let proven = u64::from(u32_at(bytes, PROVEN_AT));
    let mut image = Image { end: HEADER_LEN, format, ..Image::EMPTY };
    while let Some((record, length)) = record_at(bytes, image.end, image.next_sequence) {
        image.records.push(record);
        image.end += length;
        if image.next_sequence == proven {
            image.proven = image.end;
        }
        image.next_sequence += 1;
    }
    if image.next_sequence <= proven {
        return Err(ImageError::Corrupt { offset: image.end });
    }
    Ok(image)
}

/// A file without a complete header of this format.
fn not_whole(bytes: &[u8]) -> Result<Image, ImageError> {
    let written = bytes.iter().zip(header()).take_while(|(found, meant)| *found == meant).count();
    if bytes[written..].iter().all(|byte| *byte == 0) {
        return Ok(Image::EMPTY);
    }
    if bytes.len() < HEADER_LEN || bytes[..8] != MAGIC {
        return Err(ImageError::Magic);
    }
    Err(ImageError::Format { found: u32_at(bytes, FORMAT_AT) })
}

fn record_at(bytes: &[u8], offset: usize, sequence: u64) -> Option<(Record, usize)> {
    let (head, rest) = bytes.get(offset..)?.split_at_checked(RECORD_HEADER_LEN)?;
    let body = rest.get(..u32_at(head, 0) as usize).filter(|body| body.len() <= BODY_MAX)?;
    if head[8..] != sequence.to_le_bytes() || checksum(sequence, body) != u32_at(head, 4) {
        return None;
    }
    let record = frame::decode_body(0, body).ok()?;
    Some((record, RECORD_HEADER_LEN + body.len()))
}

fn checksum(sequence: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
