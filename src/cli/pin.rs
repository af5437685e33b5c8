//! `handoff pin`.

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::{Output, one_line};
use super::{Json, human, names, versions};
use crate::config::Dirs;
use crate::control::api::{Pin, Request};

const EXAMPLES: &str = "\
Examples:
  handoff pin s3 1.2.3            by its version
  handoff pin s3 9df9c07e         by the beginning of its hash
  handoff pin s3 9df9c07e --off";

/// Keep a version of a service until you release it
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    #[arg(value_parser = names::service)]
    service: ServiceName,
    /// The version, or the beginning of its hash (4 digits or more)
    version: String,
    /// Release the version
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let (service, version, pinned) = (arguments.service.clone(), arguments.version.clone(), !arguments.off);
    for found in versions::fetch_versions(&Request::Pin(Pin { service, version, pinned }), dirs)? {
        if out.is_json() {
            out.object(&json!({ "version": found }));
            continue;
        }
        let name = one_line(found.version.as_deref().unwrap_or("a version without a name"));
        let what = if found.pinned { "is kept" } else { "is no longer pinned" };
        out.line(format!("{}: {name} ({}) {what}.", found.service, human::short(&found.sha256)));
    }
    Ok(Exit::Done)
}
