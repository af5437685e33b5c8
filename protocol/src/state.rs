//! What a process hands over to the one that follows it. Nobody in between looks at its content.

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

/// The longest content that travels in the message itself. In bytes.
pub const INLINE_MAX: usize = 32 * 1024;
/// The longest content. In bytes.
pub const CONTENT_MAX: u64 = 64 * 1024 * 1024;
/// The first version of the protocol that has it.
pub const SINCE: u16 = 2;

/// Announces a content, and carries it if it is short. A longer one lies in a sealed file, of which a descriptor travels
/// along.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct State {
    format: u32,
    length: u64,
    crc32: u32,
    inline: Vec<u8>,
}

/// The body as it is read.
#[derive(Deserialize)]
struct Fields {
    format: u32,
    length: u64,
    crc32: u32,
    inline: Vec<u8>,
}

/// Why what was handed over is not taken.
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
    /// The content has another length than was announced.
    #[error("the state has {found} bytes; {announced} were announced")]
    Length {
        /// What was announced.
        announced: u64,
        /// What came.
        found: u64,
    },
    /// The checksum does not fit.
    #[error("the state is damaged (CRC-32 mismatch)")]
    Crc,
}

impl State {
    /// Announces this content. It is carried along if it is short enough.
    pub fn new(format: u32, content: &[u8]) -> Result<Self, StateError> {
        let length = content.len() as u64;
        if length > CONTENT_MAX {
            return Err(StateError::TooLong { length });
        }
        let inline = if content.len() <= INLINE_MAX { content.to_vec() } else { Vec::new() };
        Ok(Self { format, length, crc32: crc32fast::hash(content), inline })
    }

    /// The service's own version number of what the content means.
    pub fn format(&self) -> u32 {
        self.format
    }

    /// Length of the content, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether the content lies in a file that travels along.
    pub fn is_beside(&self) -> bool {
        self.inline.is_empty() && self.length > 0
    }

    /// The content that the message itself carries.
    pub fn into_inline(self) -> Vec<u8> {
        self.inline
    }

    /// Whether `content` is what was announced.
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

/// The content is the service's own business.
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
