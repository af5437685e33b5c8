//! Why a version cannot be imported or found.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::BinaryError;

/// An error of the store. `Display` names the object and the cause in one clause; [`Error::hint`] is the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The given file may not run. Nothing of it is kept.
    #[error("{}: {cause}", path.display())]
    Refused {
        /// The given file.
        path: PathBuf,
        /// The problem.
        cause: String,
        /// The remedy.
        hint: String,
    },
    /// The file cannot be executed.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// A file cannot be read or written. The attempt leaves nothing behind.
    #[error("{}: cannot {what}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The failed action, an infinitive.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The word matches no stored version.
    #[error("{cause}")]
    Unknown {
        /// The word and the candidates.
        cause: String,
    },
}

impl Error {
    pub(super) fn refused(path: &Path, cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { path: path.to_owned(), cause: cause.into(), hint: hint.into() }
    }

    /// For `map_err`: the failed action and its path.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), what, source }
    }

    /// What the user can do, one clause.
    pub fn hint(&self) -> String {
        match self {
            Self::Refused { hint, .. } => hint.clone(),
            Self::Binary(error) => error.hint(),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded => {
                    "free space for the state directory, then retry; the attempt left nothing behind".into()
                }
                io::ErrorKind::PermissionDenied => "let the user of the daemon read it".into(),
                _ => "fix that, then retry; the attempt left nothing behind".into(),
            },
            Self::Unknown { .. } => "`handoff versions` shows what is kept".into(),
        }
    }
}
