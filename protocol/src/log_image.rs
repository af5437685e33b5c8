//! The journal as bytes: a header, then records. Pure; the storage is elsewhere.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic, `handoffJ` |
//! | 8 | 4 | format version: 1 |
//! | 12 | 4 | reserved: 0 |
//!
//! and per record:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | length of the body |
//! | 4 | 4 | CRC-32 of the sequence number and the body |
//! | 8 | 8 | sequence number: 1, 2, 3 … |
//! | 16 | | body (the encoding of `frame`) |
//!
//! Integers are little-endian. A record that is broken is a *torn tail* if no durable record follows it: whatever was
//! written after the last durable record was allowed to be lost. A durable record behind a broken one cannot come from
//! a crash, since making it durable makes all before it durable too: that is *corruption*, and is refused.

use alloc::vec::Vec;

use crate::frame;
use crate::record::Record;

/// The first bytes of a journal.
pub const MAGIC: [u8; 8] = *b"handoffJ";
/// The format that this crate writes.
pub const FORMAT: u32 = 1;
/// Size of the header of the file, in bytes.
pub const HEADER_LEN: usize = 16;
/// Size of the header of a record, in bytes.
pub const RECORD_HEADER_LEN: usize = 16;
/// The largest body, in bytes.
pub const BODY_MAX: usize = frame::FRAME_MAX;

/// The header of a new journal.
pub fn header() -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes
}

/// The bytes of one record. `None` if it is larger than [`BODY_MAX`].
pub fn encode(sequence: u64, record: &Record) -> Option<Vec<u8>> {
    let body = frame::encode_body(0, record).ok().filter(|body| body.len() <= BODY_MAX)?;
    let mut bytes = Vec::with_capacity(RECORD_HEADER_LEN + body.len());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&checksum(sequence, &body).to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&body);
    Some(bytes)
}

/// What a journal holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The records, oldest first.
    pub records: Vec<Record>,
    /// Where the next record goes, in bytes. What lies behind is a torn tail and to be cut off.
    pub end: usize,
    /// The sequence number of the next record.
    pub next_sequence: u64,
}

/// Why a file is not a journal that can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It begins with something else.
    #[error("it is not a handoff journal (wrong magic)")]
    Magic,
    /// It was written by another version.
    #[error("it has format {found}; this version reads format {FORMAT}")]
    Format {
        /// The field of the file.
        found: u32,
    },
    /// A record is broken although a later one proves that it was on the disk.
    #[error("the record at byte {offset} is damaged, and a later one proves that it was once whole")]
    Corrupt {
        /// Where the broken record begins, in bytes.
        offset: usize,
    },
}

/// Reads a journal. A file that is shorter than the header is one that was being created: it is empty.
pub fn parse(bytes: &[u8]) -> Result<Image, ImageError> {
    let Some(head) = bytes.get(..HEADER_LEN) else {
        let fits = header().starts_with(bytes) || bytes.iter().all(|byte| *byte == 0);
        return if fits {
            Ok(Image { records: Vec::new(), end: 0, next_sequence: 1 })
        } else {
            Err(ImageError::Magic)
        };
    };
    if head.iter().all(|byte| *byte == 0) && bytes.iter().all(|byte| *byte == 0) {
        return Ok(Image { records: Vec::new(), end: 0, next_sequence: 1 });
    }
    if head[..8] != MAGIC {
        return Err(ImageError::Magic);
    }
    let found = u32_at(head, 8);
    if found != FORMAT {
        return Err(ImageError::Format { found });
    }
    let mut image = Image { records: Vec::new(), end: HEADER_LEN, next_sequence: 1 };
    while let Some((record, length)) = record_at(bytes, image.end, image.next_sequence) {
        image.records.push(record);
        image.end += length;
        image.next_sequence += 1;
    }
    if durable_record_after(bytes, image.end, image.next_sequence) {
        return Err(ImageError::Corrupt { offset: image.end });
    }
    Ok(image)
}

fn record_at(bytes: &[u8], offset: usize, sequence: u64) -> Option<(Record, usize)> {
    let (found, record, length) = any_record_at(bytes, offset)?;
    (found == sequence).then_some((record, length))
}

fn any_record_at(bytes: &[u8], offset: usize) -> Option<(u64, Record, usize)> {
    let rest = bytes.get(offset..)?;
    let (head, rest) = rest.split_at_checked(RECORD_HEADER_LEN)?;
    let body = rest.get(..u32_at(head, 0) as usize).filter(|body| body.len() <= BODY_MAX)?;
    let mut sequence = [0; 8];
    sequence.copy_from_slice(&head[8..16]);
    let sequence = u64::from_le_bytes(sequence);
    if checksum(sequence, body) != u32_at(head, 4) {
        return None;
    }
    let record = frame::decode_body(0, body).ok()?;
    Some((sequence, record, RECORD_HEADER_LEN + body.len()))
}

fn durable_record_after(bytes: &[u8], from: usize, sequence: u64) -> bool {
    (from.saturating_add(1)..bytes.len()).any(|offset| {
        // Most offsets hold no plausible sequence number; only the others are worth a checksum.
        let plausible =
            bytes.get(offset + 8..offset + 16).and_then(|field| field.try_into().ok()).is_some_and(|field| {
                (sequence..sequence.saturating_add(1 << 20)).contains(&u64::from_le_bytes(field))
            });
        plausible && any_record_at(bytes, offset).is_some_and(|(_, record, _)| record.fact.is_durable())
    })
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
