//! How the supervisor checks from outside whether a new process serves.

use handoff_protocol::ids::ListenerName;
use serde::{Deserialize, Serialize};

use super::address::ListenAddress;
use super::error::Report;
use super::listen::Listener;
use super::service::Adapter;
use super::table::Section;

const KEYS: &[&str] = &[
    "http", "tcp", "exec", "listener", "method", "status", "header", "body", "timeout", "interval", "limit",
];

/// A readiness probe. It is repeated until it passes or its limit ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The check.
    pub check: Check,
    /// Time limit of one try.
    pub timeout_ms: u64,
    /// Pause between two tries.
    pub interval_ms: u64,
    /// Time limit of all tries together.
    pub limit_ms: u64,
}

/// The check of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// A request over HTTP/1.1, and the expected answer.
    Http(Http),
    /// The process must accept a connection. An established connection is not enough: the kernel does that alone.
    Tcp {
        /// The listener.
        listener: ListenerName,
    },
    /// A command that must exit with 0: an absolute path and its arguments.
    Exec(Vec<String>),
}

/// A request, and the expected answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Http {
    /// The listener.
    pub listener: ListenerName,
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The expected status.
    pub status: u16,
    /// A header that the answer must have, and its value if that matters.
    pub header: Option<(String, Option<String>)>,
    /// A text that the body must contain.
    pub body: Option<String>,
}

/// The hint for a service with only datagram listeners.
const DATAGRAMS: &str = "ask it by a command: exec = [\"/path/of/command\"]";

const TIMEOUT_MS: u64 = 2_000;
const INTERVAL_MS: u64 = 50;
const LIMIT_MS: u64 = 30_000;

/// Reads the table `[probe]`. Without it, a program that cannot report that it is ready must accept a connection.
pub(super) fn read(
    report: &mut Report,
    root: &Section,
    adapter: Adapter,
    says_ready: bool,
    listeners: &[Listener],
) -> Option<Probe> {
    if !root.has("probe") {
        // If the program binds its sockets itself, the shim sees that.
        let is_seen = adapter != Adapter::ListenFds || says_ready;
        if !is_seen && !listeners.is_empty() && listeners.iter().all(|it| it.address.is_datagram()) {
            let hint = "write notify = true, or a [probe] with exec = [\"/path/of/command\"]";
            report.add(
                0..0,
                Some("probe".to_owned()),
                "nothing tells when a program that only takes datagrams is ready",
                hint,
            );
        }
        return if adapter.is_foreign() { accepts(listeners) } else { None };
    }
    let section = root.section(report, "probe", "probe.")?;
    section.refuse_unknown(report, KEYS);
    let ways: Vec<&str> = ["http", "tcp", "exec"].into_iter().filter(|way| section.has(way)).collect();
    let check = match ways[..] {
        ["http"] => http(report, &section, listeners).map(Check::Http),
        ["tcp"] => {
            if section.boolean(report, "tcp") == Some(false) {
                section.refuse(
                    report,
                    "tcp",
                    "there is nothing that a probe of false would do",
                    "remove [probe]",
                );
            }
            listener(report, &section, listeners).map(|listener| Check::Tcp { listener })
        }
        ["exec"] => command(report, &section, "exec").map(Check::Exec),
        [] => {
            section.missing(
                report,
                "http",
                "write http = \"/health\", tcp = true or exec = [\"/path/of/command\"]",
            );
            None
        }
        [first, ..] => {
            section.refuse(report, first, "there can be one of http, tcp and exec", "keep one of them");
            None
        }
    };
    if ways[..] != ["http"] {
        for key in ["method", "status", "header", "body"] {
            section.refuse(
                report,
                key,
                "belongs to a probe over HTTP",
                "remove it, or write http = \"/path\"",
            );
        }
    }
    if ways[..] == ["exec"] {
        section.refuse(report, "listener", "a command connects by itself", "remove it");
    }
    let mut duration =
        |key, default| section.duration_ms(report, key, 1).map_or(default, |found| found.value);
    let (timeout_ms, interval_ms) = (duration("timeout", TIMEOUT_MS), duration("interval", INTERVAL_MS));
    let limit_ms = duration("limit", LIMIT_MS);
    Some(Probe { check: check?, timeout_ms, interval_ms, limit_ms })
}

