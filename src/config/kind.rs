//! What a service is: a server, or a job that runs once (`type`).

use handoff_protocol::restart::When;

use super::error::Report;
use super::service::Adapter;
use super::table::Section;

/// What a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// A server, which serves until it is stopped.
    Server,
    /// A job, which runs to its end.
    Oneshot,
}

const KINDS: [(&str, ServiceKind); 2] = [("server", ServiceKind::Server), ("oneshot", ServiceKind::Oneshot)];

/// What only a server can have.
const SERVER_KEYS: [&str; 15] = [
    "adapter",
    "channel",
    "mode",
    "listen",
    "answer_grace",
    "notify",
    "drain",
    "answer_pause",
    "drain_signal",
    "drain_command",
    "warm",
    "probe",
    "liveness",
    "canary",
    "probation",
];

pub(super) fn read(report: &mut Report, root: &Section) -> ServiceKind {
    let kind = root.choice(report, "type", &KINDS).unwrap_or(ServiceKind::Server);
    if kind == ServiceKind::Oneshot {
        for key in SERVER_KEYS.into_iter().filter(|key| root.has(key)) {
            root.refuse(
                report,
                key,
                "is for servers; a job has no clients",
                "remove it, or type = \"oneshot\"",
            );
        }
    }
    kind
}

impl ServiceKind {
    /// The adapter of a service without the key. A shim runs a job.
    pub(super) fn adapter(self) -> Adapter {
        match self {
            Self::Server => Adapter::Handoff,
            Self::Oneshot => Adapter::ListenFds,
        }
    }

    /// After which ends a service without the key is started again.
    pub(super) fn restart(self) -> When {
        match self {
            Self::Server => When::Always,
            Self::Oneshot => When::Never,
        }
    }
}
