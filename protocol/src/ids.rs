//! Names and numbers in messages. They are parsed once, on input, and are never raw strings after that.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The environment variable with the id of the handoff that starts the process.
pub const ID_VARIABLE: &str = "HANDOFF_ID";

/// Maximum length of a service or listener name, in bytes.
pub const NAME_MAX: usize = 64;

/// Why a text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a name must not be empty")]
    Empty,
    /// The text is longer than [`NAME_MAX`].
    #[error("the name is {length} bytes long; at most {NAME_MAX} are allowed")]
    TooLong {
        /// Length of the text in bytes.
        length: usize,
    },
    /// The text starts like a command line option.
    #[error("a name must not begin with a dash")]
    LeadingDash,
    /// The text contains a character that is not allowed.
    #[error("{character:?} is not allowed in a name; allowed are a-z, 0-9, '-' and '_'")]
    Character {
        /// The first such character.
        character: char,
    },
}

fn check_name(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > NAME_MAX {
        return Err(NameError::TooLong { length: text.len() });
    }
    if text.starts_with('-') {
        return Err(NameError::LeadingDash);
    }
    match text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-' | '_')) {
        Some(character) => Err(NameError::Character { character }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 1 to [`NAME_MAX`] bytes of `a-z`, `0-9`, `-` and `_`, not beginning with `-`.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check_name(text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check_name(&text).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name! {
    /// The name of a service: the stem of its file.
    ServiceName
}
name! {
    /// The name of a listener within its service.
    ListenerName
}

/// Generation number of a service: 0 before the first commit; each commit increases it by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation that the next commit creates.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies one handoff: a UUID, version 7 (RFC 9562 section 5.7). Do not order handoffs by id: the clock that it is
/// made from can be set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HandoffId(Uuid);

impl HandoffId {
    /// The id of no handoff.
    pub const NIL: Self = Self(Uuid::nil());

    /// Wraps a UUID from the caller; this crate has no clock.
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The 16 bytes in network order (RFC 9562 section 4).
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// The inverse of [`HandoffId::to_bytes`].
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl FromStr for HandoffId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::from_str(text).map(Self)
    }
}

impl fmt::Display for HandoffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn names_are_parsed_or_refused_with_the_reason() {
        for good in ["s3", "a", "0", "_x", "mcp-server_2", &"a".repeat(NAME_MAX)] {
            assert_eq!(good.parse::<ServiceName>().unwrap().as_str(), good);
        }
        assert_eq!("".parse::<ServiceName>(), Err(NameError::Empty));
        assert_eq!("-a".parse::<ServiceName>(), Err(NameError::LeadingDash));
        assert_eq!("a/b".parse::<ServiceName>(), Err(NameError::Character { character: '/' }));
        assert_eq!("S3".parse::<ListenerName>(), Err(NameError::Character { character: 'S' }));
        let length = NAME_MAX + 1;
        assert_eq!("a".repeat(length).parse::<ServiceName>(), Err(NameError::TooLong { length }));
    }

    #[test]
    fn a_name_is_checked_when_it_is_deserialized() {
        assert!(serde_json::from_str::<ServiceName>("\"../x\"").is_err());
        assert_eq!(serde_json::from_str::<ServiceName>("\"s3\"").unwrap().to_string(), "s3");
    }
}
