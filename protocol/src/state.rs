//! State that a process hands to its successor. Nothing in between interprets the content.

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

/// Maximum size of content inside the message, in bytes.
pub const INLINE_MAX: usize = 32 * 1024;
/// Maximum size of content, in bytes.
pub const CONTENT_MAX: u64 = 64 * 1024 * 1024;
/// The first protocol version with this message.
pub const SINCE: u16 = 2;

/// Announces content, and includes it if it is short. Longer content is in a sealed file, whose descriptor travels with
/// the message.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct State {
    format: u32,
    length: u64,
    crc32: u32,
    inline: Vec<u8>,
}

/// The body as decoded.
#[derive(Deserialize)]
struct Fields {
    format: u32,
    length: u64,
    crc32: u32,
    inline: Vec<u8>,
}

/// Why state is rejected.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum StateError {
    /// More than [`CONTENT_MAX`], or more than [`INLINE_MAX`] in the message.
    #[error("a state of {length} bytes is too long")]
    TooLong {
        /// Length of the content.
        length: u64,
    },
    /// The file can still change.
    #[error("the file of the state is not sealed against every change")]
    NotSealed,
    /// The length of the content differs from the announced length.
    #[error("the state has {found} bytes; {announced} were announced")]
    Length {
        /// The announced length.
        announced: u64,
        /// The received length.
        found: u64,
    },
    /// The checksum does not match.
    #[error("the state is damaged (CRC-32 mismatch)")]
    Crc,
}

impl State {
    /// Announces this content. Includes it if it is at most [`INLINE_MAX`] bytes.
    pub fn new(format: u32, content: &[u8]) -> Result<Self, StateError> {
        let length = content.len() as u64;
        if length > CONTENT_MAX {
            return Err(StateError::TooLong { length });
        }
        let inline = if content.len() <= INLINE_MAX { content.to_vec() } else { Vec::new() };
        Ok(Self { format, length, crc32: crc32fast::hash(content), inline })
    }

    /// The service's own format number of the content.
    pub fn format(&self) -> u32 {
        self.format
    }

    /// Length of the content, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether the content is in a file that travels with the message.
    pub fn is_beside(&self) -> bool {
        self.inline.is_empty() && self.length > 0
    }

    /// The content inside the message.
    pub fn into_inline(self) -> Vec<u8> {
        self.inline
    }

    /// Checks that `content` matches the announced length and checksum.
    pub fn check(&self, content: &[u8]) -> Result<(), StateError> {
        let found = content.len() as u64;
        if found != self.length {
            return Err(StateError::Length { announced: self.length, found });
        }
        if crc32fast::hash(content) != self.crc32 { Err(StateError::Crc) } else { Ok(()) }
    }
}

impl TryFrom<Fields> for State {
    type Error = StateError;

    fn try_from(fields: Fields) -> Result<Self, StateError> {
        let Fields { format, length, crc32, inline } = fields;
        let found = inline.len() as u64;
        if length > CONTENT_MAX || inline.len() > INLINE_MAX {
            return Err(StateError::TooLong { length: length.max(found) });
        }
        if !inline.is_empty() && found != length {
            return Err(StateError::Length { announced: length, found });
        }
        Ok(Self { format, length, crc32, inline })
    }
}

/// Hides the content, which belongs to the service.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State {{ format: {}, length: {} }}", self.format, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_short_content_is_carried_and_a_long_one_is_not() {
        for length in [0, 1, INLINE_MAX] {
            let content = vec![7; length];
            let state = State::new(3, &content).unwrap();
            assert!(!state.is_beside());
            assert_eq!(state.check(&content), Ok(()));
            assert_eq!(state.into_inline(), content);
        }
        let content = vec![7; INLINE_MAX + 1];
        let state = State::new(3, &content).unwrap();
        assert!(state.is_beside());
        assert_eq!((state.format(), state.length(), state.check(&content)), (3, 32_769, Ok(())));
        let announced = 32_769;
        assert_eq!(state.check(&content[1..]), Err(StateError::Length { announced, found: 32_768 }));
        assert_eq!(state.check(&[8; INLINE_MAX + 1]), Err(StateError::Crc));
    }

    #[test]
    fn what_is_too_long_or_contradicts_itself_is_refused() {
        let fields = |length, inline| State::try_from(Fields { format: 1, length, crc32: 0, inline });
        assert_eq!(fields(CONTENT_MAX + 1, vec![]), Err(StateError::TooLong { length: CONTENT_MAX + 1 }));
        assert_eq!(fields(1, vec![0; INLINE_MAX + 1]), Err(StateError::TooLong { length: 32_769 }));
        assert_eq!(fields(1, vec![0; 2]), Err(StateError::Length { announced: 1, found: 2 }));
        assert!(fields(CONTENT_MAX, vec![]).is_ok());
    }
}
