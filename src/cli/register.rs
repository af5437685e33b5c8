//! `handoff register`.

use std::io::Read;
use std::path::{Path, PathBuf};

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure};
use super::output::Output;
use super::{Json, operation};
use crate::config::{Dirs, name_of};
use crate::control::api::{Register, Request};
use crate::sys::regular;

/// A request line has room for this much.
const TEXT_MAX_BYTES: u64 = 48 << 10;

const EXAMPLES: &str = "\
Examples:
  handoff register ./web.toml
  handoff register - --name web < template
  handoff register ./job.toml --ephemeral

The service file is checked, written and started. If that fails, no trace of
it is left. The same text once more changes nothing. Another text for a name
that exists is refused: change the file, then use `handoff reload`.";

/// Add a service while the daemon runs
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service file, or - for standard input
    file: PathBuf,
    /// The name of the service; without it, that of the file
    #[arg(long)]
    name: Option<ServiceName>,
    /// Keep it until the machine restarts
    #[arg(long)]
    ephemeral: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let is_input = arguments.file == Path::new("-");
    let service = match &arguments.name {
        Some(name) => name.clone(),
        None if is_input => {
            let message = "A service from standard input has no name.".to_owned();
            return Err(Failure::usage(message, "Give it one: --name NAME"));
        }
        None => name_of(&arguments.file).map_err(|error| {
            Failure::usage(
                format!("{}: {}.", error.file.display(), error.cause),
                "Give it a name: --name NAME",
            )
        })?,
    };
    let text = read(&arguments.file, is_input)?;
    let register = Register { service, text, ephemeral: arguments.ephemeral };
    operation::run(&Request::Register(register), dirs, out)
}

fn read(file: &Path, is_input: bool) -> Result<String, Failure> {
    let mut text = String::new();
    let mut read = |from: &mut dyn Read| from.take(TEXT_MAX_BYTES + 1).read_to_string(&mut text);
    let done = match is_input {
        true => read(&mut std::io::stdin().lock()),
        false => regular::open_to_read(file).and_then(|mut file| read(&mut file)),
    };
    let name = if is_input { "standard input".to_owned() } else { file.display().to_string() };
    if let Err(error) = done {
        return Err(Failure::failed(format!("{name} cannot be read: {error}."), ""));
    }
    if text.len() as u64 > TEXT_MAX_BYTES {
        let message = format!("{name} is larger than {TEXT_MAX_BYTES} bytes.");
        return Err(Failure::failed(
            message,
            "Put it into the directory of the service files, then: handoff reload",
        ));
    }
    if text.is_empty() {
        return Err(Failure::invalid(format!("{name} is empty."), "See: handoff check --help"));
    }
    Ok(text)
}
