//! `handoff cancel`.

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure};
use super::output::Output;
use super::{Json, names, operation};
use crate::config::Dirs;
use crate::control::api::{Ending, Request};

const EXAMPLES: &str = "\
Examples:
  handoff cancel s3

The exit code is 0 if the old version still serves, or if a start was called
off and the service is stopped. The command that asked for the upgrade reports
a rollback, with exit code 4. While the new version is on probation, this
brings back the old one. After that: handoff rollback s3";

/// Call off the current upgrade or start
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    #[arg(value_parser = names::service)]
    service: ServiceName,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let outcome = operation::perform(&Request::Cancel(arguments.service.clone()), dirs, out)?;
    operation::print_outcome(&outcome, out);
    Ok(match outcome.outcome {
        Ending::RolledBack | Ending::Stopped => Exit::Done,
        // The old process died in the meantime, so the upgrade was completed.
        Ending::Committed
        | Ending::Started
        | Ending::Completed
        | Ending::Unchanged
        | Ending::Staged
        | Ending::Failed => Exit::Failed,
    })
}
