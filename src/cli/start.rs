//! `handoff start`.

use super::Json;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::selection::{self, Selection};
use crate::config::Dirs;
use crate::control::api::Request;

const EXAMPLES: &str = "\
Examples:
  handoff start s3
  handoff start 'web-*'      all services with such a name
  handoff start --all

A service that runs already is left as it is, and the exit code is 0.";

/// Start a stopped service
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    selection::run(&arguments.selection, Request::Start, dirs, out)
}
