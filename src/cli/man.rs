//! `handoff man`.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::Cli;
use super::exit::{Exit, Failure};
use super::output::Output;
use crate::config::nearest;

const EXAMPLES: &str = "\
Examples:
  handoff man | man -l -
  handoff man upgrade > handoff-upgrade.1";

/// Print a manual page
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The verb whose page to print [default: the page of the whole command]
    verb: Option<String>,
}

pub(super) fn run(arguments: &Arguments, out: &mut Output) -> Result<Exit, Failure> {
    let mut command = Cli::command();
    command.build();
    let command = match &arguments.verb {
        None => command,
        Some(verb) => page_of(verb, &command)?,
    };
    let mut page = Vec::new();
    render(&command, &mut page)
        .map_err(|error| Failure::failed(format!("The page cannot be written: {error}."), ""))?;
    out.bytes(&page);
    Ok(Exit::Done)
}

fn render(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(command.clone()).source(concat!("handoff ", env!("CARGO_PKG_VERSION")));
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    // The generator would join the lines of the examples like prose.
    let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let notes = notes.replace('\\', "\\e").replace('-', "\\-");
    let lines: String = notes.lines().map(|line| format!("\\&{line}\n")).collect();
    write!(page, ".SH NOTES\n.nf\n{lines}.fi\n")
}

fn page_of(verb: &str, command: &Command) -> Result<Command, Failure> {
    if let Some(found) = command.find_subcommand(verb) {
        return Ok(found.clone());
    }
    let verbs = command.get_subcommands().map(Command::get_name);
    let hint = match nearest(verb, verbs) {
        Some(near) => format!("Did you mean {near:?}?"),
        None => "`handoff --help` names the verbs.".into(),
    };
    Err(Failure::usage(format!("There is no verb {verb:?}."), hint))
}
