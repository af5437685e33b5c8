//! The work in progress: one entry for each open connection and for each request.
//!
//! A drain ends when the traffic is *quiet*, a seal when it is *empty*. Both wait for a change, not for a fixed time.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// A request that takes longer counts as long. A drain waits for it, so that a seal, which delays new connections, need
/// not.
const SHORT: Duration = Duration::from_millis(100);

/// All connections and requests of the server. Clones share the same data.
#[derive(Debug, Clone, Default)]
pub(super) struct Traffic(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    registry: Mutex<Registry>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Registry {
    next_id: u64,
    connections: HashMap<u64, Connection>,
    /// Requests whose handler or response still exists, including those of closed connections.
    requests: HashMap<u64, RequestWork>,
}

#[derive(Debug)]
struct Connection {
    accepted: Instant,
    /// Since when no request is in progress.
    idle_since: Instant,
    state: InputState,
    /// Requests without a complete response.
    requests: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputState {
    /// No byte has arrived.
    Silent,
    /// A part of a request has arrived.
    Partial,
    /// Only complete requests have arrived.
    Whole,
    /// HTTP/2: bytes do not show where requests begin.
    Multiplexed,
}

/// The progress of a request.
#[derive(Debug, Clone, Copy)]
enum RequestWork {
    /// Its body is arriving; the client decides how long that takes.
    Asking,
    /// It is being processed or answered; `long` if that may take long.
    Busy { since: Instant, long: bool },
}

impl Traffic {
    /// Adds an accepted connection.
    pub(super) fn connection(&self) -> ConnectionEntry {
        let now = Instant::now();
        let connection =
            Connection { accepted: now, idle_since: now, state: InputState::Silent, requests: 0 };
        let mut registry = self.registry();
        let id = registry.fresh();
        registry.connections.insert(id, connection);
        ConnectionEntry { traffic: self.clone(), id }
    }

    /// Waits until a seal would not take long: every connection from before `drain_began` is gone, and the others have
    /// only short requests.
    pub(super) async fn quiet(&self, drain_began: Instant) {
        while !self.registry().is_quiet(drain_began) {
            self.0.changed.notified().await;
        }
    }

    /// Waits until there is no connection and no request.
    pub(super) async fn empty(&self) {
        while !self.registry().is_empty() {
            self.0.changed.notified().await;
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the data and wakes the one task that waits for a change. `notify_one` stores a permit, so the task can
    /// check first and then wait without a lost wakeup.
    fn update<T>(&self, change: impl FnOnce(&mut Registry) -> T) -> T {
        let result = change(&mut self.registry());
        self.0.changed.notify_one();
        result
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registry = self.registry();
        write!(
            f,
            "{} connections are open, {} requests in progress",
            registry.connections.len(),
            registry.requests.len()
        )
    }
}

impl Registry {
    fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn is_quiet(&self, drain_began: Instant) -> bool {
        let is_short = |work: &RequestWork| match *work {
            RequestWork::Asking => false,
            RequestWork::Busy { since, long } => !long && since.elapsed() < SHORT,
        };
        let is_new = |connection: &Connection| {
            connection.accepted >= drain_began
                && matches!(connection.state, InputState::Whole | InputState::Multiplexed)
                // A client that does not read the end of its response does not reconnect.
                && (connection.requests > 0 || connection.idle_since.elapsed() < SHORT)
        };
        self.requests.values().all(is_short) && self.connections.values().all(is_new)
    }

    fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.requests.is_empty()
    }
}

/// The entry of one connection. Drop it when the connection is closed.
#[derive(Debug)]
pub(super) struct ConnectionEntry {
    traffic: Traffic,
    id: u64,
}

impl ConnectionEntry {
    /// How long no request has been in progress. `None` while one is, or a part of one has arrived.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        let registry = self.traffic.registry();
        let connection = registry.connections.get(&self.id)?;
        let is_idle = connection.requests == 0 && connection.state != InputState::Partial;
        is_idle.then(|| connection.idle_since.elapsed())
    }

    /// Whether it is HTTP/2.
    pub(super) fn is_multiplexed(&self) -> bool {
        let registry = self.traffic.registry();
        registry
            .connections
            .get(&self.id)
            .is_some_and(|connection| connection.state == InputState::Multiplexed)
    }

    /// Records bytes from the client.
    pub(super) fn received(&self, bytes: &[u8]) {
        self.with(|connection| {
            connection.state = match connection.state {
                // The connection preface: RFC 9113, section 3.4.
                InputState::Silent if bytes.starts_with(b"PRI ") => InputState::Multiplexed,
                InputState::Multiplexed => InputState::Multiplexed,
                // The body of the request in progress.
                known if connection.requests > 0 => known,
                InputState::Silent | InputState::Whole | InputState::Partial => InputState::Partial,
            };
        });
    }

    /// Records a new request. `coming`: its body is still arriving, and the client decides how long that takes.
    pub(super) fn request(&self, coming: bool, long: bool) -> RequestEntry {
        let work =
            if coming { RequestWork::Asking } else { RequestWork::Busy { since: Instant::now(), long } };
        let id = self.traffic.update(|registry| {
            if let Some(connection) = registry.connections.get_mut(&self.id) {
                connection.requests += 1;
                if connection.state != InputState::Multiplexed {
                    connection.state = InputState::Whole;
                }
            }
            let id = registry.fresh();
            registry.requests.insert(id, work);
            id
        });
        RequestEntry { traffic: self.traffic.clone(), connection: self.id, id }
    }

    fn with(&self, change: impl FnOnce(&mut Connection)) {
        self.traffic.update(|registry| registry.connections.get_mut(&self.id).map(change));
    }
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        self.traffic.update(|registry| registry.connections.remove(&self.id));
    }
}

/// The entry of one request. Drop it when its handler and its response are complete.
#[derive(Debug)]
pub(super) struct RequestEntry {
    traffic: Traffic,
    connection: u64,
    id: u64,
}

impl RequestEntry {
    /// Records that the response has begun; `long` if it may take long.
    pub(super) fn answered(&self, long: bool) {
        let work = RequestWork::Busy { since: Instant::now(), long };
        self.traffic.update(|registry| registry.requests.insert(self.id, work));
    }
}

impl Drop for RequestEntry {
    fn drop(&mut self) {
        self.traffic.update(|registry| {
            registry.requests.remove(&self.id);
            if let Some(connection) = registry.connections.get_mut(&self.connection) {
                connection.requests -= 1;
                connection.idle_since = Instant::now();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_short_work_of_new_connections_is_quiet() {
        let traffic = Traffic::default();
        let is_quiet = |began| traffic.registry().is_quiet(began);
        let old = traffic.connection();
        tokio::time::advance(Duration::from_millis(1)).await;
        let drain = Instant::now();
        assert!(!is_quiet(drain), "a connection from before the drain");
        drop(old);
        assert!(is_quiet(drain));

        let new = traffic.connection();
        assert!(!is_quiet(drain), "accepted, nothing sent yet");
        new.received(b"GET");
        assert!(!is_quiet(drain), "the head of a request is coming in");
        let request = new.request(true, false);
        assert!(!is_quiet(drain), "its body is coming in");
        request.answered(true);
        assert!(!is_quiet(drain), "long work");
        request.answered(false);
        assert!(is_quiet(drain), "short work");
        tokio::time::advance(SHORT).await;
        assert!(!is_quiet(drain), "work that takes long all the same");
        new.received(b"the end of its body");
        drop(request);
        assert!(is_quiet(drain), "answered");
        assert_eq!(new.idle_for(), Some(Duration::ZERO));
        tokio::time::advance(SHORT).await;
        assert!(!is_quiet(drain), "a client that does not take its answer");
    }

    #[tokio::test(start_paused = true)]
    async fn one_answer_of_several_leaves_a_connection_busy() {
        let traffic = Traffic::default();
        let connection = traffic.connection();
        connection.received(b"PRI * HTTP/2.0\r\n");
        let (first, second) = (connection.request(false, false), connection.request(false, true));
        drop(first);
        assert_eq!(connection.idle_for(), None);
        assert!(!traffic.registry().is_quiet(Instant::now()));
        connection.received(b"a ping");
        drop(second);
        assert_eq!(connection.idle_for(), Some(Duration::ZERO));
        assert!(connection.is_multiplexed());
    }

    #[tokio::test]
    async fn a_handler_without_a_client_still_counts() {
        let traffic = Traffic::default();
        let connection = traffic.connection();
        let request = connection.request(false, false);
        drop(connection);
        assert!(!traffic.registry().is_empty());
        let waiter = tokio::spawn({
            let traffic = traffic.clone();
            async move { traffic.empty().await }
        });
        drop(request);
        tokio::time::timeout(Duration::from_secs(5), waiter).await.unwrap().unwrap();
    }
}
