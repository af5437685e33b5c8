//! Why a version cannot be taken in, or is not there.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::BinaryError;

/// What went wrong. `Display` names the thing and the cause in one clause; [`Error::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was given is not what may run. Nothing of it is kept.
    #[error("{}: {cause}", path.display())]
    Refused {
        /// The file that was given.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
        /// What to do.
        hint: String,
    },
    /// There is no file that could be started.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// A file cannot be read or written. Nothing is left of what was begun.
    #[error("{}: cannot {what}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, an infinitive.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// No version that is kept is meant by a word.
    #[error("{cause}")]
    Unknown {
        /// Which, and what there is.
        cause: String,
    },
}

impl Error {
    pub(super) fn refused(path: &Path, cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { path: path.to_owned(), cause: cause.into(), hint: hint.into() }
    }

    /// For `map_err`: what was tried at a path.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), what, source }
    }

    /// What a person can do about it, one clause.
    pub fn hint(&self) -> String {
        match self {
            Self::Refused { hint, .. } => hint.clone(),
            Self::Binary(error) => error.hint(),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded => {
                    "make room for the state directory, then ask again; nothing is left of the attempt".into()
                }
                io::ErrorKind::PermissionDenied => "let the user of the daemon read it".into(),
                _ => "mend that, then ask again; nothing is left of the attempt".into(),
            },
            Self::Unknown { .. } => "`handoff versions` shows what is kept".into(),
        }
    }
}
