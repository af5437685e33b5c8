//! The answers of commands when no daemon runs: what the last daemon has left in its files.

use std::collections::BTreeSet;

use handoff_protocol::ids::ServiceName;
use serde_json::{Value, json};

use super::exit::{Exit, Failure};
use super::output::{Output, Style, note};
use super::selection::{Wanted, pick};
use super::table::Wide;
use super::{human, list, status, versions};
use crate::config::Dirs;
use crate::control;
use crate::control::ClientError;
use crate::control::api::{ServiceStatus, VersionStatus};
use crate::history::{Entry, History};
use crate::status_file::{StatusFile, WriterState};
use crate::store::Store;

/// What the last daemon wrote, and when.
pub(super) struct Stale(StatusFile);

impl Stale {
    /// Reads it, if `failure` says that no daemon answers. Otherwise, and without a file, that is the failure.
    fn instead_of(failure: Failure, dirs: &Dirs) -> Result<Stale, Failure> {
        if !matches!(failure, Failure::Client(ClientError::Unreachable { .. })) {
            return Err(failure);
        }
        StatusFile::read(dirs).map(Stale).ok_or(failure)
    }

    /// What became of the daemon, and from when the answer is.
    fn sentence(&self) -> String {
        let StatusFile { daemon, at, .. } = &self.0;
        let what = match self.0.writer_state() {
            WriterState::Ended => "The daemon does not run".to_owned(),
            WriterState::Runs => format!("The daemon (pid {}) does not answer", daemon.pid),
            WriterState::EarlierBoot => {
                "The daemon does not run, and the machine was started again since".to_owned()
            }
        };
        format!("{what}; state as of {} ({} ago).", human::date(*at), human::since(*at))
    }

    /// The same, for programs.
    fn to_json(&self) -> Value {
        let word = match self.0.writer_state() {
            WriterState::Ended => "ended",
            WriterState::Runs => "silent",
            WriterState::EarlierBoot => "earlier_boot",
        };
        json!({ "at": self.0.at, "daemon": word, "pid": self.0.daemon.pid })
    }

    fn warn(&self, out: &Output) {
        if !out.is_json() {
            note(Style::of_stderr().yellow(&self.sentence()));
        }
    }

    fn names(&self) -> Vec<ServiceName> {
        self.0.services.iter().map(|status| status.service.clone()).collect()
    }

    fn find(&self, name: &ServiceName) -> Result<&ServiceStatus, Failure> {
        let found = self.0.services.iter().find(|status| status.service == *name);
        let names = self.names();
        found.ok_or_else(|| {
            control::Error::unknown_service(name, names.iter().map(ServiceName::as_str)).into()
        })
    }
}

/// `list`, and `status` without names.
pub(super) fn list(
    failure: Failure,
    wide: Option<Wide>,
    dirs: &Dirs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let stale = Stale::instead_of(failure, dirs)?;
    stale.warn(out);
    let services = &stale.0.services;
    match (out.is_json(), wide) {
        (true, _) => out.object(&json!({ "services": services, "errors": [], "stale": stale.to_json() })),
        (false, _) if services.is_empty() => out.line("It had no services."),
        (false, Some(wide)) => out.line(list::table(services, wide)),
        (false, None) => {
            let style = Style::of_stdout();
            let texts: Vec<String> = services.iter().map(|it| status::describe(it, style)).collect();
            out.line(texts.join("\n\n"));
        }
    }
    Ok(Exit::Stale)
}

/// `status` with names.
pub(super) fn status(
    failure: Failure,
    wanted: &[Wanted],
    dirs: &Dirs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let stale = Stale::instead_of(failure, dirs)?;
    stale.warn(out);
    for (index, name) in pick(wanted, &stale.names())?.iter().enumerate() {
        let found = stale.find(name)?;
        if out.is_json() {
            let mut object = json!(found);
            object["stale"] = stale.to_json();
            out.object(&object);
        } else {
            let space = if index > 0 { "\n" } else { "" };
            out.line(format!("{space}{}", status::describe(found, Style::of_stdout())));
        }
    }
    Ok(Exit::Stale)
}

/// `versions`. The store itself says which versions there are.
pub(super) fn versions(
    failure: Failure,
    service: &ServiceName,
    wide: Wide,
    dirs: &Dirs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let stale = Stale::instead_of(failure, dirs)?;
    let current = stale.find(service)?.sha256.clone();
    let place = dirs.versions(service);
    let store = Store::open(&place).map_err(|error| unreadable(&place, &error))?;
    let version = |it: &crate::store::Version| VersionStatus {
        service: service.clone(),
        sha256: it.metadata.id.to_string(),
        version: it.name().map(str::to_owned),
        kind: it.metadata.kind,
        binary: it.usage.source.as_ref().map(|source| source.path.clone()),
        stored: store.path_of(it),
        size_bytes: it.metadata.size_bytes,
        added_at: it.metadata.added_unix_ms,
        generations: it.usage.generations.clone(),
        undone: it.usage.is_undone(),
        current: current.as_deref() == Some(it.metadata.id.to_string().as_str()),
        pinned: it.usage.pinned,
    };
    let kept: Vec<VersionStatus> = store.versions().iter().map(version).collect();
    stale.warn(out);
    match out.is_json() {
        true => out.object(&json!({ "versions": kept, "stale": stale.to_json() })),
        false if kept.is_empty() => out.line(format!("No version of {service} is kept.")),
        false => out.line(versions::table(&kept, wide)),
    }
    Ok(Exit::Stale)
}

/// `history`: the entries, from the files of the services, the newest last.
pub(super) fn history(
    failure: Failure,
    service: Option<&ServiceName>,
    limit: Option<u64>,
    dirs: &Dirs,
    out: &Output,
) -> Result<Vec<Entry>, Failure> {
    let stale = Stale::instead_of(failure, dirs)?;
    let names: BTreeSet<ServiceName> = match service {
        Some(name) => BTreeSet::from([stale.find(name)?.service.clone()]),
        None => stale.names().into_iter().collect(),
    };
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut entries = Vec::new();
    for name in names {
        let place = dirs.service_state(&name);
        entries.extend(History::read(&place, limit).map_err(|error| unreadable(&place, &error))?);
    }
    entries.sort_by_key(|entry| entry.at);
    stale.warn(out);
    Ok(entries.split_off(entries.len().saturating_sub(limit)))
}

fn unreadable(place: &std::path::Path, error: &std::io::Error) -> Failure {
    Failure::failed(
        format!("{} cannot be read: {error}.", place.display()),
        "Read it as the user of the daemon.",
    )
}
