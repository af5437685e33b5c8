//! What the daemon tells a shim when it starts it.

use std::path::PathBuf;
use std::time::Duration;

use handoff_protocol::ids::ListenerName;
use serde::{Deserialize, Serialize};

use crate::config::{Adapter, ListenAddress, Program, Service};
use crate::sys::seccomp::Calls;

/// The environment variable that holds the plan, as JSON.
pub const VARIABLE: &str = "HANDOFF_SHIM";

/// What to run, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How the program gets its listeners.
    pub adapter: Adapter,
    /// How it is treated.
    pub program: Program,
    /// Absolute path of the program.
    pub binary: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// How long it may take to end, if nothing else is said.
    pub stop_grace: Duration,
    /// Where it starts.
    pub working_dir: PathBuf,
    /// The listeners, in the order in which they come with `Welcome`: names and addresses.
    pub listen: Vec<(ListenerName, String)>,
    /// The listeners at which nobody has served yet: for a unix socket, the first bind says who may connect.
    #[serde(default)]
    pub first_binds: Vec<ListenerName>,
    /// How long the program has for its answers to datagrams, in milliseconds, if the service file says it.
    pub answer_grace_ms: Option<u64>,
    /// The directory of what the shims of a service share, one after the other.
    pub shared_dir: PathBuf,
    /// Where this shim alone leaves what others may want to know of it: `<this>.pid`.
    pub own_path: PathBuf,
}

impl Plan {
    /// For a process of this service that is started from `binary`.
    pub fn new(config: &Service, binary: PathBuf, shared_dir: PathBuf, own_path: PathBuf) -> Self {
        let listen = config.listeners.iter();
        Self {
            adapter: config.adapter,
            program: config.program,
            binary,
            args: config.args.clone(),
            stop_grace: Duration::from_millis(config.stop_grace_ms),
            working_dir: config.working_dir.clone(),
            listen: listen.map(|listener| (listener.name.clone(), listener.address.to_string())).collect(),
            first_binds: Vec::new(),
            answer_grace_ms: config.answer_grace_ms,
            shared_dir,
            own_path,
        }
    }

    /// The lock that the programs of the service hold, one after the other.
    pub(super) fn lock_path(&self) -> PathBuf {
        self.shared_dir.join("program.lock")
    }

    /// The plan of this process.
    pub fn of_this_process() -> Result<Self, String> {
        let text = std::env::var(VARIABLE)
            .map_err(|_| "handoff shim is started by handoff daemon, and does nothing else".to_owned())?;
        serde_json::from_str(&text).map_err(|error| format!("{VARIABLE} cannot be read: {error}"))
    }

    /// Which calls of the program have to be answered: who has a unix socket is not to remove its path.
    pub fn calls(&self) -> Calls {
        let has_path = self.listen.iter().any(|(_, address)| address.starts_with("unix:"));
        if has_path { Calls::SocketsAndPaths } else { Calls::Sockets }
    }

    /// As the value of [`VARIABLE`].
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// The addresses, in the order of the listeners.
    pub fn addresses(&self) -> Result<Vec<ListenAddress>, String> {
        let parse = |(name, text): &(ListenerName, String)| {
            text.parse().map_err(|error| format!("the address of listener {name}: {error}"))
        };
        self.listen.iter().map(parse).collect()
    }
}
