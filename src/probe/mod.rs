//! Checks from outside whether a process serves: over HTTP, by a connection that it must accept, or by a command.
//!
//! This module makes one attempt, over a connection from the caller: only the supervisor has a route to a process that
//! receives no other connections yet.

mod accept;
mod http;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::config::{Check, Http};
use crate::hooks::{self, Command, HookError};
use crate::slots::census::AcceptStage;
use crate::sys::clock::as_ms;
use crate::sys::errno::{Errno, errno_of};

/// A connection to the process.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection for T {}

/// The environment of a command that tests a process.
#[derive(Debug)]
pub(crate) struct CommandEnvironment {
    /// Environment variables that describe the attempt.
    pub(crate) variables: Vec<(String, String)>,
    /// The working directory.
    pub(crate) working_dir: PathBuf,
}

/// Gives an attempt access to the process.
pub(crate) trait ProcessAccess {
    /// Connects to this listener of the process under test, and never to that of another process.
    async fn connect(&mut self, listener: &str) -> Result<Box<dyn Connection>, Failure>;

    /// Stores a connection that waits to be accepted, from one attempt to the next.
    fn waiting(&mut self) -> &mut Option<Box<dyn Connection>>;

    /// How far the server has taken the last connection.
    fn stage(&mut self) -> io::Result<AcceptStage>;

    /// Whether the process's listener still listens.
    async fn listens(&mut self, listener: &str) -> bool;

    /// The environment for a command.
    async fn surroundings(&self) -> CommandEnvironment;
}

/// A lack of descriptors, memory or ports, or of the path to a process's socket.
const TRANSIENT_ERRORS: [Errno; 7] = [
    Errno::EMFILE,
    Errno::ENFILE,
    Errno::ENOMEM,
    Errno::ENOBUFS,
    Errno::EADDRNOTAVAIL,
    Errno::ENOENT,
    Errno::EACCES,
];

/// Why an attempt failed. `Display` is one clause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The process does not serve as it should.
    #[error("{0}")]
    Unwell(String),
    /// A connection to it was established, and reset before any data was sent.
    #[error("{0}")]
    Reset(String),
    /// The attempt was impossible, which says nothing about the process.
    #[error("{0}")]
    Untried(String),
}

impl Failure {
    /// Classifies a failed connect: a lack of resources here, or a fault of the process.
    pub(crate) fn to_connect(listener: &str, error: &io::Error) -> Self {
        let found = format!("cannot connect to {listener}: {error}");
        match errno_of(error) {
            Some(errno) if TRANSIENT_ERRORS.contains(&errno) => Self::Untried(found),
            Some(Errno::ECONNRESET) => Self::Reset(found),
            _ => Self::Unwell(found),
        }
    }

    /// The same kind with another text.
    pub(crate) fn map(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Unwell(found) => Self::Unwell(change(found)),
            Self::Reset(found) => Self::Reset(change(found)),
            Self::Untried(found) => Self::Untried(change(found)),
        }
    }
}

/// Makes one attempt.
pub(crate) async fn attempt(
    check: &Check,
    limit: Duration,
    access: &mut impl ProcessAccess,
) -> Result<(), Failure> {
    let late = |what: String| Failure::Unwell(format!("{what} within {limit:?}"));
    match check {
        Check::Http(http) => timeout(limit, ask(http, access))
            .await
            .unwrap_or_else(|_| Err(late(format!("{} {} was not answered", http.method, http.path)))),
        Check::Tcp { listener } => timeout(limit, accept::is_accepted(listener.as_str(), access))
            .await
            .unwrap_or_else(|_| Err(late(format!("a connection to {listener} was not accepted")))),
        Check::Exec(argv) => {
            let limit_ms = as_ms(limit);
            let command = Command { argv: argv.clone(), limit_ms };
            let CommandEnvironment { variables, working_dir } = access.surroundings().await;
            let ended = hooks::run(&command, None, &variables, &working_dir).await;
            ended.map(drop).map_err(|error| match error {
                HookError::Failed { .. } | HookError::TooLong { .. } => Failure::Unwell(error.to_string()),
                HookError::NotAbsolute(_)
                | HookError::NoBinary(_)
                | HookError::CalledOff(_)
                | HookError::Unsafe { .. }
                // A check that did not run says nothing of the process.
                | HookError::NotStarted { .. }
                | HookError::Spawn { .. } => Failure::Untried(error.to_string()),
            })
        }
    }
}

/// Runs a command that prints a number, and returns the number.
pub(crate) async fn measure(
    command: &Command,
    variables: &[(String, String)],
    working_dir: &Path,
) -> Result<f64, String> {
    let output =
        hooks::run(command, None, variables, working_dir).await.map_err(|error| error.to_string())?;
    let printed = output.stdout.trim();
    let number = printed.parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| format!("{} printed {printed:?}, which is not a number", command.argv[0]))
}

async fn ask(http: &Http, access: &mut impl ProcessAccess) -> Result<(), Failure> {
    let connection = access.connect(http.listener.as_str()).await?;
    http::ask(http, connection).await.map_err(Failure::Unwell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_number_is_read_and_anything_else_is_told() {
        let measured = async |script: &str| {
            let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
            let command = Command { argv, limit_ms: 5_000 };
            measure(&command, &[("WHO".into(), "7".into())], Path::new("/")).await
        };
        assert_eq!(measured("echo $WHO").await, Ok(7.0));
        assert_eq!(measured("echo ' 0.5 '; yes no | head -c 200000 >&2").await, Ok(0.5));
        for (script, told) in [
            ("echo many", "not a number"),
            ("echo nan", "not a number"),
            ("true", "not a number"),
            ("exit 1", "exited with code 1"),
        ] {
            let error = measured(script).await.unwrap_err();
            assert!(error.contains(told), "{script}: {error}");
        }
    }
}
