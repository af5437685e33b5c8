//! One message is one frame is one packet of a `SOCK_SEQPACKET` socket: a header laid out by hand, then the body.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic, `hoff` |
//! | 4 | 2 | version: the agreed one, or 0 in `Hello`, `Welcome`, `Adopt` and `Adopted` |
//! | 6 | 1 | kind of the message |
//! | 7 | 1 | flags: 0 |
//! | 8 | 2 | number of file descriptors that travel with the packet |
//! | 10 | 2 | reserved: 0 |
//! | 12 | 4 | length of the body |
//! | 16 | 16 | handoff id, in network order |
//! | 32 | 4 | CRC-32 (IEEE 802.3) of bytes 0 to 31 and the body |
//! | 36 | | body |
//!
//! Integers are little-endian. Only this file of the wire format uses the encoding of the body (bincode 2: fixed-width
//! little-endian integers, a `u64` length before each string and list, no padding).

use alloc::vec::Vec;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ids::HandoffId;

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"hoff";
/// Size of the header, in bytes.
pub const HEADER_LEN: usize = 36;
/// The largest frame, header included, in bytes. A packet that is larger is refused.
pub const FRAME_MAX: usize = 64 * 1024;
/// The kernel's maximum number of descriptors per packet (`SCM_MAX_FD` of Linux, unix(7)).
pub const FDS_MAX: usize = 253;

const CRC_AT: usize = 32;

/// A message that is the body of a frame of its own kind.
pub trait Message: Sized {
    /// The kind in the header.
    fn kind(&self) -> u8;
    /// Whether the message precedes version agreement and so has version 0.
    fn before_agreement(&self) -> bool;
    /// Number of file descriptors that travel with the message.
    fn fd_count(&self) -> usize;
    /// Whether the message is useless without its descriptors, so that a stream cannot carry it.
    fn needs_fds(&self) -> bool {
        false
    }
    /// The first version with this message.
    fn since(&self) -> u16 {
        crate::version::UNAGREED
    }
    /// Encodes the body.
    fn encode_body(&self) -> Result<Vec<u8>, FrameError>;
    /// Decodes the body of a frame of this kind. [`FrameError::Kind`] if the kind is unknown.
    fn decode_body(kind: u8, body: &[u8]) -> Result<Self, FrameError>;
}

/// Why a frame is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FrameError {
    /// Shorter than a header.
    #[error("the packet has {length} bytes, fewer than the {HEADER_LEN} of a header")]
    Short {
        /// Length of the packet.
        length: usize,
    },
    /// Larger than [`FRAME_MAX`], or cut by the kernel (`MSG_TRUNC`).
    #[error("the frame is larger than {FRAME_MAX} bytes")]
    TooLong,
    /// The kernel dropped file descriptors (`MSG_CTRUNC`).
    #[error("file descriptors were lost on the way; is RLIMIT_NOFILE of the receiver too low?")]
    FdsLost,
    /// Does not begin with [`MAGIC`].
    #[error("the packet is not a handoff frame (wrong magic)")]
    Magic,
    /// The checksum does not match.
    #[error("the frame is damaged (CRC-32 mismatch)")]
    Crc,
    /// The version field differs from the agreed version.
    #[error("the frame has version {found}; agreed was {agreed}")]
    Version {
        /// The version in the frame.
        found: u16,
        /// The expected version.
        agreed: u16,
    },
    /// An unknown flag or reserved bit is set.
    #[error("the frame has an unknown flag set")]
    Flags,
    /// The length field differs from the length of the body.
    #[error("the header announces a body of {announced} bytes; received {found}")]
    Length {
        /// The length in the header.
        announced: usize,
        /// The received length.
        found: usize,
    },
    /// The number of descriptors differs between header, packet and message.
    #[error("the message needs {expected} file descriptors; received {found}")]
    FdCount {
        /// The number in the header or the message.
        expected: usize,
        /// The received number.
        found: usize,
    },
    /// No message of this direction has this kind.
    #[error("unknown message kind {kind:#04x}")]
    Kind {
        /// The kind in the frame.
        kind: u8,
    },
    /// The body does not decode as its kind.
    #[error("the body of a message of kind {kind:#04x} is malformed")]
    Body {
        /// The kind of the message.
        kind: u8,
    },
    /// Bytes follow the end of the message in the body.
    #[error("{count} bytes follow the body of a message of kind {kind:#04x}")]
    Trailing {
        /// The kind of the message.
        kind: u8,
        /// Number of extra bytes.
        count: usize,
    },
}

/// How frames travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One packet each, with the descriptors of the message.
    Packets,
    /// Consecutive frames on a byte stream, which carries no descriptors.
    Stream,
}

impl Transport {
    fn fds_of<M: Message>(self, message: &M) -> Result<usize, FrameError> {
        match self {
            Transport::Packets => Ok(message.fd_count()),
            Transport::Stream if message.needs_fds() => {
                Err(FrameError::FdCount { expected: message.fd_count(), found: 0 })
            }
            Transport::Stream => Ok(0),
        }
    }
}

