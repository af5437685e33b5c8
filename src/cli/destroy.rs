//! `handoff destroy`.

use std::io::{BufRead, IsTerminal, stdin};

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure};
use super::output::{Output, note};
use super::selection::{Wanted, resolve};
use super::{Json, remove};
use crate::config::Dirs;
use crate::control::api::Request;

const EXAMPLES: &str = "\
Examples:
  handoff destroy web          asks first
  handoff destroy web --yes

Like `handoff remove`, and it also deletes the journal, the history, the log
and the stored versions. What handoff did not write stays, such as the data of
the program.";

/// Remove a service with its log, its history and its versions
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The services: names, or patterns such as 'web-*'
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<Wanted>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let names = resolve(&arguments.services, dirs)?;
    if !arguments.yes && !is_confirmed(&names)? {
        note("Nothing was deleted.");
        return Ok(Exit::Failed);
    }
    remove::remove_all(&names, Request::Destroy, dirs, out)
}

fn is_confirmed(names: &[ServiceName]) -> Result<bool, Failure> {
    if !stdin().is_terminal() {
        let message = "Standard input is no terminal, so the command cannot ask.".to_owned();
        return Err(Failure::usage(message, "To delete without a question: --yes"));
    }
    let names: Vec<&str> = names.iter().map(ServiceName::as_str).collect();
    note(format!("Delete the log, the history and all versions of {}? [y/N]", names.join(", ")));
    let mut answer = String::new();
    // No answer is a no.
    let _ = stdin().lock().read_line(&mut answer);
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
