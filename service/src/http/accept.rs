//! The task that accepts.

use std::io;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::HttpService;
use super::connection::Clients;
use super::listener::{Accepting, Listener};

/// For how long nothing is accepted after the system has run out of something, such as file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// Whether to serve first what waits in the queue.
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

    /// Returns when nothing will be accepted any more.
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
            // A connection that has gone before it was accepted.
            Err(error) if is_of_connection(&error) => {}
            Err(_) => tokio::select! {
                stop = &mut stopped => break stop.unwrap_or(false),
                () = sleep(PAUSE) => {}
            },
        }
    };
    if empty_queue {
        // An error ends the queue: nothing is left that can be served.
        listener.rest().into_iter().flatten().for_each(|stream| clients.welcome(stream));
    }
}

/// What accept(2) says of the one connection, and not of the listener or the system.
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
