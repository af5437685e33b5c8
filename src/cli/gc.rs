//! `handoff gc`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::{Output, one_line};
use super::table::wrapped;
use super::{Json, human, list, names, versions};
use crate::config::Dirs;
use crate::control::api::Request;

const EXAMPLES: &str = "\
Examples:
  handoff gc        for all services
  handoff gc s3

It keeps what runs, what ran before it, what is pinned, and the last versions
that ran (`keep` in [update] of the service file). The daemon does the same
after each upgrade. It also names what removed services have left, which only
`handoff destroy` deletes.";

/// Remove versions that are no longer needed
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Only this service
    #[arg(value_parser = names::service)]
    service: Option<ServiceName>,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let removed = versions::fetch_versions(&Request::Gc(arguments.service.clone()), dirs)?;
    let leftovers = leftovers(dirs)?;
    let bytes: u64 = removed.iter().map(|it| it.size_bytes).sum();
    if out.is_json() {
        out.object(&json!({ "removed": removed, "size_bytes": bytes, "leftovers": leftovers }));
        return Ok(Exit::Done);
    }
    for it in &removed {
        let name = one_line(it.version.as_deref().unwrap_or("a version without a name"));
        out.line(format!("{}: removed {name} ({})", it.service, human::short(&it.sha256)));
    }
    out.line(match removed.len() {
        0 => "There is nothing to remove.".to_owned(),
        number => format!("{number} removed, {}.", human::size(bytes)),
    });
    for (name, paths) in leftovers {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let left = format!(
            "{name} was removed, and has left {}. To delete it: handoff destroy {name}",
            paths.join(", ")
        );
        out.line(wrapped(&one_line(&left), 2));
    }
    Ok(Exit::Done)
}

/// What services have left that do not exist any more, by name.
fn leftovers(dirs: &Dirs) -> Result<BTreeMap<ServiceName, Vec<PathBuf>>, Failure> {
    let known: Vec<ServiceName> = list::services(dirs)?.into_iter().map(|status| status.service).collect();
    let states = |directory: PathBuf| std::fs::read_dir(directory).into_iter().flatten().flatten();
    let current = states(dirs.services_state())
        .filter(|entry| !known.iter().any(|name| entry.file_name() == name.as_str()));
    let mut found: BTreeMap<ServiceName, Vec<PathBuf>> = BTreeMap::new();
    for entry in current.chain(states(dirs.state.join("removed"))) {
        let file_name = entry.file_name();
        // A name has no dot: what follows it is a number.
        let name = file_name.to_str().and_then(|name| name.split('.').next()?.parse().ok());
        if let Some(name) = name {
            found.entry(name).or_default().push(entry.path());
        }
    }
    found.values_mut().for_each(|paths| paths.sort());
    Ok(found)
}
