//! `handoff stop`.

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure};
use super::output::Output;
use super::{Json, operation};
use crate::config::Dirs;
use crate::control::api::Request;

const EXAMPLES: &str = "\
Examples:
  handoff stop s3

The service has its stop_grace to finish its requests; requests that still run
then are cut.";

/// Stop a service and close its listeners
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    service: ServiceName,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    operation::run(&Request::Stop(arguments.service.clone()), dirs, out)
}
