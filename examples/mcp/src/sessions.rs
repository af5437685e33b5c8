//! The sessions of this server's clients, including those from its predecessor.
//!
//! A session is the client's initialization. With that and the id, any process of this server can continue the
//! session; when a request names an unknown session, `rmcp` asks this store. Later messages to the client (such as
//! events of a stream) are not part of it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use handoff_service::tokio::State;
use rmcp::transport::streamable_http_server::session::{SessionState, SessionStore, SessionStoreError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::BoxError;

/// The format of [`Table`]. Other formats are refused.
const FORMAT: u32 = 1;

/// How long after its start a process may have a predecessor that still hands over: longer than a drain.
const WHILE_YOUNG: Duration = Duration::from_secs(60);

/// How long a young process holds a request with an unknown session.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A session unused for this long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// All sessions by id.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Table {
    sessions: HashMap<String, Session>,
    /// Sessions that ended here, so that a handover of the predecessor does not restore them.
    #[serde(skip)]
    ended: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Session {
    state: SessionState,
    used_at_unix_s: u64,
    /// It came from the predecessor, which may still end it, and was not used here.
    #[serde(skip)]
    is_handed: bool,
}

/// The sessions of this process, for `rmcp` and for the handoff.
#[derive(Debug)]
pub struct Sessions {
    table: Mutex<Table>,
    born: Instant,
    /// Counts changes that are worth a handover.
    changed: watch::Sender<u64>,
    /// Counts handovers to this process.
    arrived: watch::Sender<u64>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            born: Instant::now(),
            changed: watch::Sender::new(0),
            arrived: watch::Sender::new(0),
        }
    }
}

impl Sessions {
    /// All sessions, for the successor.
    pub(crate) fn state(&self) -> Result<State, BoxError> {
        let mut table = self.table();
        let now = now_unix_s();
        table.sessions.retain(|_, it| now.saturating_sub(it.used_at_unix_s) < FORGOTTEN_AFTER.as_secs());
        Ok(State::new(FORMAT, serde_json::to_vec(&*table)?)?)
    }

    /// Notifies of each change from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Records a request of a session.
    pub(crate) fn used(&self, id: &str) {
        self.find(id);
    }

    /// Takes the predecessor's sessions, which replace those of an earlier handover. Sessions that were used here
    /// stay unchanged.
    pub(crate) fn take_over(&self, state: &State) -> Result<(), BoxError> {
        if state.format() != FORMAT {
            return Err(format!("sessions of format {} are not supported", state.format()).into());
        }
        let handed: Table = serde_json::from_slice(state.content())?;
        let mut table = self.table();
        table.sessions.retain(|id, it| !it.is_handed || handed.sessions.contains_key(id));
        for (id, session) in handed.sessions {
            if !table.ended.contains(&id) {
                table.sessions.entry(id).or_insert(Session { is_handed: true, ..session });
            }
        }
        drop(table);
        self.arrived.send_modify(|count| *count += 1);
        Ok(())
    }

    fn find(&self, id: &str) -> Option<SessionState> {
        let mut table = self.table();
        let session = table.sessions.get_mut(id)?;
        session.used_at_unix_s = now_unix_s();
        session.is_handed = false;
        Some(session.state.clone())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // The data is consistent after each statement.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl SessionStore for Sessions {
    /// A client may arrive with its session before the predecessor has handed it over. In a process that is old
    /// enough, an unknown session does not exist.
    async fn load(&self, id: &str) -> Result<Option<SessionState>, SessionStoreError> {
        let mut arrived = self.arrived.subscribe();
        let until = (Instant::now() + TIMEOUT).min(self.born + WHILE_YOUNG);
        loop {
            if let Some(state) = self.find(id) {
                return Ok(Some(state));
            }
            if !matches!(timeout_at(until, arrived.changed()).await, Ok(Ok(()))) {
                return Ok(None);
            }
        }
    }

    async fn store(&self, id: &str, state: &SessionState) -> Result<(), SessionStoreError> {
        let session = Session { state: state.clone(), used_at_unix_s: now_unix_s(), is_handed: false };
        self.table().sessions.insert(id.to_owned(), session);
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn delete(&self, id: &str) -> Result<(), SessionStoreError> {
        let mut table = self.table();
        table.sessions.remove(id);
        if self.born.elapsed() < WHILE_YOUNG {
            table.ended.push(id.to_owned());
        } else {
            table.ended = Vec::new();
        }
        drop(table);
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rmcp::model::{ClientCapabilities, Implementation, InitializeRequestParams};

    fn session() -> SessionState {
        let client = Implementation::new("a client", "1");
        SessionState::new(InitializeRequestParams::new(ClientCapabilities::default(), client))
    }

    #[tokio::test]
    async fn the_next_process_knows_what_it_was_handed_and_what_was_ended() {
        let old = Sessions::default();
        for id in ["kept", "ended-there", "ended-here", "ended-late", "used"] {
            old.store(id, &session()).await.unwrap();
        }
        old.delete("ended-there").await.unwrap();
        let new = Sessions::default();
        new.delete("ended-here").await.unwrap();
        new.take_over(&old.state().unwrap()).unwrap();
        assert_eq!(new.find("kept").unwrap().initialize_params.client_info.name, "a client");
        assert!(new.find("ended-there").is_none() && new.find("ended-here").is_none());
        for id in ["ended-late", "used"] {
            old.delete(id).await.unwrap();
        }
        new.used("used");
        new.take_over(&old.state().unwrap()).unwrap();
        assert!(new.find("ended-late").is_none() && new.find("used").is_some());
        assert!(new.take_over(&State::new(2, "{}").unwrap()).is_err());
        assert!(new.take_over(&State::new(FORMAT, "nonsense").unwrap()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_young_process_waits_for_a_session_and_an_old_one_does_not() {
        let (old, new) = (Sessions::default(), std::sync::Arc::new(Sessions::default()));
        old.store("late", &session()).await.unwrap();
        let asked = tokio::spawn({
            let new = new.clone();
            async move { new.load("late").await.unwrap() }
        });
        tokio::time::sleep(TIMEOUT / 2).await;
        new.take_over(&Sessions::default().state().unwrap()).unwrap();
        tokio::time::sleep(TIMEOUT / 4).await;
        assert!(!asked.is_finished());
        new.take_over(&old.state().unwrap()).unwrap();
        assert!(asked.await.unwrap().is_some());

        let began = Instant::now();
        assert!(new.load("unknown").await.unwrap().is_none());
        assert_eq!(began.elapsed(), TIMEOUT);
        tokio::time::sleep(WHILE_YOUNG).await;
        let began = Instant::now();
        assert!(new.load("unknown").await.unwrap().is_none());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
