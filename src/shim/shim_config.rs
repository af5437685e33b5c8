//! The daemon's instructions for a shim.

use std::path::PathBuf;
use std::time::Duration;

use handoff_protocol::ids::ListenerName;
use serde::{Deserialize, Serialize};

use crate::config::{Adapter, ListenAddress, ProgramSettings, Service, ServiceKind};
use crate::sys::attributes::Attributes;
use crate::sys::seccomp::Calls;

/// The environment variable with the configuration, as JSON.
pub const VARIABLE: &str = "HANDOFF_SHIM";

/// What to run, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimConfig {
    /// How the program gets its listeners.
    pub adapter: Adapter,
    /// Whether it is a job, which is ready when it runs, and done when it ends.
    #[serde(default)]
    pub is_oneshot: bool,
    /// The settings for the program.
    pub program: ProgramSettings,
    /// Absolute path of the program.
    pub binary: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// The user, the limits and the like of the program.
    #[serde(default)]
    pub attributes: Attributes,
    /// Default time to end.
    pub stop_grace: Duration,
    /// The working directory.
    pub working_dir: PathBuf,
    /// The listeners in the order of `Welcome`: names and addresses.
    pub listen: Vec<(ListenerName, String)>,
    /// Listeners that no process has served yet: for a unix socket, the first bind sets the access rights.
    #[serde(default)]
    pub first_binds: Vec<ListenerName>,
    /// Time for answers to datagrams in milliseconds, if the service file sets it.
    pub answer_grace_ms: Option<u64>,
    /// How long a starting program may be stopped by a signal.
    pub lease: Duration,
    /// The directory that all shims of a service share over time.
    pub shared_dir: PathBuf,
    /// The path of this shim's own files for others, without extension, such as `<this>.pid`.
    pub own_path: PathBuf,
}

impl ShimConfig {
    /// A configuration for a process of this service that runs `binary`.
    pub fn new(config: &Service, binary: PathBuf, shared_dir: PathBuf, own_path: PathBuf) -> Self {
        let listen = config.listeners.iter();
        Self {
            adapter: config.adapter,
            is_oneshot: config.kind == ServiceKind::Oneshot,
            program: config.program,
            binary,
            args: config.args.clone(),
            attributes: Attributes::default(),
            stop_grace: Duration::from_millis(config.stop_grace_ms),
            working_dir: config.working_dir.clone(),
            listen: listen.map(|listener| (listener.name.clone(), listener.address.to_string())).collect(),
            first_binds: Vec::new(),
            answer_grace_ms: config.answer_grace_ms,
            lease: Duration::from_millis(config.lease_ms),
            shared_dir,
            own_path,
        }
    }

    /// The lock that the programs of the service hold, one after the other.
    pub(super) fn lock_path(&self) -> PathBuf {
        self.shared_dir.join("program.lock")
    }

    /// Reads the configuration of this process.
    pub fn of_this_process() -> Result<Self, String> {
        let text = std::env::var(VARIABLE)
            .map_err(|_| "handoff shim is an internal command of handoff daemon".to_owned())?;
        serde_json::from_str(&text).map_err(|error| format!("cannot parse {VARIABLE}: {error}"))
    }

    /// The system calls to intercept: a program with a unix socket must not remove its path.
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
