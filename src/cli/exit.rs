//! How a command ends: the exit codes, and the errors that lead to them.

use std::fmt;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::output::one_line;
use crate::config::{self, DirsError};
use crate::control::api::LastLines;
use crate::control::{self, ClientError};

/// How a command ends. The codes are part of the interface: scripts depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// The command succeeded.
    Done,
    /// The command failed.
    Failed,
    /// The daemon cannot be reached.
    Unreachable,
    /// A service file is invalid.
    ConfigInvalid,
    /// Rolled back; the old version serves.
    RolledBack,
    /// Busy with another operation.
    Busy,
    /// The new version was refused before it ran.
    Rejected,
    /// The command line is wrong (the number that sysexits.h gives to this).
    Usage,
    /// Ended by Ctrl-C. As in shells: 128 plus the number of the signal. The daemon continues.
    Interrupted,
    /// The daemon does not run; the answer is what it wrote last.
    Stale,
    /// Of `is-active`, as of systemctl: the service does not serve.
    NotActive,
    /// Of `is-active`, as of systemctl: there is no such service.
    NoSuchService,
}

impl Exit {
    /// The exit code.
    pub(super) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Unreachable => 2,
            Exit::ConfigInvalid | Exit::NotActive => 3,
            Exit::RolledBack | Exit::NoSuchService => 4,
            Exit::Busy => 5,
            Exit::Rejected => 6,
            Exit::Stale => 7,
            Exit::Usage => 64,
            Exit::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The daemon could not be asked, or refused.
    Client(ClientError),
    /// The directories are unusable.
    Dirs(DirsError),
    /// An error that the command found itself.
    Own {
        /// A word for programs.
        kind: &'static str,
        /// A full sentence.
        message: String,
        /// What to do.
        hint: String,
        /// How the command ends.
        exit: Exit,
    },
}

impl Failure {
    /// A failure: one sentence, and what to do.
    pub(super) fn failed(message: String, hint: impl Into<String>) -> Failure {
        Failure::Own { kind: "failed", message, hint: hint.into(), exit: Exit::Failed }
    }

    /// The service files have mistakes.
    pub(super) fn invalid(message: String, hint: impl Into<String>) -> Failure {
        Failure::Own { kind: "config_invalid", message, hint: hint.into(), exit: Exit::ConfigInvalid }
    }

    /// The options contradict each other.
    pub(super) fn usage(message: String, hint: impl Into<String>) -> Failure {
        Failure::Own { kind: "usage", message, hint: hint.into(), exit: Exit::Usage }
    }

    pub(super) fn exit(&self) -> Exit {
        match self {
            Failure::Client(ClientError::Unreachable { .. }) => Exit::Unreachable,
            Failure::Client(ClientError::Strange { .. }) | Failure::Dirs(_) => Exit::Failed,
            Failure::Client(ClientError::Refused(error)) => match error.kind.exit_code() {
                2 => Exit::Unreachable,
                3 => Exit::ConfigInvalid,
                5 => Exit::Busy,
                6 => Exit::Rejected,
                _ => Exit::Failed,
            },
            Failure::Own { exit, .. } => *exit,
        }
    }

    /// The same, for programs.
    pub(super) fn to_json(&self) -> Value {
        let (kind, message, hint) = match self {
            Failure::Client(ClientError::Refused(control::Error { kind, message, hint, .. })) => {
                (json!(kind), message.clone(), hint.clone())
            }
            Failure::Client(ClientError::Unreachable { path, cause, hint }) => {
                let message = format!("The daemon at {path:?} cannot be reached: {cause}.");
                (json!("unreachable"), message, (*hint).to_owned())
            }
            Failure::Client(error @ ClientError::Strange { .. }) => {
                (json!("strange_daemon"), error.to_string(), String::new())
            }
            Failure::Dirs(error) => (json!("directories"), error.to_string(), String::new()),
            Failure::Own { kind, message, hint, .. } => (json!(kind), message.clone(), hint.clone()),
        };
        let mut error = json!({"kind": kind, "message": message, "hint": hint, "exit": self.exit().code()});
        if let Some(lines) = self.last_lines() {
            error["last_lines"] = json!(lines);
        }
        json!({ "error": error })
    }

    /// What the process that failed wrote at last.
    pub(super) fn last_lines(&self) -> Option<&LastLines> {
        match self {
            Failure::Client(ClientError::Refused(error)) => error.last_lines.as_deref(),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // What the daemon says contains names and paths from outside.
            Failure::Client(error) => f.write_str(&one_line(&error.to_string())),
            Failure::Dirs(error) => error.fmt(f),
            Failure::Own { message, hint, .. } if hint.is_empty() => f.write_str(message),
            Failure::Own { message, hint, .. } => write!(f, "{message} {hint}"),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::Client(error)
    }
}

impl From<control::Error> for Failure {
    fn from(error: control::Error) -> Failure {
        Failure::Client(ClientError::Refused(error))
    }
}

impl From<DirsError> for Failure {
    fn from(error: DirsError) -> Failure {
        Failure::Dirs(error)
    }
}

/// The names of the service files.
pub(super) fn services_with_files(dirs: &config::Dirs) -> Vec<String> {
    names_in(&[dirs.config.join("services")])
}

/// The service names in the configuration and the state, for suggestions.
pub(super) fn known_services(dirs: &config::Dirs) -> Vec<String> {
    names_in(&[dirs.config.join("services"), dirs.state.join("services")])
}

fn names_in(directories: &[std::path::PathBuf]) -> Vec<String> {
    let entries =
        directories.iter().flat_map(|directory| std::fs::read_dir(directory).into_iter().flatten().flatten());
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    names.dedup();
    names
}
