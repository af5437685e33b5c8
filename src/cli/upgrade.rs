//! `handoff upgrade`.

use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;

use super::claims::{ClaimOptions, absolute};
use super::exit::{Exit, Failure};
use super::output::Output;
use super::{Json, names, operation, upgrade_all, whole_number};
use crate::config::{Dirs, format_duration_ms, parse_duration_word_ms};
use crate::control::api::{Claims, Request, Upgrade};

const EXAMPLES: &str = "\
Examples:
  handoff upgrade s3
      the binary that the service file names
  handoff upgrade s3 ./s3-v2
      another binary
  handoff upgrade s3 --deadline 1m --drain-grace 10s
      other limits, this once
  handoff upgrade --all --max-parallel 2
      all running services, in the order of `after`

If the new version fails, the old one still serves, and the exit code is 4.
Ctrl-C ends the command with exit code 130 and does not stop the upgrade:
`handoff status` shows its progress, `handoff cancel` calls it off.";

/// Replace the binary of a running service, without dropping a connection
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    #[arg(required_unless_present = "all", value_parser = names::service)]
    service: Option<ServiceName>,
    /// The new binary, as with --binary
    #[arg(conflicts_with = "binary")]
    path: Option<PathBuf>,
    /// Upgrade all running services, each after those that its file names in `after`; stops at the first rollback
    #[arg(long, conflicts_with_all = ["service", "path", "binary"])]
    all: bool,
    /// With --all: the number of upgrades at once [default: 1]
    #[arg(long, value_name = "N", value_parser = parallel)]
    max_parallel: Option<u8>,
    /// The new binary [default: what the service file names]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Limit of the whole upgrade, such as 5m [default: from the service file]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_word_ms)]
    deadline: Option<u64>,
    /// Time for the old process to finish what it has accepted [default: from the service file]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_word_ms)]
    drain_grace: Option<u64>,
    #[command(flatten)]
    pub(super) json: Json,
    // Last, since its heading is that of all options after it.
    #[command(flatten)]
    claims: ClaimOptions,
}

/// A number of upgrades at once.
fn parallel(text: &str) -> Result<u8, String> {
    let number = whole_number(text, 1)?;
    u8::try_from(number).ok().filter(|number| *number <= 32).ok_or_else(|| format!("{text} is more than 32"))
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
    if arguments.max_parallel.is_some() && !arguments.all {
        return Err(Failure::usage(
            "--max-parallel is for --all.".to_owned(),
            "Name no service, and add --all.",
        ));
    }
    let claims = arguments.claims.to_claims()?;
    let Some(service) = arguments.service.clone() else {
        if claims != Claims::default() {
            return Err(Failure::usage(
                "--all upgrades each service to the binary of its own file: evidence and member are those of one.".to_owned(),
                "Name one service instead of --all.",
            ));
        }
        let limits = upgrade_all::UpgradeLimits { deadline_ms, drain_grace_ms };
        return upgrade_all::run(limits, arguments.max_parallel.unwrap_or(1).into(), dirs, out);
    };
    let binary = arguments.path.as_deref().or(arguments.binary.as_deref()).map(absolute).transpose()?;
    let upgrade = Upgrade { service, binary, deadline_ms, drain_grace_ms, claims };
    operation::run(&Request::Upgrade(upgrade), dirs, out)
}
