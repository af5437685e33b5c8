//! `handoff upgrade`.

use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure};
use super::output::Output;
use super::{Json, operation};
use crate::config::{Dirs, format_duration_ms, parse_duration_ms};
use crate::control::api::{Request, Upgrade};

const EXAMPLES: &str = "\
Examples:
  handoff upgrade s3                                    the binary that the service file names
  handoff upgrade s3 --binary ./s3-v2                   another binary
  handoff upgrade s3 --deadline 1m --drain-grace 10s    other limits, this once

If the new version fails, the old one serves on, and the exit code is 4. Interrupting the command
does not stop the upgrade: `handoff status` shows how it goes on, `handoff cancel` calls it off.";

/// Replace the binary of a running service, with nothing dropped
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    service: ServiceName,
    /// The new binary [default: what the service file names]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Limit of the whole upgrade, such as 5m [default: the service file's]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    deadline: Option<u64>,
    /// Time that the old process has to finish what it accepted [default: the service file's]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    drain_grace: Option<u64>,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let (deadline_ms, drain_grace_ms) = (arguments.deadline, arguments.drain_grace);
    if let (Some(grace), Some(deadline)) = (drain_grace_ms, deadline_ms)
        && grace > deadline
    {
        let (grace, deadline) = (format_duration_ms(grace), format_duration_ms(deadline));
        return Err(Failure::usage(
            format!("--drain-grace ({grace}) is longer than --deadline ({deadline})."),
            "The drain is one part of the upgrade: shorten it or raise the deadline.",
        ));
    }
    // The daemon has a working directory of its own.
    let binary = arguments.binary.as_ref().map(std::path::absolute).transpose().map_err(|error| {
        Failure::failed(
            format!("The path of --binary cannot be made absolute: {error}."),
            "Give an absolute path.",
        )
    })?;
    let service = arguments.service.clone();
    operation::run(&Request::Upgrade(Upgrade { service, binary, deadline_ms, drain_grace_ms }), dirs, out)
}