/// Encodes one frame. `version` is the agreed version; messages that precede the agreement carry 0 regardless.
pub fn encode<M: Message>(version: u16, id: HandoffId, message: &M) -> Result<Vec<u8>, FrameError> {
    lay_out(Transport::Packets, version, id, message)
}

/// Like [`encode`], for a byte stream: the header declares no descriptors.
pub fn encode_for_stream<M: Message>(
    version: u16,
    id: HandoffId,
    message: &M,
) -> Result<Vec<u8>, FrameError> {
    lay_out(Transport::Stream, version, id, message)
}

fn lay_out<M: Message>(
    transport: Transport,
    version: u16,
    id: HandoffId,
    message: &M,
) -> Result<Vec<u8>, FrameError> {
    check_version(version, message)?;
    let body = message.encode_body()?;
    let fds = transport.fds_of(message)?;
    if HEADER_LEN + body.len() > FRAME_MAX {
        return Err(FrameError::TooLong);
    }
    if fds > FDS_MAX {
        return Err(FrameError::FdCount { expected: FDS_MAX, found: fds });
    }
    let version = if message.before_agreement() { crate::version::UNAGREED } else { version };
    let mut frame = Vec::with_capacity(HEADER_LEN + body.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&version.to_le_bytes());
    frame.push(message.kind());
    frame.push(0);
    frame.extend_from_slice(&(fds as u16).to_le_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&id.to_bytes());
    let crc = checksum(&frame, &body);
    frame.extend_from_slice(&crc.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Decodes one frame from one packet that came with `fds` file descriptors. `agreed` is the agreed version, or
/// [`crate::version::UNAGREED`] before the agreement.
pub fn decode<M: Message>(packet: &[u8], fds: usize, agreed: u16) -> Result<(HandoffId, M), FrameError> {
    read(Transport::Packets, packet, fds, agreed)
}

/// Decodes one frame that the reader delimited by [`announced`]; otherwise like [`decode`].
pub fn decode_from_stream<M: Message>(packet: &[u8], agreed: u16) -> Result<(HandoffId, M), FrameError> {
    read(Transport::Stream, packet, 0, agreed)
}

/// The body length from a header. Panics if `header` is shorter than [`HEADER_LEN`].
pub fn announced(header: &[u8]) -> usize {
    u32_at(header, 12) as usize
}

fn read<M: Message>(
    transport: Transport,
    packet: &[u8],
    fds: usize,
    agreed: u16,
) -> Result<(HandoffId, M), FrameError> {
    if packet.len() > FRAME_MAX {
        return Err(FrameError::TooLong);
    }
    let Some((header, body)) = packet.split_at_checked(HEADER_LEN) else {
        return Err(FrameError::Short { length: packet.len() });
    };
    if header[..4] != MAGIC {
        return Err(FrameError::Magic);
    }
    if checksum(&header[..CRC_AT], body) != u32_at(header, CRC_AT) {
        return Err(FrameError::Crc);
    }
    if header[7] != 0 || u16_at(header, 10) != 0 {
        return Err(FrameError::Flags);
    }
    let announced = announced(header);
    if announced != body.len() {
        return Err(FrameError::Length { announced, found: body.len() });
    }
    let message = M::decode_body(header[6], body)?;
    let agreed = if message.before_agreement() { crate::version::UNAGREED } else { agreed };
    let found = u16_at(header, 4);
    if found != agreed {
        return Err(FrameError::Version { found, agreed });
    }
    check_version(agreed, &message)?;
    let expected = transport.fds_of(&message)?;
    if usize::from(u16_at(header, 8)) != expected || fds != expected {
        return Err(FrameError::FdCount { expected, found: fds });
    }
    let mut id = [0; 16];
    id.copy_from_slice(&header[16..CRC_AT]);
    Ok((HandoffId::from_bytes(id), message))
}

/// A version that lacks the message does not know its kind.
fn check_version<M: Message>(agreed: u16, message: &M) -> Result<(), FrameError> {
    if agreed < message.since() { Err(FrameError::Kind { kind: message.kind() }) } else { Ok(()) }
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn encoding() -> Configuration<LittleEndian, Fixint, Limit<FRAME_MAX>> {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<FRAME_MAX>()
}

/// Encodes a body. For implementations of [`Message`].
pub fn encode_body<T: Serialize>(kind: u8, body: &T) -> Result<Vec<u8>, FrameError> {
    bincode::serde::encode_to_vec(body, encoding()).map_err(|_| FrameError::Body { kind })
}

/// Decodes a whole body. For implementations of [`Message`].
pub fn decode_body<T: DeserializeOwned>(kind: u8, body: &[u8]) -> Result<T, FrameError> {
    let (value, used) =
        bincode::serde::decode_from_slice(body, encoding()).map_err(|_| FrameError::Body { kind })?;
    match body.len() - used {
        0 => Ok(value),
        count => Err(FrameError::Trailing { kind, count }),
    }
}
