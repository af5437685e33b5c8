//! `handoff versions`.

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::Output;
use super::table::{self, Wide};
use super::{Json, ask, human, names, stale};
use crate::config::Dirs;
use crate::control::api::{Request, Response, VersionStatus};

const EXAMPLES: &str = "\
Examples:
  handoff versions s3
  handoff versions s3 --json |
      jq -r '.versions[] | select(.current) | .stored'";

/// Show the stored versions of a service
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    #[arg(value_parser = names::service)]
    service: ServiceName,
    #[command(flatten)]
    wide: Wide,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let service = &arguments.service;
    let versions = match fetch_versions(&Request::Versions(service.clone()), dirs) {
        Ok(versions) => versions,
        Err(failure) => return stale::versions(failure, service, arguments.wide, dirs, out),
    };
    if out.is_json() {
        out.object(&json!({ "versions": versions }));
    } else if versions.is_empty() {
        out.line(format!("No version of {} is kept.", arguments.service));
    } else {
        out.line(table(&versions, arguments.wide));
    }
    Ok(Exit::Done)
}

/// The answer of the daemon to a request about versions.
pub(super) fn fetch_versions(request: &Request, dirs: &Dirs) -> Result<Vec<VersionStatus>, Failure> {
    match ask(dirs, request)? {
        Response::Versions(versions) => Ok(versions),
        other => unreachable!("the client reads only versions as the answer to this: {other:?}"),
    }
}

/// For people, one version per line.
pub(super) fn table(versions: &[VersionStatus], wide: Wide) -> String {
    let rows = versions.iter().map(|it| {
        let generations: Vec<String> = it.generations.iter().map(ToString::to_string).collect();
        let states = [(it.current, "current"), (it.pinned, "pinned"), (it.undone, "taken back")];
        let states: Vec<&str> = states.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
        [
            it.version.clone().unwrap_or_else(|| "-".to_owned()),
            human::short(&it.sha256).to_owned(),
            generations.join(" "),
            human::size(it.size_bytes),
            format!("{} ago", human::since(it.added_at)),
            states.join(", "),
            it.binary.as_ref().map_or_else(String::new, |path| path.display().to_string()),
        ]
    });
    table::table(["VERSION", "SHA256", "GENERATIONS", "SIZE", "ADDED", "STATE", "FROM"], rows, wide)
}
