//! `handoff daemon`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::exit::{Exit, Failure};
use super::standard_error::StandardError;
use super::variable;
use crate::config::Dirs;
use crate::supervisor;

const EXAMPLES: &str = "\
Examples:
  handoff daemon
  HANDOFF_LOG=debug handoff daemon --config-dir ./etc \\
      --state-dir ./var --runtime-dir ./run

The daemon stays in the foreground and logs to standard error. SIGTERM or
Ctrl-C stops the services in order, then the daemon; a second one leaves the
services running. If the daemon is killed, the services continue, and the next
daemon takes them over. SIGQUIT ends it in the same way, to install a new
version of handoff.";

/// Run the supervisor in the foreground
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {}

pub(super) fn run(_: &Arguments, dirs: Dirs) -> Result<Exit, Failure> {
    let wanted = variable("HANDOFF_LOG").map(|value| value.to_string_lossy().into_owned());
    let wanted = wanted.unwrap_or_else(|| "info".to_owned());
    let filter = EnvFilter::try_new(&wanted).map_err(|error| {
        let message = format!("HANDOFF_LOG is {wanted:?}, which is not a filter: {error}.");
        Failure::usage(message, "Write error, warn, info, debug or trace.")
    })?;
    let colours = std::io::stderr().is_terminal() && variable("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(StandardError::default())
        .with_ansi(colours)
        // Otherwise it reports a full disk, or a pipe without a reader, on standard error, and panics.
        .log_internal_errors(false)
        .init();
    supervisor::run(dirs)
        .map(|()| Exit::Done)
        .map_err(|error| Failure::failed(format!("The daemon ended: {error}."), ""))
}
