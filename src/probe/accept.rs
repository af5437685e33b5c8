//! Whether a server accepts a probe's connection.
//!
//! A server may do anything with a connection on which the client sends nothing, and may be done before this code
//! checks:
//!
//! | the server                                  | the client sees | the server's end      | it has accepted |
//! |---------------------------------------------|-----------------|-----------------------|-----------------|
//! | accepts, and waits                          | nothing         | a process has it      | yes |
//! | accepts, and sends data                     | data            | any                   | yes |
//! | accepts, and closes or shuts down its side  | the end         | any, or gone          | yes |
//! | accepts, and resets                         | a reset         | gone                  | yes, if the listener still exists |
//! | does not accept yet                         | nothing         | in the queue          | not yet |
//! | waits for data first (`TCP_DEFER_ACCEPT`)   | nothing         | incomplete handshake  | not yet: the probe ends its data |
//! | ends its listener                           | a reset         | gone                  | no |
//!
//! The kernel alone never sends data or an orderly end, and resets a connection in the queue only when the listener ends.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::{Connection, Failure, ProcessAccess};
use crate::slots::census::AcceptStage;

/// How long to wait for input between two checks of the server's end.
const TICK: Duration = Duration::from_millis(2);

/// A handshake that is incomplete by then waits for data. On a busy machine its last packet may take milliseconds.
const HANDSHAKE: Duration = Duration::from_millis(50);

/// What the client sees of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionStatus {
    Nothing,
    Data,
    End,
    Reset,
}

/// The conclusion from one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AcceptDecision {
    Accepted,
    /// Check again.
    Wait,
    /// End the client's data, which the listener waits for, and check again.
    End,
    /// The connection is gone.
    Refused,
}

/// The table above. `listens` counts only after a reset.
fn judge(seen: ConnectionStatus, stage: AcceptStage, listens: bool) -> AcceptDecision {
    match (seen, stage) {
        (ConnectionStatus::Data | ConnectionStatus::End, _)
        | (ConnectionStatus::Nothing, AcceptStage::Accepted) => AcceptDecision::Accepted,
        (ConnectionStatus::Reset, _) if listens => AcceptDecision::Accepted,
        (ConnectionStatus::Reset, _) => AcceptDecision::Refused,
        (ConnectionStatus::Nothing, AcceptStage::Handshake) => AcceptDecision::End,
        // Gone: the server's data is in transit.
        (ConnectionStatus::Nothing, AcceptStage::Queued | AcceptStage::Gone) => AcceptDecision::Wait,
    }
}

/// Waits without limit until the server has accepted a connection. If this is dropped while the connection waits,
/// `access` keeps it, and the next attempt continues with it: a slow server does not get a new connection for each
/// attempt, and this one keeps its place in the queue.
pub(super) async fn is_accepted(listener: &str, access: &mut impl ProcessAccess) -> Result<(), Failure> {
    if access.waiting().is_none() {
        match access.connect(listener).await {
            Ok(connection) => *access.waiting() = Some(connection),
            // The connection was established, and was reset before any other operation.
            Err(failure) => {
                let is_reset = matches!(failure, Failure::Reset(_));
                return if is_reset && access.listens(listener).await { Ok(()) } else { Err(failure) };
            }
        }
    }
    let connected_at = Instant::now();
    loop {
        let Some(connection) = access.waiting() else { return Ok(()) };
        let seen = see(connection).await;
        let stage = access.stage().map_err(|error| {
            Failure::Untried(format!("cannot look at the connection to {listener}: {error}"))
        })?;
        let listens = seen == ConnectionStatus::Reset && access.listens(listener).await;
        match judge(seen, stage, listens) {
            AcceptDecision::Accepted => {
                *access.waiting() = None;
                return Ok(());
            }
            AcceptDecision::Refused => {
                *access.waiting() = None;
                let found = format!("a connection to {listener} was reset, and its listener is closed");
                return Err(Failure::Unwell(found));
            }
            AcceptDecision::End if connected_at.elapsed() >= HANDSHAKE => {
                if let Some(connection) = access.waiting() {
                    // On failure the next check shows the reason.
                    let _ = connection.shutdown().await;
                }
            }
            AcceptDecision::End | AcceptDecision::Wait => {}
        }
    }
}

/// Waits briefly for input.
async fn see(connection: &mut Box<dyn Connection>) -> ConnectionStatus {
    match timeout(TICK, connection.read(&mut [0; 64])).await {
        Err(_) => ConnectionStatus::Nothing,
        Ok(Ok(0)) => ConnectionStatus::End,
        Ok(Ok(_)) => ConnectionStatus::Data,
        Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => ConnectionStatus::Nothing,
        Ok(Err(_)) => ConnectionStatus::Reset,
    }
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
