//! State that a server hands to its successor: sessions, caches, and other things that are not in its data.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use handoff_protocol::state;
pub use handoff_protocol::state::StateError;

use super::inbox::{Inbox, Input};
use handoff_sys::sealed::{read_from_start, sealed_file, sealed_length};

/// Content for the successor, with a format number of the server's own. The library does not interpret either.
#[derive(Clone, PartialEq, Eq)]
pub struct State {
    format: u32,
    content: Vec<u8>,
}

impl State {
    /// Maximum length of the content: 64 MiB, in bytes.
    pub const LENGTH_MAX: u64 = state::CONTENT_MAX;

    /// Wraps content. Increase `format` when the meaning of the content changes, and let each version of the server
    /// refuse formats that it does not support. [`StateError::TooLong`] if the content exceeds [`State::LENGTH_MAX`].
    pub fn new(format: u32, content: impl Into<Vec<u8>>) -> Result<Self, StateError> {
        let content = content.into();
        match content.len() as u64 {
            length if length > Self::LENGTH_MAX => Err(StateError::TooLong { length }),
            _ => Ok(Self { format, content }),
        }
    }

    /// The server's own format number.
    pub fn format(&self) -> u32 {
        self.format
    }

    /// The content.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// Returns the content.
    pub fn into_content(self) -> Vec<u8> {
        self.content
    }

    /// The message, and the file that travels with it if the content is long.
    fn pack(&self) -> io::Result<(state::State, Option<OwnedFd>)> {
        let message = state::State::new(self.format, &self.content).map_err(io::Error::other)?;
        let file = message.is_beside().then(|| sealed_file(&self.content)).transpose()?;
        Ok((message, file))
    }
}

/// Hides the content, which may be secret.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("format", &self.format).field("length", &self.content.len()).finish()
    }
}

/// Reads the state from a message. The error is a sentence.
pub(super) fn unpack(message: state::State, file: Option<OwnedFd>) -> Result<State, String> {
    let refused = |error: &dyn fmt::Display| format!("cannot read the handed-over state: {error}");
    let content = match &file {
        None => message.clone().into_inline(),
        Some(file) => {
            let announced = message.length();
            match sealed_length(file).map_err(|error| refused(&error))? {
                None => return Err(refused(&StateError::NotSealed)),
                Some(found) if found != announced => {
                    return Err(refused(&StateError::Length { announced, found }));
                }
                Some(_) => {
                    let length = usize::try_from(announced).unwrap_or(usize::MAX);
                    read_from_start(file, length).map_err(|error| refused(&error))?
                }
            }
        }
    };
    message.check(&content).map_err(|error| refused(&error))?;
    Ok(State { format: message.format(), content })
}

/// The path to the successor; `None` without a supervisor.
#[derive(Clone, Debug, Default)]
pub(super) struct SuccessorLink(Option<Arc<Inbox>>);

impl SuccessorLink {
    pub(super) fn new(inbox: Arc<Inbox>) -> Self {
        Self(Some(inbox))
    }

    pub(super) fn hand_over(&self, state: &State) -> io::Result<()> {
        let Some(inbox) = &self.0 else { return Ok(()) };
        let (message, file) = state.pack()?;
        inbox.push(Input::HandOver(message, file));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(length: usize) -> State {
        State::new(7, vec![3; length]).unwrap()
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        for length in [0, 1, state::INLINE_MAX, state::INLINE_MAX + 1, 5 * 1024 * 1024] {
            let (message, file) = state(length).pack().unwrap();
            assert_eq!(file.is_some(), length > state::INLINE_MAX);
            assert_eq!(unpack(message, file), Ok(state(length)));
        }
        let too_long = State::new(7, vec![0; State::LENGTH_MAX as usize + 1]);
        assert_eq!(too_long, Err(StateError::TooLong { length: State::LENGTH_MAX + 1 }));
    }

    #[test]
    fn what_is_not_as_announced_is_refused_by_name() {
        let long = state::INLINE_MAX + 1;
        let (message, _) = state(long).pack().unwrap();
        let refused = |file: OwnedFd| unpack(message.clone(), Some(file)).unwrap_err();
        assert!(refused(tempfile::tempfile().unwrap().into()).contains("not sealed"));
        assert!(refused(sealed_file(&vec![3; long + 1]).unwrap()).contains("has 32770 bytes; 32769"));
        assert!(refused(sealed_file(&vec![4; long]).unwrap()).contains("CRC-32"));
        assert_eq!(format!("{:?}", state(3)), "State { format: 7, length: 3 }");
    }
}
