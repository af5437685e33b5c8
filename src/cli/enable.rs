//! `handoff enable` and `handoff disable`.

use super::exit::{Exit, Failure};
use super::output::{Output, note};
use super::selection::{self, Selection};
use super::{Json, ask};
use crate::config::Dirs;
use crate::control::api::{Request, Response};

const ENABLE_EXAMPLES: &str = "\
Examples:
  handoff enable s3
  handoff enable --now s3      and start it
  handoff enable 'web-*'

This counts before the key autostart of the service file.";

const DISABLE_EXAMPLES: &str = "\
Examples:
  handoff disable s3
  handoff disable --now s3     and stop it
  handoff disable --all

A service that runs goes on, and `handoff start` starts a disabled one. This
counts before the key autostart of the service file.";

/// Let services start with the daemon, whatever their files say
#[derive(clap::Args)]
#[command(after_help = ENABLE_EXAMPLES)]
pub(super) struct EnableArguments {
    #[command(flatten)]
    selection: Selection,
    /// Start them as well
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

/// Keep services from starting with the daemon
#[derive(clap::Args)]
#[command(after_help = DISABLE_EXAMPLES)]
pub(super) struct DisableArguments {
    #[command(flatten)]
    selection: Selection,
    /// Stop them as well
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn enable(arguments: &EnableArguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    for name in arguments.selection.names(dirs)? {
        decide(&Request::Enable(name), "starts with the daemon", dirs, out)?;
    }
    match arguments.now {
        true => selection::run(&arguments.selection, Request::Start, dirs, out),
        false => Ok(Exit::Done),
    }
}

pub(super) fn disable(arguments: &DisableArguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    for name in arguments.selection.names(dirs)? {
        decide(&Request::Disable(name), "does not start with the daemon", dirs, out)?;
    }
    match arguments.now {
        true => selection::run(&arguments.selection, Request::Stop, dirs, out),
        false => Ok(Exit::Done),
    }
}

fn decide(request: &Request, what: &str, dirs: &Dirs, out: &mut Output) -> Result<(), Failure> {
    match ask(dirs, request)? {
        Response::Status(status) if out.is_json() => out.object(&status),
        Response::Status(status) => {
            out.line(format!("{} {what}.", status.service));
            if status.state.is_at_rest() && status.autostart.starts {
                note(format!("It does not run now; to start it: handoff start {}", status.service));
            }
        }
        other => unreachable!("the client reads only a status as the answer to this: {other:?}"),
    }
    Ok(())
}
