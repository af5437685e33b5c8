//! `handoff gc`.

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::{Output, one_line};
use super::{Json, human, names, versions};
use crate::config::Dirs;
use crate::control::api::Request;

const EXAMPLES: &str = "\
Examples:
  handoff gc        for all services
  handoff gc s3

It keeps what runs, what ran before it, what is pinned, and the last versions
that ran (`keep` in [update] of the service file). The daemon does the same
after each upgrade.";

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
    let bytes: u64 = removed.iter().map(|it| it.size_bytes).sum();
    if out.is_json() {
        out.object(&json!({ "removed": removed, "size_bytes": bytes }));
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
    Ok(Exit::Done)
}
