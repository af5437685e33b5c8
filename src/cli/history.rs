//! `handoff history`.

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure};
use super::output::{Output, Style, terminal_width};
use super::table::{self, wrapped};
use super::{Json, ask, human, picture, sentence};
use crate::config::Dirs;
use crate::control::api::{self, Request, Response};
use crate::history::{Ending, Entry, Version};

const EXAMPLES: &str = "\
Examples:
  handoff history                     all services
  handoff history s3 --limit 5        the last five attempts
  handoff history s3 --last           the phases of the last one, as a picture
  handoff history --id 9df9c07e       of another one; a unique part of its id is enough
  handoff history s3 --json | jq -c 'select(.outcome == \"rolled_back\")'";

/// Show past attempts: what was done, who asked for it, and how it ended
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Only this service
    service: Option<ServiceName>,
    /// One attempt: its id, or a unique part of it
    #[arg(long, value_name = "ID", conflicts_with = "last")]
    id: Option<String>,
    /// Only the last attempt, with its phases as a picture
    #[arg(long)]
    last: bool,
    /// Show the last N attempts
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..), conflicts_with_all = ["id", "last"])]
    limit: u64,
    #[command(flatten)]
    pub(super) json: Json,
}

/// Maximum width of the column `BY` on a terminal.
const BY_MAX: usize = 14;
/// Width of a picture without a terminal.
const PICTURE_WIDTH: usize = 100;

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let is_one = arguments.last || arguments.id.is_some();
    let limit = if arguments.last { Some(1) } else { (!is_one).then_some(arguments.limit) };
    let mut entries = entries(arguments.service.clone(), limit, dirs)?;
    if let Some(id) = &arguments.id {
        entries = vec![single_entry(entries, id)?];
    }
    match (&entries[..], is_one) {
        _ if out.is_json() => entries.iter().for_each(|entry| out.object(entry)),
        ([], _) => out.line("Nothing was attempted yet."),
        ([entry], true) => {
            out.line(describe(entry, Style::of_stdout(), terminal_width().unwrap_or(PICTURE_WIDTH)))
        }
        (entries, _) => out.line(table(entries)),
    }
    Ok(Exit::Done)
}

fn entries(service: Option<ServiceName>, limit: Option<u64>, dirs: &Dirs) -> Result<Vec<Entry>, Failure> {
    match ask(dirs, &Request::History(api::History { service, limit }))? {
        Response::History(entries) => Ok(entries),
        other => unreachable!("the client reads only entries as the answer to history: {other:?}"),
    }
}

/// The only attempt whose id contains this part.
fn single_entry(entries: Vec<Entry>, part: &str) -> Result<Entry, Failure> {
    let wanted = part.to_ascii_lowercase();
    let mut found =
        entries.into_iter().filter(|entry| entry.id.to_string().contains(&wanted)).collect::<Vec<_>>();
    match (found.pop(), found.is_empty()) {
        (Some(entry), true) => Ok(entry),
        (Some(_), false) => {
            let message = format!("There are {} attempts with {part:?} in their id.", found.len() + 1);
            Err(Failure::failed(message, "Give more of it."))
        }
        (None, _) => {
            let message = format!("There is no attempt with {part:?} in its id.");
            Err(Failure::failed(message, "`handoff history` lists them; old ones are not kept."))
        }
    }
}

fn table(entries: &[Entry]) -> String {
    let rows = entries.iter().map(|entry| {
        let to = entry.to.as_ref().or(entry.from.as_ref());
        [
            human::since(entry.at),
            entry.service.to_string(),
            entry.operation.as_str().to_owned(),
            outcome(entry),
            to.map_or_else(String::new, short),
            human::span(entry.took_us),
            entry.accept_gap_us.map_or_else(String::new, human::span),
            shortened(&by(entry)),
            tail(&entry.id.to_string()),
        ]
    });
    table::table(["AGO", "SERVICE", "WHAT", "OUTCOME", "TO", "TOOK", "GAP", "BY", "ID"], rows)
}

/// How it ended, whether something was killed, and how much was lost.
fn outcome(entry: &Entry) -> String {
    let killed = if entry.killed.is_empty() { "" } else { ", killed" };
    let lost =
        if entry.lost_datagrams == 0 { String::new() } else { format!(", {} lost", entry.lost_datagrams) };
    format!("{}{killed}{lost}", entry.outcome.description())
}

/// One attempt with all known details, and its picture.
fn describe(entry: &Entry, style: Style, width: usize) -> String {
    let ending = picture::ending(entry);
    let ending = match entry.outcome {
        Ending::Committed | Ending::Started | Ending::Stopped => style.green(&ending),
        Ending::Failed | Ending::Rejected => style.red(&ending),
        Ending::UnderWay | Ending::RolledBack | Ending::Staged | Ending::Other => style.yellow(&ending),
    };
    let head = format!("{} {}", entry.operation.as_str(), style.bold(entry.service.as_str()));
    let mut lines = vec![wrapped(&format!("{head}: {ending}"), 2)];
    let mut add = |label: &str, value: String| lines.push(wrapped(&format!("  {label:<10}{value}"), 12));
    add("id", entry.id.to_string());
    add("at", human::date(entry.at));
    add("by", by(entry));
    for (label, version) in [("from", &entry.from), ("to", &entry.to)] {
        if let Some(version) = version {
            add(label, long(version));
        }
    }
    let drawn = picture::draw(entry, width);
    for killed in &entry.killed {
        lines.push(format!(
            "  {:<10}{}",
            "killed",
            sentence::killed(std::slice::from_ref(killed)).trim_start()
        ));
    }
    if entry.lost_datagrams > 0 {
        lines.push(format!("  {:<10}{}", "lost", sentence::lost(entry.lost_datagrams).trim_start()));
    }
    if !drawn.is_empty() {
        lines.push(String::new());
        lines.extend(drawn);
        lines.extend([String::new(), picture::LEGEND.to_owned(), String::new()]);
    }
    for (index, phase) in picture::shown(entry).iter().enumerate() {
        let (at, took) = (human::span(phase.started_us), human::span(phase.took_us));
        lines.push(format!("{:>4}  {:<12}{:>12}{took:>12}", index + 1, phase.phase, format!("+{at}")));
    }
    lines.join("\n")
}

/// The caller, shortened to leave room for the rest on a terminal.
fn shortened(by: &str) -> String {
    if terminal_width().is_none() || by.chars().count() <= BY_MAX {
        return by.to_owned();
    }
    by.chars().take(BY_MAX - 1).chain(['…']).collect()
}

fn by(entry: &Entry) -> String {
    let user = if entry.by.uid == 0 { "root".to_owned() } else { format!("uid {}", entry.by.uid) };
    match entry.by.command.as_str() {
        "" => format!("{user}, pid {}", entry.by.pid),
        command => format!("{user}, pid {}: {command}", entry.by.pid),
    }
}

/// The version's own name, else the name of its file.
fn short(version: &Version) -> String {
    let name = || version.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    version.version.clone().unwrap_or_else(name)
}

fn long(version: &Version) -> String {
    let named = version.version.as_ref().map_or_else(String::new, |name| format!("{name}, "));
    let hash = version.sha256.as_deref().and_then(|sha256| sha256.get(..12));
    let hash = hash.map_or_else(String::new, |sha256| format!(" (sha256 {sha256})"));
    format!("{named}{}{hash}", version.path.display())
}

/// The last part of an id. Ids begin with the time, so they differ at the end.
fn tail(id: &str) -> String {
    id.get(id.len().saturating_sub(8)..).unwrap_or(id).to_owned()
}
