//! The services that a command is for: names, patterns, or all.

use glob::Pattern;
use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::{Output, note};
use super::{list, names, operation};
use crate::config::Dirs;
use crate::control::api::Request;
use crate::control::{ClientError, Kind};

/// Names and patterns, or all services.
#[derive(clap::Args)]
pub(super) struct Selection {
    /// The services: names, or patterns such as 'web-*'
    #[arg(value_name = "SERVICE", required_unless_present = "all")]
    services: Vec<Wanted>,
    /// All services
    #[arg(long, conflicts_with = "services")]
    all: bool,
}

/// A name, or a pattern of names.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Name(ServiceName),
    Pattern(Pattern),
}

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(['*', '?', '[']) {
            return Pattern::new(text).map(Self::Pattern).map_err(|error| error.to_string());
        }
        names::service(text).map(Self::Name)
    }
}

impl Selection {
    pub(super) fn names(&self, dirs: &Dirs) -> Result<Vec<ServiceName>, Failure> {
        if self.all { names(dirs) } else { resolve(&self.services, dirs) }
    }
}

/// The services with these names, each once, in the order of the command line. Asks the daemon only for a pattern.
pub(super) fn resolve(wanted: &[Wanted], dirs: &Dirs) -> Result<Vec<ServiceName>, Failure> {
    let has_pattern = wanted.iter().any(|it| matches!(it, Wanted::Pattern(_)));
    resolve_among(wanted, &if has_pattern { names(dirs)? } else { Vec::new() })
}

/// The same, where patterns stand for some of the known services.
pub(super) fn resolve_among(wanted: &[Wanted], known: &[ServiceName]) -> Result<Vec<ServiceName>, Failure> {
    let mut selected: Vec<ServiceName> = Vec::new();
    for wanted in wanted {
        let found: Vec<ServiceName> = match wanted {
            Wanted::Name(name) => vec![name.clone()],
            Wanted::Pattern(pattern) => {
                known.iter().filter(|name| pattern.matches(name.as_str())).cloned().collect()
            }
        };
        if let (Wanted::Pattern(pattern), true) = (wanted, found.is_empty()) {
            let message = format!("No service has a name like {:?}.", pattern.as_str());
            let hint = "`handoff list` shows all. Quote a pattern, or the shell may replace it.";
            return Err(Failure::failed(message, hint));
        }
        let new = found.into_iter().filter(|name| !selected.contains(name)).collect::<Vec<_>>();
        selected.extend(new);
    }
    Ok(selected)
}

fn names(dirs: &Dirs) -> Result<Vec<ServiceName>, Failure> {
    Ok(list::services(dirs)?.into_iter().map(|status| status.service).collect())
}

/// Performs one operation for each selected service, one after the other. A failure does not stop the others; the exit
/// code is that of the first failure. A service that is in the wanted state already is no failure.
pub(super) fn run(
    selection: &Selection,
    request: impl Fn(ServiceName) -> Request,
    dirs: &Dirs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let selected = selection.names(dirs)?;
    if let [name] = &selected[..] {
        return one(&request(name.clone()), dirs, out);
    }
    if selected.is_empty() && !out.is_json() {
        out.line(list::none(dirs));
    }
    let mut exit = Exit::Done;
    for name in selected {
        let ended = one(&request(name), dirs, out).unwrap_or_else(|failure| {
            out.failure(&failure);
            failure.exit()
        });
        if exit == Exit::Done {
            exit = ended;
        }
    }
    Ok(exit)
}

fn one(request: &Request, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    match operation::run(request, dirs, out) {
        Err(Failure::Client(ClientError::Refused(error))) if is_there_already(request, error.kind) => {
            match out.is_json() {
                true => out.object(&json!({ "unchanged": error.message })),
                false => note(error.message),
            }
            Ok(Exit::Done)
        }
        ended => ended,
    }
}

/// Whether a refusal says that the service is in the wanted state.
fn is_there_already(request: &Request, kind: Kind) -> bool {
    matches!(
        (request, kind),
        (Request::Start(_), Kind::AlreadyRunning) | (Request::Stop(_), Kind::NotRunning)
    )
}
