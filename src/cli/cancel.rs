//! `handoff cancel`.

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure};
use super::output::Output;
use super::{Json, operation};
use crate::config::Dirs;
use crate::control::api::{Ending, Request};

const EXAMPLES: &str = "\
Examples:
  handoff cancel s3

The exit code is 0 when the old version serves on, or when a start was called off and the service is
stopped. Whoever asked for the upgrade is told that it was rolled back, with exit code 4. As long as
the new version is on probation, this takes the old one back. After that: handoff rollback s3";

/// Call off the upgrade or start that is under way
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    service: ServiceName,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let outcome = operation::perform(&Request::Cancel(arguments.service.clone()), dirs, out)?;
    operation::tell(&outcome, out);
    Ok(match outcome.outcome {
        Ending::RolledBack | Ending::Stopped => Exit::Done,
        // The old process has died meanwhile, so that the upgrade went forward.
        Ending::Committed | Ending::Started | Ending::Unchanged | Ending::Staged | Ending::Failed => {
            Exit::Failed
        }
    })
}
