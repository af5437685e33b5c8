//! `handoff unregister`.

use super::exit::{Exit, Failure};
use super::output::Output;
use super::selection::{Wanted, resolve};
use super::{Json, remove};
use crate::config::Dirs;
use crate::control::api::Request;

const EXAMPLES: &str = "\
Examples:
  handoff unregister web

It stops a service that `handoff register` has added, and deletes its file. If
you have edited the file, it becomes web.toml.removed. The data stays.";

/// Remove a service that was added by `register`
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The services: names, or patterns such as 'web-*'
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<Wanted>,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    remove::remove_all(&resolve(&arguments.services, dirs)?, Request::Unregister, dirs, out)
}
