//! How a program is treated that does not speak the protocol.

use handoff_protocol::message::Mode;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::error::Report;
use super::service::Adapter;
use super::table::Section;

const KEYS: [&str; 4] = ["stop_signal", "notify", "drain", "warm"];

/// What the service file says about the program, for adapters other than `handoff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// What asks it to end.
    pub stop_signal: StopSignal,
    /// Whether it says `READY=1` (sd_notify(3)), which is then waited for, and over which socket.
    pub notify: Option<NotifySocket>,
    /// What is waited for before it is asked to end.
    pub drain: DrainFor,
    /// Whether it may be started beside the incumbent, up to its first bind: adapter `inject`, exclusive mode.
    pub warm: bool,
}

/// The signals that a program may take for the request to end in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum StopSignal {
    SigTerm,
    SigInt,
    SigQuit,
    SigHup,
    SigUsr1,
    SigUsr2,
    SigWinch,
}

impl StopSignal {
    const ALL: [(&str, Self); 7] = [
        ("SIGTERM", Self::SigTerm),
        ("SIGINT", Self::SigInt),
        ("SIGQUIT", Self::SigQuit),
        ("SIGHUP", Self::SigHup),
        ("SIGUSR1", Self::SigUsr1),
        ("SIGUSR2", Self::SigUsr2),
        ("SIGWINCH", Self::SigWinch),
    ];

    /// The signal itself.
    pub fn signal(self) -> Signal {
        match self {
            Self::SigTerm => Signal::TERM,
            Self::SigInt => Signal::INT,
            Self::SigQuit => Signal::QUIT,
            Self::SigHup => Signal::HUP,
            Self::SigUsr1 => Signal::USR1,
            Self::SigUsr2 => Signal::USR2,
            Self::SigWinch => Signal::WINCH,
        }
    }
}

/// What kind of socket `NOTIFY_SOCKET` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotifySocket {
    /// One at a path, which only the user of the daemon can reach.
    Path,
    /// One in the abstract namespace (unix(7)), for a program that has another root directory, or other mounts.
    Abstract,
}

/// What is waited for before a program is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainFor {
    /// Every connection that it has is closed.
    Connections,
    /// Every request that it has is answered, as far as the traffic of its connections tells.
    Requests,
    /// Nothing: it finishes what it has when it is asked to end.
    Nothing,
}

/// Reads the keys of a program. They are refused for a service that speaks the protocol: nothing would use them.
pub(super) fn read(report: &mut Report, root: &Section, adapter: Adapter, mode: Mode) -> Program {
    let drains = [
        ("connections", DrainFor::Connections),
        ("requests", DrainFor::Requests),
        ("nothing", DrainFor::Nothing),
    ];
    let usual = match mode {
        Mode::Overlap => DrainFor::Connections,
        Mode::Exclusive => DrainFor::Requests,
    };
    if adapter.is_foreign() {
        let hint = "remove it, or set adapter = \"handoff\"";
        root.refuse(report, "channel", "is for services that speak the protocol", hint);
    } else {
        for key in KEYS {
            let hint = "remove it, or set adapter = \"listen-fds\" or \"inject\"";
            root.refuse(report, key, "is for programs that do not speak the protocol", hint);
        }
    }
    let program = Program {
        stop_signal: root.choice(report, "stop_signal", &StopSignal::ALL).unwrap_or(StopSignal::SigTerm),
        notify: match root.boolean_or(report, "notify", &[("abstract", NotifySocket::Abstract)]) {
            Some(Ok(true)) => Some(NotifySocket::Path),
            Some(Err(socket)) => Some(socket),
            Some(Ok(false)) | None => None,
        },
        drain: root.choice(report, "drain", &drains).unwrap_or(usual),
        warm: root.boolean(report, "warm").unwrap_or(false),
    };
    if program.warm && (adapter, mode) != (Adapter::Inject, Mode::Exclusive) {
        let hint = "remove it; in overlap mode a new process always starts beside the old one";
        root.refuse(report, "warm", "needs adapter = \"inject\" and mode = \"exclusive\"", hint);
    }
    if adapter == Adapter::Inject && !root.has("listen") {
        root.refuse(report, "adapter", "there is no listener that could be swapped", "add a [listen] table");
    }
    program
}
