//! `handoff events`.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use super::Json;
use super::exit::{Exit, Failure};
use super::output::{Output, Style, one_line};
use super::selection::{self, Wanted};
use super::status;
use crate::config::Dirs;
use crate::control::Client;
use crate::control::api::{Change, Notice, Subscribe};

const EXAMPLES: &str = "\
Examples:
  handoff events              all services
  handoff events s3 mcp       these
  handoff events --json | jq -c 'select(.event.state == \"failed\")'

It begins with the present state of each service, and prints a line whenever a
state or a phase changes, until Ctrl-C. A service that is new meanwhile is
included if no service is named.";

/// Follow the states and phases of services
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Only these services: names, or patterns such as 'web-*'
    #[arg(value_name = "SERVICE")]
    services: Vec<Wanted>,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let services = selection::resolve(&arguments.services, dirs)?;
    let mut client = Client::connect(&dirs.control_socket())?;
    let subscription = client.subscribe(&Subscribe { services })?;
    subscription.states.iter().for_each(|change| print(change, out));
    while !out.is_closed() {
        let Some(Notice { lost, event, .. }) = client.next_notice(None)? else { continue };
        match (lost, out.is_json()) {
            (0, _) => {}
            (lost, true) => out.object(&json!({ "lost": lost })),
            (lost, false) => out.line(format!("{lost} changes are missing here: this command was too slow.")),
        }
        if let Some(change) = &event {
            print(change, out);
        }
    }
    Ok(Exit::Done)
}

fn print(change: &Change, out: &mut Output) {
    match out.is_json() {
        true => out.object(&json!({ "event": change })),
        false => out.line(one_line(&line(change, Style::of_stdout()))),
    }
}

fn line(change: &Change, style: Style) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(change.at)).unwrap_or(UNIX_EPOCH);
    let state = status::painted(change.state, style);
    let phase = change.phase.as_ref().map_or_else(String::new, |phase| format!(" ({phase})"));
    let pid = change.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
    let more: Vec<&str> =
        [&change.detail, &change.problem].into_iter().flatten().map(String::as_str).collect();
    let more = if more.is_empty() { String::new() } else { format!(": {}", more.join("; ")) };
    format!(
        "{}  {}  {state}{phase}, generation {}{pid}{more}",
        humantime::format_rfc3339_millis(at),
        change.service,
        change.generation
    )
}
