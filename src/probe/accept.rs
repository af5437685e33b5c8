//! Whether a server accepts the connection of a probe.
//!
//! A server may do anything with a connection to which the client says nothing, and some of that is over before anyone looks:
//!
//! | the server                                  | the client sees | the server's end      | it has accepted |
//! |---------------------------------------------|-----------------|-----------------------|-----------------|
//! | accepts, and waits                          | nothing         | a process has it      | yes |
//! | accepts, and says something                 | data            | any                   | yes |
//! | accepts, and closes or ends its side        | the end         | any, or gone          | yes |
//! | accepts, and resets                         | a reset         | gone                  | yes, if the listener is still there |
//! | does not accept yet                         | nothing         | in the queue          | not yet |
//! | waits for data first (`TCP_DEFER_ACCEPT`)   | nothing         | the handshake goes on | not yet: it gets the end of the data |
//! | ends its listener                           | a reset         | gone                  | no |
//!
//! The kernel alone never sends data or an orderly end, and resets a connection in the queue only when the listener ends.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::{Connection, Failure, Way};
use crate::slots::census::Stage;

/// How long it is waited for something to read between two looks at the server's end.
const TICK: Duration = Duration::from_millis(2);

/// A handshake that is not over by then waits for data. On a busy machine its last packet may take some milliseconds.
const HANDSHAKE: Duration = Duration::from_millis(50);

/// What the client sees of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Nothing,
    Data,
    End,
    Reset,
}

/// What follows from one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    Accepted,
    /// Look again.
    Wait,
    /// Look again, but end the data of the client first: that is what the listener waits for.
    End,
    /// There is nothing left to look at.
    Refused,
}

/// The table above. `listens` counts only after a reset.
fn judge(seen: Seen, stage: Stage, listens: bool) -> Judgement {
    match (seen, stage) {
        (Seen::Data | Seen::End, _) | (Seen::Nothing, Stage::Accepted) => Judgement::Accepted,
        (Seen::Reset, _) if listens => Judgement::Accepted,
        (Seen::Reset, _) => Judgement::Refused,
        (Seen::Nothing, Stage::Handshake) => Judgement::End,
        // Gone: what the server has sent is on its way.
        (Seen::Nothing, Stage::Queued | Stage::Gone) => Judgement::Wait,
    }
}

/// Waits until the server has accepted a connection, without limit. One that still waits when this is dropped is kept in the
/// way: the next try goes on with it, so that a slow server need not see a new one each time, and it keeps its place in the queue.
pub(super) async fn is_accepted(listener: &str, way: &mut impl Way) -> Result<(), Failure> {
    if way.waiting().is_none() {
        match way.connect(listener).await {
            Ok(connection) => *way.waiting() = Some(connection),
            // It was there, and was reset before anything else was done with it.
            Err(failure) => {
                let is_reset = matches!(failure, Failure::Reset(_));
                return if is_reset && way.listens(listener).await { Ok(()) } else { Err(failure) };
            }
        }
    }
    let connected_at = Instant::now();
    loop {
        let Some(connection) = way.waiting() else { return Ok(()) };
        let seen = see(connection).await;
        let stage = way.stage().map_err(|error| {
            Failure::Untried(format!("cannot look at the connection to {listener}: {error}"))
        })?;
        let listens = seen == Seen::Reset && way.listens(listener).await;
        match judge(seen, stage, listens) {
            Judgement::Accepted => {
                *way.waiting() = None;
                return Ok(());
            }
            Judgement::Refused => {
                *way.waiting() = None;
                let found =
                    format!("a connection to {listener} was reset, and it is not listened on any more");
                return Err(Failure::Unwell(found));
            }
            Judgement::End if connected_at.elapsed() >= HANDSHAKE => {
                if let Some(connection) = way.waiting() {
                    // If that fails, the next look shows why.
                    let _ = connection.shutdown().await;
                }
            }
            Judgement::End | Judgement::Wait => {}
        }
    }
}

/// Waits a moment for something to be seen.
async fn see(connection: &mut Box<dyn Connection>) -> Seen {
    match timeout(TICK, connection.read(&mut [0; 64])).await {
        Err(_) => Seen::Nothing,
        Ok(Ok(0)) => Seen::End,
        Ok(Ok(_)) => Seen::Data,
        Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => Seen::Nothing,
        Ok(Err(_)) => Seen::Reset,
    }
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
