//! `handoff stop`.

use super::Json;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::selection::{self, Selection};
use crate::config::Dirs;
use crate::control::api::Request;

const EXAMPLES: &str = "\
Examples:
  handoff stop s3
  handoff stop web-1 web-2
  handoff stop --all

The service has its stop_grace to finish its requests; requests that still run
then are cut. For a service that does not run the exit code is 0.";

/// Stop a service and close its listeners
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    selection::run(&arguments.selection, Request::Stop, dirs, out)
}
