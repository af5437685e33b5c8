//! `handoff kill`.

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure};
use super::output::Output;
use super::{Json, ask, names};
use crate::config::Dirs;
use crate::control::api::{self, Request, Response};
use crate::control::{signal_names, signal_of};

const EXAMPLES: &str = "\
Examples:
  handoff kill -s HUP s3         send SIGHUP to the program of s3
  handoff kill --reload s3       send the reload_signal of its service file

The signal goes to the process that serves, not to the shim that runs it, and
not to a wrapper. A program that ends because of it is started again; to stop
a service: handoff stop s3";

/// Send a signal to the program of a service
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    #[arg(value_parser = names::service)]
    service: ServiceName,
    /// The signal: HUP, INT, QUIT, USR1, USR2, WINCH, TERM or KILL
    #[arg(short, long, value_name = "SIGNAL", value_parser = offered)]
    #[arg(required_unless_present = "reload", conflicts_with = "reload")]
    signal: Option<String>,
    /// Send the `reload_signal` of the service file
    #[arg(long)]
    reload: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

fn offered(text: &str) -> Result<String, String> {
    match signal_of(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("the signals that can be sent are {}", signal_names())),
    }
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let kill = api::Kill { service: arguments.service.clone(), signal: arguments.signal.clone() };
    match ask(dirs, &Request::Kill(kill))? {
        Response::Status(status) if out.is_json() => out.object(&status),
        Response::Status(status) => {
            let pid = status.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
            let signal = arguments.signal.as_deref().unwrap_or("reload_signal");
            out.line(format!("{signal} was sent to the program of {}{pid}.", arguments.service));
        }
        other => unreachable!("the client reads only a status as the answer to kill: {other:?}"),
    }
    Ok(Exit::Done)
}
