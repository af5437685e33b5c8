//! The error answers of the daemon, and the JSON-RPC code and exit code of each.

use std::fmt;
use std::path::Path;

use handoff_protocol::ids::ServiceName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::LastLines;
use crate::config;

/// An error answer. `Display` writes the message and the hint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// The kind of error.
    pub kind: Kind,
    /// A full sentence that names the object and the cause.
    pub message: String,
    /// What the user can do.
    pub hint: String,
    /// What the process that failed wrote at last, if one did.
    pub last_lines: Option<Box<LastLines>>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.message, self.hint)
    }
}

/// The kinds of errors. The words on the wire are these names in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A line is not JSON.
    ParseError,
    /// A line is JSON, but not a request.
    InvalidRequest,
    /// There is no such method.
    UnknownMethod,
    /// A parameter is missing, unknown or has the wrong type.
    InvalidParams,
    /// The caller is neither the daemon's user nor root.
    PermissionDenied,
    /// Every connection is busy.
    TooManyClients,
    /// No service file has this name.
    UnknownService,
    /// Another operation of the service is in progress.
    Busy,
    /// The operation needs a running service.
    NotRunning,
    /// The service runs already.
    AlreadyRunning,
    /// The service's file has mistakes.
    ConfigInvalid,
    /// The program could not be started, or did not become ready.
    SpawnFailed,
    /// A listen address could not be bound.
    BindFailed,
    /// The journal or another file could not be written.
    StorageFailed,
    /// A service that this one requires is not ready.
    DependencyDown,
    /// The service does not serve, and could not be brought back.
    ServiceDown,
    /// There is no upgrade or start to call off.
    NothingToCancel,
    /// A new version was refused before it ran. Nothing has changed.
    Rejected,
    /// The running version is newer than the one in the service file, so the upgrade would go back.
    StepBack,
    /// No version that is kept has this name, hash or generation.
    UnknownVersion,
    /// A bug in the daemon.
    Internal,
}

impl Kind {
    /// All kinds, for documentation and tests.
    pub const ALL: [Kind; 21] = [
        Kind::ParseError,
        Kind::InvalidRequest,
        Kind::UnknownMethod,
        Kind::InvalidParams,
        Kind::PermissionDenied,
        Kind::TooManyClients,
        Kind::UnknownService,
        Kind::Busy,
        Kind::NotRunning,
        Kind::AlreadyRunning,
        Kind::ConfigInvalid,
        Kind::SpawnFailed,
        Kind::BindFailed,
        Kind::StorageFailed,
        Kind::DependencyDown,
        Kind::ServiceDown,
        Kind::NothingToCancel,
        Kind::Rejected,
        Kind::StepBack,
        Kind::UnknownVersion,
        Kind::Internal,
    ];

    /// The code of the JSON-RPC error object.
    pub fn rpc_code(self) -> i64 {
        self.codes().0
    }

    /// The exit code of a command that got this answer.
    pub fn exit_code(self) -> u8 {
        self.codes().1
    }

    /// The table of codes: (JSON-RPC, exit).
    fn codes(self) -> (i64, u8) {
        match self {
            Kind::ParseError => (-32700, 1),
            Kind::InvalidRequest => (-32600, 1),
            Kind::UnknownMethod => (-32601, 1),
            Kind::InvalidParams => (-32602, 1),
            Kind::Internal => (-32603, 1),
            Kind::PermissionDenied => (-32000, 2),
            Kind::TooManyClients => (-32001, 5),
            Kind::UnknownService => (-32002, 1),
            Kind::Busy => (-32003, 5),
            Kind::NotRunning => (-32004, 1),
            Kind::AlreadyRunning => (-32005, 1),
            Kind::ConfigInvalid => (-32006, 3),
            Kind::SpawnFailed => (-32007, 1),
            Kind::BindFailed => (-32008, 1),
            Kind::StorageFailed => (-32009, 1),
            Kind::DependencyDown => (-32015, 1),
            Kind::ServiceDown => (-32010, 1),
            Kind::NothingToCancel => (-32011, 1),
            Kind::Rejected => (-32012, 6),
            Kind::StepBack => (-32013, 6),
            Kind::UnknownVersion => (-32014, 1),
        }
    }
}

impl Error {
    /// An error with its sentence and its hint. A hint that is a clause becomes a sentence.
    pub fn new(kind: Kind, message: impl Into<String>, hint: impl Into<String>) -> Error {
        let mut hint: String = hint.into();
        if let Some(first) = hint.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        Error { kind, message: message.into(), hint, last_lines: None }
    }

