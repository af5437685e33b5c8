//! Finding out from outside whether a process serves: over HTTP, by a connection that it must accept, by a command.
//!
//! Here is one try, over a connection that somebody else has made: only the supervisor knows the way to a process that gets no
//! other connection yet.

mod exec;
mod http;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::config::Check;

/// A connection to the process.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection for T {}

/// How a try gets at the process.
pub(crate) trait Way {
    /// Connects to this listener of the process that is to be tried, and of no other one.
    async fn connect(&mut self, listener: &str) -> io::Result<Box<dyn Connection>>;

    /// Whether the process has accepted the connection that was made last.
    async fn is_accepted(&mut self) -> io::Result<bool>;

    /// Variables that tell a command what is tried.
    fn variables(&self) -> Vec<(String, String)>;
}

/// How often it is looked whether a connection was accepted.
const ACCEPT_TICK: Duration = Duration::from_millis(2);

/// Tries once. The error says what was found instead of what was to be found.
pub(crate) async fn attempt(check: &Check, limit: Duration, way: &mut impl Way) -> Result<(), String> {
    match timeout(limit, try_once(check, way)).await {
        Ok(result) => result,
        Err(_) => Err(match check {
            Check::Http(http) => format!("{} {} was not answered within {limit:?}", http.method, http.path),
            Check::Tcp { listener } => {
                format!("a connection to {listener} was not accepted within {limit:?}")
            }
            Check::Exec(command) => format!("{} did not end within {limit:?}", command[0]),
        }),
    }
}

async fn try_once(check: &Check, way: &mut impl Way) -> Result<(), String> {
    match check {
        Check::Http(http) => {
            let connection = connect(way, http.listener.as_str()).await?;
            http::ask(http, connection).await
        }
        Check::Tcp { listener } => {
            let _connection = connect(way, listener.as_str()).await?;
            loop {
                match way.is_accepted().await {
                    Ok(true) => return Ok(()),
                    Ok(false) => tokio::time::sleep(ACCEPT_TICK).await,
                    Err(error) => {
                        return Err(format!("cannot look at the connection to {listener}: {error}"));
                    }
                }
            }
        }
        Check::Exec(command) => exec::run(command, way.variables()).await,
    }
}

async fn connect(way: &mut impl Way, listener: &str) -> Result<Box<dyn Connection>, String> {
    way.connect(listener).await.map_err(|error| format!("cannot connect to {listener}: {error}"))
}
