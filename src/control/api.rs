//! The requests and answers of the control socket: the types shared by the daemon and its clients.
//!
//! Units are in the names: `_us` microseconds, `_ms` milliseconds, `_at` milliseconds since 1970.

use std::path::PathBuf;

use handoff_protocol::ids::{Generation, HandoffId, ServiceName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use super::changes::{Change, Notice, Subscribe, Subscription};
use super::error::Error;
use super::params::{Params, unknown_method};
pub use super::progress::{PhaseTime, Progress};
pub use super::registration::{Register, Removed};
pub use super::reload::{
    Cost, FileChange, FileStatus, PlannedService, Reload, ReloadFailure, ReloadResult, Reloaded,
};
pub use super::state::State;
pub use super::status::{Autostart, DecidedBy, ListenerStatus, ServiceStatus};
pub use super::versions::{
    Claims, Install, Named, NamedIs, Pin, Rollback, Skew, StagedStatus, VersionStatus,
};
#[doc(inline)]
pub use crate::history::{Ending as HistoryEnding, Entry, Operation, Version};

const METHODS: &[&str] = &[
    "ping",
    "list",
    "status",
    "start",
    "stop",
    "enable",
    "disable",
    "restart",
    "upgrade",
    "install",
    "rollback",
    "cancel",
    "versions",
    "pin",
    "gc",
    "history",
    "kill",
    "subscribe",
    "unsubscribe",
    "reload",
    "register",
    "unregister",
    "remove",
    "destroy",
];

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Asks whether the daemon answers: [`Response::Pong`].
    Ping,
    /// Lists all services. Answered by [`Response::List`].
    List,
    /// Returns the status of one service. Answered by [`Response::Status`].
    Status(ServiceName),
    /// Starts a stopped service. This and, if nothing else is said, the following are answered by [`Response::Outcome`].
    Start(ServiceName),
    /// Stops a service and closes its listeners.
    Stop(ServiceName),
    /// Lets a service start with the daemon, whatever its file says. Answered by [`Response::Status`].
    Enable(ServiceName),
    /// Keeps a service from starting with the daemon. Answered by [`Response::Status`].
    Disable(ServiceName),
    /// Upgrades a service to the same binary, or starts it if it is stopped.
    Restart(ServiceName),
    /// Upgrades a service.
    Upgrade(Upgrade),
    /// Upgrades to the version that was put at a path, unless it runs already.
    Install(Install),
    /// Upgrades to a version that ran before.
    Rollback(Rollback),
    /// Calls off the upgrade or start in progress. Answered when that has ended, like the request for it.
    Cancel(ServiceName),
    /// Sends a signal to the program of a service. Answered by [`Response::Status`].
    Kill(Kill),
    /// Lists the stored versions. This and the following two are answered by [`Response::Versions`].
    Versions(ServiceName),
    /// Pins or unpins a version. Answered with that version.
    Pin(Pin),
    /// Removes versions that are no longer needed: of one service, or of all. Answered with the removed versions.
    Gc(Option<ServiceName>),
    /// Lists past attempts. Answered by [`Response::History`].
    History(History),
    /// Subscribes to changes of services, on this connection. Answered by [`Response::Subscription`].
    Subscribe(Subscribe),
    /// Ends a subscription of this connection. Answered in the same way, without states.
    Unsubscribe(u64),
    /// Reads all service files and applies what has changed. Answered by [`Response::Reload`].
    Reload(Reload),
    /// Adds a service. Answered by [`Response::Outcome`].
    Register(Register),
    /// Removes a service that was registered. This and the following are answered by [`Response::Removed`].
    Unregister(ServiceName),
    /// Stops a service and takes its file away.
    Remove(ServiceName),
    /// The same, and deletes its state.
    Destroy(ServiceName),
}

/// A signal for a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kill {
    /// The service.
    pub service: ServiceName,
    /// Its name, such as `HUP` or `SIGHUP`; without it, the `reload_signal` of the service file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
}

/// The attempts to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct History {
    /// The service; without it, all services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// Maximum number of attempts, starting with the newest; without it, all that are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// The parameters of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Upgrade {
    /// The service.
    pub service: ServiceName,
    /// Absolute path of the new binary; without it, the one that the service file names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    /// Limit of the whole upgrade, in place of that in the service file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Limit of the drain, in place of that in the service file; never more than the deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_grace_ms: Option<u64>,
    /// How to verify the binary, and which part of it is the program.
    #[serde(flatten)]
    pub claims: Claims,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Response {
    /// To `ping`.
    Pong(Pong),
    /// To `list`.
    List(Vec<ServiceStatus>),
    /// To `status`.
    Status(Box<ServiceStatus>),
    /// To `start`, `stop`, `restart`, `upgrade`, `install`, `rollback` and `cancel`.
    Outcome(Box<Outcome>),
    /// To `versions`, `pin` and `gc`.
    Versions(Vec<VersionStatus>),
    /// To `history`: the newest last.
    History(Vec<Entry>),
    /// To `subscribe` and `unsubscribe`.
    Subscription(Subscription),
    /// To `reload`.
    Reload(Box<Reloaded>),
    /// To `unregister`, `remove` and `destroy`.
    Removed(Box<Removed>),
}

