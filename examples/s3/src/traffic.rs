//! What is in progress: one entry for each open connection, and what each is doing.
//!
//! A drain ends when this is *quiet*, a seal when it is *empty*. Both wait for a change, not for a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// What takes longer than this is long: a drain waits for it, so that a seal, which keeps new connections
/// waiting, does not have to.
const SHORT: Duration = Duration::from_millis(100);

/// All connections and requests of the server. Cheap to clone, shared by all.
#[derive(Clone, Default)]
pub(crate) struct Traffic {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    book: Mutex<Book>,
    changed: Notify,
}

#[derive(Default)]
struct Book {
    next_id: u64,
    connections: HashMap<u64, Connection>,
    /// Requests whose handler or answer still exists. Not the same as busy connections: a handler goes on
    /// to its end when the client has left.
    requests: usize,
}

struct Connection {
    accepted: Instant,
    activity: Activity,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// Accepted, and not a byte has come yet.
    Silent { since: Instant },
    /// A request is coming in, and the client decides how long that takes.
    Asking,
    /// A request is worked on or answered; `long` if that may well take long.
    Busy { since: Instant, long: bool },
    /// The last answer is complete.
    Idle { since: Instant },
}

impl Traffic {
    /// Enters a connection that was just accepted.
    pub(crate) fn connection(&self) -> ConnectionEntry {
        let now = Instant::now();
        let mut book = self.book();
        book.next_id += 1;
        let id = book.next_id;
        let activity = Activity::Silent { since: now };
        book.connections.insert(id, Connection { accepted: now, activity });
        ConnectionEntry { traffic: self.clone(), id }
    }

    /// Waits until nothing is left that a seal would have to wait long for: every connection from before
    /// `drain_began` is gone, and the others are at a short request.
    pub(crate) async fn quiet(&self, drain_began: Instant) {
        while !self.book().is_quiet(drain_began) {
            self.shared.changed.notified().await;
        }
    }

    /// Waits until there is no connection and no request.
    pub(crate) async fn empty(&self) {
        while !self.book().is_empty() {
            self.shared.changed.notified().await;
        }
    }

    /// Says in words what is in progress, for an error message.
    pub(crate) fn summary(&self) -> String {
        let book = self.book();
        format!("{} connections open, {} requests in progress", book.connections.len(), book.requests)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the book and wakes the one who waits for it. The permit that `notify_one` leaves behind makes
    /// it safe to look first and wait then.
    fn update(&self, change: impl FnOnce(&mut Book)) {
        change(&mut self.book());
        self.shared.changed.notify_one();
    }
}

impl Book {
    fn is_quiet(&self, drain_began: Instant) -> bool {
        self.connections.values().all(|connection| {
            connection.accepted >= drain_began
                && match connection.activity {
                    Activity::Silent { .. } | Activity::Asking => false,
                    Activity::Busy { since, long } => !long && since.elapsed() < SHORT,
                    Activity::Idle { since } => since.elapsed() < SHORT,
                }
        })
    }

    fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.requests == 0
    }
}

/// The entry of one connection; dropping it says that the connection is closed.
pub(crate) struct ConnectionEntry {
    traffic: Traffic,
    id: u64,
}

impl ConnectionEntry {
    /// How long nothing has been asked on this connection; `None` while a request is in progress.
    pub(crate) fn idle_for(&self) -> Option<Duration> {
        match self.traffic.book().connections.get(&self.id)?.activity {
            Activity::Silent { since } | Activity::Idle { since } => Some(since.elapsed()),
            Activity::Asking | Activity::Busy { .. } => None,
        }
    }

    /// Bytes have come from the client.
    pub(crate) fn received(&self) {
        if self.idle_for().is_some() {
            let id = self.id;
            self.traffic.update(|book| book.set(id, Activity::Asking));
        }
    }

    /// A request begins, and its body is coming in.
    pub(crate) fn request(&self) -> RequestEntry {
        let id = self.id;
        self.traffic.update(|book| {
            book.requests += 1;
            book.set(id, Activity::Asking);
        });
        RequestEntry { traffic: self.traffic.clone(), connection: id }
    }
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        self.traffic.update(|book| {
            book.connections.remove(&self.id);
        });
    }
}

impl Book {
    fn set(&mut self, id: u64, activity: Activity) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.activity = activity;
        }
    }
}

/// The entry of one request; dropping it says that its handler and its answer are complete.
pub(crate) struct RequestEntry {
    traffic: Traffic,
    connection: u64,
}

impl RequestEntry {
    /// The body has come in completely, or it is being answered: nothing but the server itself, or the
    /// client's taking of the answer, is waited for. `long` if that may well take long.
    pub(crate) fn busy(&self, long: bool) {
        let id = self.connection;
        self.traffic.update(|book| book.set(id, Activity::Busy { since: Instant::now(), long }));
    }
}

impl Drop for RequestEntry {
    fn drop(&mut self) {
        let id = self.connection;
        self.traffic.update(|book| {
            book.requests -= 1;
            book.set(id, Activity::Idle { since: Instant::now() });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_quiet(traffic: &Traffic, drain_began: Instant) -> bool {
        traffic.book().is_quiet(drain_began)
    }

    #[tokio::test(start_paused = true)]
    async fn only_short_work_of_new_connections_is_quiet() {
        let traffic = Traffic::default();
        let old = traffic.connection();
        tokio::time::advance(Duration::from_millis(1)).await;
        let drain = Instant::now();
        assert!(!is_quiet(&traffic, drain), "a connection from before the drain");
        drop(old);
        assert!(is_quiet(&traffic, drain));

        let new = traffic.connection();
        assert!(!is_quiet(&traffic, drain), "accepted, nothing sent yet");
        new.received();
        assert!(!is_quiet(&traffic, drain), "the head of a request is coming in");
        let request = new.request();
        assert!(!is_quiet(&traffic, drain), "its body is coming in");
        request.busy(true);
        assert!(!is_quiet(&traffic, drain), "long work");
        request.busy(false);
        assert!(is_quiet(&traffic, drain), "short work");
        tokio::time::advance(SHORT).await;
        assert!(!is_quiet(&traffic, drain), "work that takes long all the same");
        drop(request);
        assert!(is_quiet(&traffic, drain), "answered");
        tokio::time::advance(SHORT).await;
        assert!(!is_quiet(&traffic, drain), "a client that does not take its answer");
    }

    #[tokio::test]
    async fn a_handler_without_a_client_still_counts() {
        let traffic = Traffic::default();
        let connection = traffic.connection();
        let request = connection.request();
        assert_eq!(connection.idle_for(), None);
        drop(connection);
        assert!(!traffic.book().is_empty());
        let waiter = tokio::spawn({
            let traffic = traffic.clone();
            async move { traffic.empty().await }
        });
        drop(request);
        tokio::time::timeout(Duration::from_secs(5), waiter).await.unwrap().unwrap();
    }
}
