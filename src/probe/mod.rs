//! Finding out from outside whether a process serves: over HTTP, by a connection that it must accept, by a command.
//!
//! Here is one try, over a connection that somebody else has made: only the supervisor knows the way to a process that gets no
//! other connection yet.

mod http;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::config::{Check, Http};
use crate::hooks::{self, Command, HookError};

/// A connection to the process.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection for T {}

/// How a try gets at the process.
pub(crate) trait Way {
    /// Connects to this listener of the process that is to be tried, and of no other one.
    async fn connect(&mut self, listener: &str) -> Result<Box<dyn Connection>, Failure>;

    /// Whether the process has accepted the connection that was made last.
    async fn is_accepted(&mut self) -> io::Result<bool>;

    /// Variables that tell a command what is tried.
    fn variables(&self) -> Vec<(String, String)>;

    /// Where a command runs.
    fn working_dir(&self) -> PathBuf;
}

/// Descriptors, memory, ports, or the path to the socket of a process that has it.
const WANTING: [Errno; 7] = [
    Errno::MFILE,
    Errno::NFILE,
    Errno::NOMEM,
    Errno::NOBUFS,
    Errno::ADDRNOTAVAIL,
    Errno::NOENT,
    Errno::ACCESS,
];

/// How often it is looked whether a connection was accepted.
const ACCEPT_TICK: Duration = Duration::from_millis(2);

/// What a try found instead of what was to be found. `Display` is one clause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The process does not serve as it should.
    #[error("{0}")]
    Unwell(String),
    /// It could not be tried, which says nothing about it.
    #[error("{0}")]
    Untried(String),
}

impl Failure {
    /// A connection that could not be made: for want of something here, or because of the process.
    pub(crate) fn to_connect(listener: &str, error: &io::Error) -> Self {
        let found = format!("cannot connect to {listener}: {error}");
        let is_ours = Errno::from_io_error(error).is_some_and(|error| WANTING.contains(&error));
        if is_ours { Self::Untried(found) } else { Self::Unwell(found) }
    }

    /// The same with another text.
    pub(crate) fn map(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Unwell(found) => Self::Unwell(change(found)),
            Self::Untried(found) => Self::Untried(change(found)),
        }
    }
}

/// Tries once.
pub(crate) async fn attempt(check: &Check, limit: Duration, way: &mut impl Way) -> Result<(), Failure> {
    let late = |what: String| Failure::Unwell(format!("{what} within {limit:?}"));
    match check {
        Check::Http(http) => timeout(limit, ask(http, way))
            .await
            .unwrap_or_else(|_| Err(late(format!("{} {} was not answered", http.method, http.path)))),
        Check::Tcp { listener } => timeout(limit, is_accepted(listener.as_str(), way))
            .await
            .unwrap_or_else(|_| Err(late(format!("a connection to {listener} was not accepted")))),
        Check::Exec(argv) => {
            let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            let command = Command { argv: argv.clone(), limit_ms };
            let ended = hooks::run(&command, None, &way.variables(), &way.working_dir()).await;
            ended.map(drop).map_err(|error| match error {
                HookError::Failed { .. } | HookError::TooLong { .. } => Failure::Unwell(error.to_string()),
                HookError::NotAbsolute(_)
                | HookError::NoBinary(_)
                | HookError::Unsafe { .. }
                | HookError::Spawn { .. } => Failure::Untried(error.to_string()),
            })
        }
    }
}

/// Runs a command that prints a number, and gives the number.
pub(crate) async fn measure(
    command: &Command,
    variables: &[(String, String)],
    working_dir: &Path,
) -> Result<f64, String> {
    let output =
        hooks::run(command, None, variables, working_dir).await.map_err(|error| error.to_string())?;
    let printed = output.stdout.trim();
    let number = printed.parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| format!("{} printed {printed:?}, which is no number", command.argv[0]))
}

async fn ask(http: &Http, way: &mut impl Way) -> Result<(), Failure> {
    let connection = way.connect(http.listener.as_str()).await?;
    http::ask(http, connection).await.map_err(Failure::Unwell)
}

async fn is_accepted(listener: &str, way: &mut impl Way) -> Result<(), Failure> {
    let _connection = way.connect(listener).await?;
    loop {
        match way.is_accepted().await {
            Ok(true) => return Ok(()),
            Ok(false) => tokio::time::sleep(ACCEPT_TICK).await,
            Err(error) => {
                let found = format!("cannot look at the connection to {listener}: {error}");
                return Err(Failure::Untried(found));
            }
        }
    }
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
            ("echo many", "no number"),
            ("echo nan", "no number"),
            ("true", "no number"),
            ("exit 1", "exited with code 1"),
        ] {
            let error = measured(script).await.unwrap_err();
            assert!(error.contains(told), "{script}: {error}");
        }
    }
}