/// The daemon that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The daemon's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
}

/// The last lines that a process has written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastLines {
    /// The process, as in the log: of a program with a shim, the shim.
    pub pid: u32,
    /// The generation for which it was started.
    pub generation: u64,
    /// At most ten, oldest first.
    pub lines: Vec<String>,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The new version serves.
    Committed,
    /// The old version serves.
    RolledBack,
    /// The service serves again after a stop.
    Started,
    /// The job is done.
    Completed,
    /// The service is stopped.
    Stopped,
    /// The version to install runs already.
    Unchanged,
    /// It failed, and the service may be down.
    Failed,
    /// The service is stopped, and its next start uses the version to install.
    Staged,
}

/// The end of an operation. The process and the binary are those that serve now (or served last, once stopped).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The service.
    pub service: ServiceName,
    /// The handoff; `None` if there was none.
    pub handoff: Option<HandoffId>,
    /// How it ended.
    pub outcome: Ending,
    /// Why it was rolled back or failed, or which daemon completed it, if not the one that started it. One clause, or
    /// `None`.
    pub reason: Option<String>,
    /// The generation.
    pub generation: Generation,
    /// The process: that of the program, never its shim.
    pub pid: Option<u32>,
    /// The shim that runs the program, if there is one.
    #[serde(default)]
    pub shim: Option<u32>,
    /// The path from which the binary came.
    pub binary: PathBuf,
    /// The file in the store that is started, if there is one.
    #[serde(default)]
    pub stored: Option<PathBuf>,
    /// Its version.
    #[serde(default)]
    pub version: Option<String>,
    /// SHA-256 of the binary in hex.
    pub sha256: Option<String>,
    /// Time from the request to the end.
    pub took_us: u64,
    /// How long no process accepted while connects waited. `null` if there was no such time.
    pub accept_gap_us: Option<u64>,
    /// Whether the old process was ended and started again. This happens if the new one fails after the old one's
    /// stop signal.
    #[serde(default)]
    pub restarted: bool,
    /// The connections of the old process at its stop signal; `null` if it got none, or they were not counted.
    #[serde(default)]
    pub connections: Option<Connections>,
    /// Datagrams for the service that no program has read.
    #[serde(default)]
    pub lost_datagrams: u64,
    /// The phases, in order.
    pub phases: Vec<PhaseTime>,
    /// The processes that were killed because they had not ended in time. They may have lost unsaved data.
    #[serde(default)]
    pub killed: Vec<Killed>,
    /// What the process that failed wrote at last; `null` if none failed or it wrote nothing.
    #[serde(default)]
    pub last_lines: Option<LastLines>,
}

/// A process that was killed because it had not ended in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Killed {
    /// The process.
    pub pid: u32,
    /// Its name, as reported by the kernel.
    pub name: String,
    /// How long before the kill it was asked to end.
    pub after_ms: u64,
}

/// The connections of a program at its stop signal, as far as their traffic shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// All connections.
    pub open: u64,
    /// Connections with a request that the program had not read, or that was held back from it. Unless the program
    /// continues to read, the client gets the end of the connection in place of an answer, and nothing was done.
    pub unread: u64,
    /// Connections with a request under way. It is answered if the program finishes its requests, and cut if not.
    pub unanswered: u64,
}

