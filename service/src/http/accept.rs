//! The accept task.

use std::io;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::HttpService;
use super::connection::Clients;
use super::listener::{Accepting, Listener};

/// Pause after the system has run out of a resource, such as file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// The value: whether to accept everything in the queue first.
type Stop = oneshot::Sender<bool>;

#[derive(Debug)]
pub(super) struct Acceptor {
    stop: Stop,
    task: JoinHandle<()>,
}

impl Acceptor {
    pub(super) fn start(listener: &Listener, clients: Clients<impl HttpService>) -> io::Result<Self> {
        let listener = listener.accepting()?;
        let (stop, stopped) = oneshot::channel();
        Ok(Self { stop, task: tokio::spawn(accept(listener, clients, stopped)) })
    }

    /// Stops accepting. Returns when the task has ended.
    pub(super) async fn stop(self, empty_queue: bool) {
        // If the task has panicked there is nothing to stop.
        let _ = self.stop.send(empty_queue);
        let _ = self.task.await;
    }
}

async fn accept(
    listener: Accepting,
    clients: Clients<impl HttpService>,
    mut stopped: oneshot::Receiver<bool>,
) {
    let empty_queue = loop {
        let accepted = tokio::select! {
            biased;
            stop = &mut stopped => break stop.unwrap_or(false),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => clients.welcome(stream),
            // The client left before the connection was accepted.
            Err(error) if is_of_connection(&error) => {}
            Err(_) => tokio::select! {
                stop = &mut stopped => break stop.unwrap_or(false),
                () = sleep(PAUSE) => {}
            },
        }
    };
    if empty_queue {
        // An error ends the queue: nothing more can be accepted.
        listener.accept_queued().into_iter().flatten().for_each(|stream| clients.welcome(stream));
    }
}

/// Whether an error of accept(2) concerns one connection, not the listener or the system.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
        PermissionDenied,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | PermissionDenied
    )
}
