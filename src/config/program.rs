//! The handling of a program that does not speak the protocol.

use handoff_protocol::message::Mode;
use serde::{Deserialize, Serialize};

use super::error::Report;
use super::service::Adapter;
use super::table::Section;
use super::units::format_duration_ms;
use crate::sys::process::Signal;

const KEYS: [&str; 9] = [
    "stop_signal",
    "stop_mode",
    "reload_signal",
    "notify",
    "drain",
    "answer_pause",
    "drain_signal",
    "drain_command",
    "warm",
];

/// The search for a moment without requests has a time limit, which a longer pause would exceed.
const ANSWER_PAUSE_MAX_MS: u64 = 2_000;

/// The settings of the program, for adapters other than `handoff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramSettings {
    /// The signal that asks it to end.
    pub stop_signal: StopSignal,
    /// The processes that get the stop signal.
    pub stop_mode: StopMode,
    /// The signal that makes it read its configuration again, if there is one.
    pub reload_signal: Option<StopSignal>,
    /// Whether it sends `READY=1` (sd_notify(3)), and over which socket. If so, the shim waits for it.
    pub notify: Option<NotifySocket>,
    /// What to wait for before it is asked to end.
    pub drain: DrainCondition,
    /// How long it may pause within an answer that it writes in parts, in milliseconds, if configured.
    #[serde(default)]
    pub answer_pause_ms: Option<u64>,
    /// The signal that announces the drain: the program continues to serve, and makes its clients move on.
    #[serde(default)]
    pub drain_signal: Option<StopSignal>,
    /// Whether it may start next to the incumbent, up to its first bind: adapter `inject`, exclusive mode.
    pub warm: bool,
}

/// The signals that can ask a program to end in order.
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

    /// The signal.
    pub fn signal(self) -> Signal {
        match self {
            Self::SigTerm => Signal::SIGTERM,
            Self::SigInt => Signal::SIGINT,
            Self::SigQuit => Signal::SIGQUIT,
            Self::SigHup => Signal::SIGHUP,
            Self::SigUsr1 => Signal::SIGUSR1,
            Self::SigUsr2 => Signal::SIGUSR2,
            Self::SigWinch => Signal::SIGWINCH,
        }
    }
}

/// Which processes of a program get its stop signal. Processes that remain at the time limit are killed in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopMode {
    /// The one that serves. The others get it when that one has ended.
    Mixed,
    /// The main process: the one that was started, or the one that the program has named (`MAINPID`). The others get
    /// it when that one has ended.
    Main,
    /// All.
    Group,
}

/// The kind of socket that `NOTIFY_SOCKET` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotifySocket {
    /// One at a path that every user can reach, because a program may have dropped its privileges. The kernel reports
    /// the sender.
    Path,
    /// One in the abstract namespace (unix(7)), for a program that has another root directory, or other mounts.
    Abstract,
}

/// What to wait for before a program is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainCondition {
    /// All its connections are closed.
    Connections,
    /// All its requests are answered, as far as the traffic of its connections shows.
    Requests,
    /// All its long requests are answered, while it still accepts. It finishes the others when it is asked to end.
    LongRequests,
    /// Nothing: it finishes its requests when it is asked to end.
    Nothing,
}

/// Reads the keys of a program. Refuses them for a service that speaks the protocol, where they would have no effect.
pub(super) fn read(report: &mut Report, root: &Section, adapter: Adapter, mode: Mode) -> ProgramSettings {
    let drains = [
        ("connections", DrainCondition::Connections),
        ("requests", DrainCondition::Requests),
        ("long-requests", DrainCondition::LongRequests),
        ("nothing", DrainCondition::Nothing),
    ];
    let modes = [("mixed", StopMode::Mixed), ("main", StopMode::Main), ("group", StopMode::Group)];
    let usual = match mode {
        Mode::Overlap => DrainCondition::Connections,
        Mode::Exclusive => DrainCondition::Requests,
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
    let program = ProgramSettings {
        stop_signal: root.choice(report, "stop_signal", &StopSignal::ALL).unwrap_or(StopSignal::SigTerm),
        stop_mode: root.choice(report, "stop_mode", &modes).unwrap_or(StopMode::Mixed),
        reload_signal: root.choice(report, "reload_signal", &StopSignal::ALL),
        notify: match root.boolean_or(report, "notify", &[("abstract", NotifySocket::Abstract)]) {
            Some(Ok(true)) => Some(NotifySocket::Path),
            Some(Err(socket)) => Some(socket),
            Some(Ok(false)) | None => None,
        },
        drain: root.choice(report, "drain", &drains).unwrap_or(usual),
        answer_pause_ms: root.duration_ms(report, "answer_pause", 0).map(|found| found.value),
        drain_signal: root.choice(report, "drain_signal", &StopSignal::ALL),
        warm: root.boolean(report, "warm").unwrap_or(false),
    };
    if program.warm && (adapter, mode) != (Adapter::Inject, Mode::Exclusive) {
        let hint = "remove it; in overlap mode a new process always starts beside the old one";
        root.refuse(report, "warm", "needs adapter = \"inject\" and mode = \"exclusive\"", hint);
    }
    if program.answer_pause_ms.is_some_and(|pause| pause > ANSWER_PAUSE_MAX_MS) {
        let cause = format!("is more than {}", format_duration_ms(ANSWER_PAUSE_MAX_MS));
        root.refuse(report, "answer_pause", &cause, "write answer_pause = \"500ms\"");
    }
    if program.answer_pause_ms.is_some()
        && matches!(program.drain, DrainCondition::Nothing | DrainCondition::LongRequests)
    {
        let hint = "remove it, or set drain = \"requests\"";
        root.refuse(report, "answer_pause", "is for programs whose requests are waited for", hint);
    }
    if adapter == Adapter::Inject && !root.has("listen") {
        root.refuse(report, "adapter", "there is no listener that could be swapped", "add a [listen] table");
    }
    program
}