impl Request {
    /// The name of the method on the wire.
    pub fn method(&self) -> &'static str {
        match self {
            Request::Ping => "ping",
            Request::List => "list",
            Request::Status(_) => "status",
            Request::Start(_) => "start",
            Request::Stop(_) => "stop",
            Request::Enable(_) => "enable",
            Request::Disable(_) => "disable",
            Request::Restart(_) => "restart",
            Request::Upgrade(_) => "upgrade",
            Request::Install(_) => "install",
            Request::Rollback(_) => "rollback",
            Request::Cancel(_) => "cancel",
            Request::Kill(_) => "kill",
            Request::Versions(_) => "versions",
            Request::Pin(_) => "pin",
            Request::Gc(_) => "gc",
            Request::History(_) => "history",
            Request::Subscribe(_) => "subscribe",
            Request::Unsubscribe(_) => "unsubscribe",
            Request::Reload(_) => "reload",
            Request::Register(_) => "register",
            Request::Unregister(_) => "unregister",
            Request::Remove(_) => "remove",
            Request::Destroy(_) => "destroy",
        }
    }

    /// The parameters of the method on the wire.
    pub fn params(&self) -> Value {
        match self {
            Request::Ping | Request::List | Request::Gc(None) => json!({}),
            Request::Status(service)
            | Request::Start(service)
            | Request::Stop(service)
            | Request::Enable(service)
            | Request::Disable(service)
            | Request::Restart(service)
            | Request::Cancel(service)
            | Request::Versions(service)
            | Request::Unregister(service)
            | Request::Remove(service)
            | Request::Destroy(service)
            | Request::Gc(Some(service)) => json!({ "service": service }),
            Request::Upgrade(upgrade) => json!(upgrade),
            Request::Install(install) => json!(install),
            Request::Rollback(rollback) => json!(rollback),
            Request::Pin(pin) => json!(pin),
            Request::Kill(kill) => json!(kill),
            Request::History(history) => json!(history),
            Request::Subscribe(subscribe) => json!(subscribe),
            Request::Unsubscribe(subscription) => json!({ "subscription": subscription }),
            Request::Reload(reload) => json!(reload),
            Request::Register(register) => json!(register),
        }
    }

    /// Reads a method and its parameters. The error is [`UnknownMethod`](super::Kind::UnknownMethod) or
    /// [`InvalidParams`](super::Kind::InvalidParams). The latter names the parameter.
    pub fn parse(method: &str, params: Option<Value>) -> Result<Request, Error> {
        let mut params = Params::new(params)?;
        let request = match method {
            "ping" => Request::Ping,
            "list" => Request::List,
            "status" => Request::Status(params.service()?),
            "start" => Request::Start(params.service()?),
            "stop" => Request::Stop(params.service()?),
            "enable" => Request::Enable(params.service()?),
            "disable" => Request::Disable(params.service()?),
            "restart" => Request::Restart(params.service()?),
            "upgrade" => Request::Upgrade(params.upgrade()?),
            "install" => Request::Install(params.install()?),
            "rollback" => Request::Rollback(params.rollback()?),
            "cancel" => Request::Cancel(params.service()?),
            "kill" => Request::Kill(params.kill()?),
            "versions" => Request::Versions(params.service()?),
            "pin" => Request::Pin(params.pin()?),
            "gc" => Request::Gc(params.optional_service()?),
            "history" => Request::History(History {
                service: params.optional_service()?,
                limit: params.whole_number("limit", "It is a number of attempts.")?,
            }),
            "subscribe" => Request::Subscribe(Subscribe { services: params.services()? }),
            "unsubscribe" => Request::Unsubscribe(params.subscription()?),
            "reload" => Request::Reload(params.reload()?),
            "register" => Request::Register(params.register()?),
            "unregister" => Request::Unregister(params.service()?),
            "remove" => Request::Remove(params.service()?),
            "destroy" => Request::Destroy(params.service()?),
            _ => return Err(unknown_method(method, METHODS)),
        };
        params.finish(method)?;
        Ok(request)
    }

    /// Reads the answer to this request. The error says what does not fit.
    pub fn parse_response(&self, result: Value) -> Result<Response, serde_json::Error> {
        match self {
            Request::Ping => serde_json::from_value(result).map(Response::Pong),
            Request::List => serde_json::from_value(result).map(Response::List),
            Request::Status(_) | Request::Enable(_) | Request::Disable(_) | Request::Kill(_) => {
                serde_json::from_value(result).map(Response::Status)
            }
            Request::History(_) => serde_json::from_value(result).map(Response::History),
            Request::Subscribe(_) | Request::Unsubscribe(_) => {
                serde_json::from_value(result).map(Response::Subscription)
            }
            Request::Reload(_) => serde_json::from_value(result).map(Response::Reload),
            Request::Versions(_) | Request::Pin(_) | Request::Gc(_) => {
                serde_json::from_value(result).map(Response::Versions)
            }
            Request::Unregister(_) | Request::Remove(_) | Request::Destroy(_) => {
                serde_json::from_value(result).map(Response::Removed)
            }
            Request::Register(_)
            | Request::Start(_)
            | Request::Stop(_)
            | Request::Restart(_)
            | Request::Upgrade(_)
            | Request::Install(_)
            | Request::Rollback(_)
            | Request::Cancel(_) => serde_json::from_value(result).map(Response::Outcome),
        }
    }
}