    /// There is no service of this name. `known` are the names for suggestions.
    pub fn unknown_service<'a>(service: &ServiceName, known: impl IntoIterator<Item = &'a str>) -> Error {
        let known = known.into_iter().filter(|known| *known != service.as_str());
        let hint = match config::nearest(service.as_str(), known) {
            Some(near) => format!("Did you mean {near:?}?"),
            None => "`handoff list` names the services.".into(),
        };
        Error::new(Kind::UnknownService, format!("There is no service {:?}.", service.as_str()), hint)
    }

    /// The service has no file. `known` are the services that have one.
    pub fn no_service_file(service: &ServiceName, file: &Path, known: &[String]) -> Error {
        let error = Error::unknown_service(service, known.iter().map(String::as_str));
        let message =
            format!("There is no service {:?}: {} does not exist.", service.as_str(), file.display());
        Error { message, ..error }
    }

    /// The service is busy. `phase` says with what.
    pub fn busy(service: &ServiceName, phase: &str) -> Error {
        let message = format!("Service {:?} is busy: {phase}.", service.as_str());
        Error::new(Kind::Busy, message, "Wait until it is done; `handoff status` shows how far it is.")
    }

    /// The operation needs a running service.
    pub fn not_running(service: &ServiceName) -> Error {
        let message = format!("Service {:?} does not run.", service.as_str());
        Error::new(Kind::NotRunning, message, format!("Start it: handoff start {service}"))
    }

    /// The service runs already, as process `pid`.
    pub fn already_running(service: &ServiceName, pid: u32) -> Error {
        let message = format!("Service {:?} runs already, as pid {pid}.", service.as_str());
        Error::new(Kind::AlreadyRunning, message, format!("To restart it: handoff restart {service}"))
    }

    /// The service file has mistakes. The message lists all `errors`.
    pub fn config_invalid(service: &ServiceName, errors: &[config::Error]) -> Error {
        let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let message =
            format!("The file of service {:?} has mistakes: {}.", service.as_str(), list.join("; "));
        Error::new(Kind::ConfigInvalid, message, format!("Correct it, then: handoff check {service}"))
    }

    /// A new version may not run. Nothing has changed.
    pub fn rejected(service: &ServiceName, cause: impl fmt::Display, hint: impl Into<String>) -> Error {
        let message = format!("The new version of service {:?} was refused: {cause}.", service.as_str());
        Error::new(Kind::Rejected, message, hint)
    }

    /// The daemon detected a bug of its own.
    pub fn internal(cause: impl fmt::Display) -> Error {
        let message = format!("The daemon had an internal error: {cause}.");
        Error::new(Kind::Internal, message, "Please report this with the daemon's log.")
    }

    /// The JSON-RPC error object.
    pub(super) fn to_json(&self) -> Value {
        let mut data = json!({ "kind": self.kind, "hint": self.hint });
        if let Some(lines) = &self.last_lines {
            data["last_lines"] = json!(lines);
        }
        json!({ "code": self.kind.rpc_code(), "message": self.message, "data": data })
    }

    /// Reads a JSON-RPC error object. A kind that only a newer daemon has counts as internal.
    pub(super) fn from_json(object: &Value) -> Error {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let data = &object["data"];
        let kind = Kind::deserialize(&data["kind"]).unwrap_or(Kind::Internal);
        let last_lines = Option::<Box<LastLines>>::deserialize(&data["last_lines"]).unwrap_or_default();
        Error { kind, message: text(&object["message"]), hint: text(&data["hint"]), last_lines }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire_and_has_a_code_of_its_own() {
        let mut codes: Vec<i64> = Kind::ALL.iter().map(|kind| kind.rpc_code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let error = Error::new(kind, "It is so.", "Do this.");
            assert_eq!(Error::from_json(&error.to_json()), error);
            let lines = LastLines { pid: 7, generation: 3, lines: vec!["no such file".into()] };
            let error = Error { last_lines: Some(Box::new(lines)), ..error };
            assert_eq!(Error::from_json(&error.to_json()), error);
        }
        assert_eq!(Error::from_json(&json!({"data": {"kind": "of_tomorrow"}})).kind, Kind::Internal);
        assert_eq!(Error::from_json(&json!(7)).kind, Kind::Internal);
    }

    #[test]
    fn an_unknown_service_suggests_the_nearest() {
        let name: ServiceName = "s4".parse().unwrap();
        assert_eq!(
            Error::unknown_service(&name, ["mcp", "s3"]).to_string(),
            "There is no service \"s4\". Did you mean \"s3\"?"
        );
        assert!(Error::unknown_service(&name, ["mcp"]).hint.contains("handoff list"));
    }
}