fn accepts(listeners: &[Listener]) -> Option<Probe> {
    let stream = |listener: &&Listener| {
        matches!(listener.address, ListenAddress::Tcp(_) | ListenAddress::DualStack { .. })
    };
    let listener = listeners.iter().find(stream)?.name.clone();
    let check = Check::Tcp { listener };
    Some(Probe { check, timeout_ms: TIMEOUT_MS, interval_ms: INTERVAL_MS, limit_ms: LIMIT_MS })
}

fn http(report: &mut Report, section: &Section, listeners: &[Listener]) -> Option<Http> {
    let listener = listener(report, section, listeners);
    let path = section.string(report, "http", "write http = \"/health\"")?;
    if !path.value.starts_with('/') || path.value.contains(|c: char| c.is_whitespace() || c.is_control()) {
        let cause = format!("{:?} is not the path of a request", path.value);
        return section.wrong(report, "http", path.span, &cause, "write http = \"/health\"");
    }
    let method = section.string(report, "method", "write method = \"GET\"");
    if let Some(method) = &method
        && (method.value.is_empty() || !method.value.bytes().all(|byte| byte.is_ascii_uppercase()))
    {
        let cause = format!("{:?} is not an HTTP method", method.value);
        section.wrong::<()>(report, "method", method.span.clone(), &cause, "write method = \"GET\"");
    }
    let header = section.string(report, "header", "write header = \"x-name: value\"").map(|header| {
        let (name, value) = match header.value.split_once(':') {
            Some((name, value)) => (name, Some(value.trim().to_owned())),
            None => (header.value, None),
        };
        (name.trim().to_ascii_lowercase(), value)
    });
    let body = section.string(report, "body", "write body = \"ok\"").map(|body| body.value.to_owned());
    Some(Http {
        listener: listener?,
        method: method.map_or_else(|| "GET".to_owned(), |method| method.value.to_owned()),
        path: path.value.to_owned(),
        status: section.count(report, "status", 100..=599).map_or(200, |status| status as u16),
        header,
        body,
    })
}

/// The named listener, else the first one with connections. Datagram listeners do not count.
fn listener(report: &mut Report, section: &Section, listeners: &[Listener]) -> Option<ListenerName> {
    let streams = || listeners.iter().filter(|listener| !listener.address.is_datagram());
    let known: Vec<&str> = streams().map(|listener| listener.name.as_str()).collect();
    let hint = match known[..] {
        [] if !listeners.is_empty() => DATAGRAMS.to_owned(),
        [] => "add a [listen] table".to_owned(),
        _ => format!("write one of {}", known.join(", ")),
    };
    if !section.has("listener") {
        let first = streams().next().map(|listener| listener.name.clone());
        if first.is_none() {
            section.missing(report, "listener", &hint);
        }
        return first;
    }
    let named = section.string(report, "listener", &hint)?;
    match listeners.iter().find(|listener| listener.name.as_str() == named.value) {
        Some(listener) if listener.address.is_datagram() => {
            let cause = format!("{:?} takes datagrams, and a probe needs a connection", named.value);
            section.wrong(report, "listener", named.span, &cause, DATAGRAMS)
        }
        Some(listener) => Some(listener.name.clone()),
        None => {
            let cause = format!("there is no listener {:?}", named.value);
            section.wrong(report, "listener", named.span, &cause, &hint)
        }
    }
}

/// A command: an absolute path and its arguments.
pub(super) fn command(report: &mut Report, section: &Section, key: &'static str) -> Option<Vec<String>> {
    let command = section.strings(report, key)?;
    match command.first() {
        Some(program) if program.starts_with('/') => Some(command),
        _ => {
            let hint = format!("write {key} = [\"/absolute/path/of/command\", \"argument\"]");
            section.refuse(report, key, "does not begin with an absolute path", &hint);
            None
        }
    }
}
