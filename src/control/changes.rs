//! Changes of services, as subscribers get them.

use handoff_protocol::ids::{Generation, ServiceName};
use serde::{Deserialize, Serialize};

use super::state::State;

/// What a service does since a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The service.
    pub service: ServiceName,
    /// The moment, in milliseconds since 1970.
    pub at: u64,
    /// What it does.
    pub state: State,
    /// The phase of that, if there is one.
    pub phase: Option<String>,
    /// More about the phase, if there is more to say: one clause.
    pub detail: Option<String>,
    /// The committed generation; 0 before the first.
    pub generation: Generation,
    /// The process that serves: that of the program, never its shim.
    pub pid: Option<u32>,
    /// A problem that the user should know about: one sentence.
    pub problem: Option<String>,
}

impl Change {
    /// Whether only the time differs.
    pub fn is_same(&self, other: &Change) -> bool {
        Change { at: other.at, ..self.clone() } == *other
    }
}

/// The services whose changes a client wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Subscribe {
    /// Their names; all services if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceName>,
}

/// A subscription of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Its number on this connection.
    pub subscription: u64,
    /// What each service does now.
    pub states: Vec<Change>,
}

/// A message to a subscriber.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The subscription.
    pub subscription: u64,
    /// How many changes, of any service, this client was too slow for since the last message.
    pub lost: u64,
    /// The change; `null` if this message only counts the lost ones.
    pub event: Option<Change>,
}
