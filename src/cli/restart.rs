//! `handoff restart`.

use super::Json;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::selection::{self, Selection};
use crate::config::Dirs;
use crate::control::api::Request;

const EXAMPLES: &str = "\
Examples:
  handoff restart s3
  handoff restart 'web-*'    one after the other

It upgrades to the same binary, and rolls back if the new process fails. A
stopped service is started. Interrupting the command does not stop the
restart.";

/// Restart a service with the same binary, without dropping a connection
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    selection::run(&arguments.selection, Request::Restart, dirs, out)
}
