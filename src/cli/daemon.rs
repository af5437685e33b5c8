//! `handoff daemon`.

use tracing_subscriber::EnvFilter;

use super::exit::{Exit, Failure};
use crate::config::Dirs;
use crate::supervisor;

const EXAMPLES: &str = "\
Examples:
  handoff daemon
  HANDOFF_LOG=debug handoff daemon --config-dir ./etc --state-dir ./var --runtime-dir ./run

The daemon stays in the foreground and logs to standard error. If it dies, the services run on,
and the next daemon adopts them.";

/// Run the supervisor in the foreground
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {}

pub(super) fn run(_: &Arguments, dirs: Dirs) -> Result<Exit, Failure> {
    let wanted = std::env::var("HANDOFF_LOG").unwrap_or_else(|_| "info".into());
    let filter = EnvFilter::try_new(&wanted).map_err(|error| {
        let message = format!("HANDOFF_LOG is {wanted:?}, which is no filter: {error}.");
        Failure::usage(message, "Write error, warn, info, debug or trace.")
    })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    supervisor::run(dirs)
        .map(|()| Exit::Done)
        .map_err(|error| Failure::failed(format!("The daemon ended: {error}."), ""))
}
