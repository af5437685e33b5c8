//! `handoff rollback`.

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure};
use super::output::Output;
use super::{Json, operation};
use crate::config::Dirs;
use crate::control::api::{Request, Rollback};

const EXAMPLES: &str = "\
Examples:
  handoff rollback s3      to the version that ran before
  handoff rollback s3 7    to the version of generation 7

It is an upgrade to an older version: nothing is dropped, and if the older version fails, the current one
serves on, with exit code 4. `handoff versions` shows which generations are kept; of another one the
exit code is 6.";

/// Go back to a version that ran before, by an upgrade with nothing dropped
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    service: ServiceName,
    /// The generation as which it ran [default: the last one of another version]
    generation: Option<u64>,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let (service, generation) = (arguments.service.clone(), arguments.generation);
    operation::run(&Request::Rollback(Rollback { service, generation }), dirs, out)
}
