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

It upgrades to an older version: nothing is dropped, and if the older version
fails, the current one still serves, and the exit code is 4. `handoff
versions` shows which generations are kept; for any other the exit code is 1.";

/// Go back to a version that ran before, without dropping a connection
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    service: ServiceName,
    /// The generation of that version [default: the last one of another version]
    #[arg(value_parser = |text: &str| super::whole_number(text, 0))]
    generation: Option<u64>,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let (service, generation) = (arguments.service.clone(), arguments.generation);
    operation::run(&Request::Rollback(Rollback { service, generation }), dirs, out)
}
