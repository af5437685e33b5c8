//! `handoff show`.

use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::{Output, Style};
use super::table::Wide;
use super::{Json, ask, history, names, status, versions};
use crate::config::Dirs;
use crate::control::api::{Request, Response};
use crate::sys::regular;

/// The number of attempts that are shown.
const ATTEMPTS: u64 = 5;

const EXAMPLES: &str = "\
Examples:
  handoff show s3
  handoff show s3 --json | jq -r .file.text

It prints the status, the stored versions, the last attempts, and the service
file as it is now. A change of the file counts from the next start or upgrade.";

/// Show all about one service: status, versions, attempts, service file
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
    let found = match ask(dirs, &Request::Status(service.clone()))? {
        Response::Status(status) => status,
        other => unreachable!("the client reads only a status as the answer to status: {other:?}"),
    };
    // A service whose file is wrong has a status, and nothing else.
    let kept = versions::fetch_versions(&Request::Versions(service.clone()), dirs).unwrap_or_default();
    let attempts = history::entries(Some(service.clone()), Some(ATTEMPTS), dirs).unwrap_or_default();
    let (file, text) = service_file(service, dirs);
    if out.is_json() {
        let file = json!({ "path": file, "text": text.as_ref().ok(), "error": text.as_ref().err() });
        out.object(&json!({ "status": found, "versions": kept, "history": attempts, "file": file }));
        return Ok(Exit::Done);
    }
    let style = Style::of_stdout();
    out.line(status::describe(&found, style));
    if !kept.is_empty() {
        out.line(format!("\n{}\n{}", style.bold("Versions"), versions::table(&kept, arguments.wide)));
    }
    if !attempts.is_empty() {
        out.line(format!("\n{}\n{}", style.bold("Last attempts"), history::table(&attempts, arguments.wide)));
    }
    let text = text.unwrap_or_else(|error| format!("It cannot be read: {error}."));
    out.line(format!("\n{}\n{}", style.bold(&file.display().to_string()), text.trim_end()));
    Ok(Exit::Done)
}

/// The service file, and its text or why it cannot be read.
fn service_file(service: &ServiceName, dirs: &Dirs) -> (PathBuf, Result<String, String>) {
    let file = dirs.service_file(service);
    let text = regular::read_to_string(&file).map_err(|error| error.to_string());
    (file, text)
}
