//! `handoff history`.

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure};
use super::output::{Output, Style, one_line, terminal_width};
use super::table::{self, Wide, wrapped};
use super::{Json, ask, human, names, picture, sentence, stale};
use crate::config::Dirs;
use crate::control::api::{self, Request, Response};
use crate::history::{Ending, Entry, Version};

const EXAMPLES: &str = "\
Examples:
  handoff history
      all services
  handoff history s3 --limit 5
      the last five attempts
  handoff history s3 --last
      the phases of the last one, as a picture
  handoff history --id 9df9c07e
      of another one; a unique part of its id is enough
  handoff history s3 --json | jq -c 'select(.outcome == \"rolled_back\")'";

/// Show past attempts: what was done, who asked for it, and how it ended
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Only this service
    #[arg(value_parser = names::service)]
    service: Option<ServiceName>,
    /// One attempt: its id, or a unique part of it
    #[arg(long, value_name = "ID", conflicts_with = "last")]
    id: Option<String>,
    /// Only the last attempt, with its phases as a picture
    #[arg(long)]
    last: bool,
    /// Show the last N attempts
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = |text: &str| super::whole_number(text, 1), conflicts_with_all = ["id", "last"])]
    limit: u64,
    #[command(flatten)]
    wide: Wide,
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
    let (mut entries, exit) = match entries(arguments.service.clone(), limit, dirs) {
        Ok(entries) => (entries, Exit::Done),
        Err(failure) => {
            let service = arguments.service.as_ref();
            (stale::history(failure, service, limit, dirs, out)?, Exit::Stale)
        }
    };
    if let Some(id) = &arguments.id {
        entries = entries_with_id(entries, id)?;
    }
    match (&entries[..], is_one) {
        _ if out.is_json() => entries.iter().for_each(|entry| out.object(entry)),
        ([], _) => out.line("Nothing was attempted yet."),
        (entries, true) => {
            let (style, width) = (Style::of_stdout(), terminal_width().unwrap_or(PICTURE_WIDTH));
            let texts: Vec<String> = entries.iter().map(|entry| describe(entry, style, width)).collect();
            out.line(texts.join("\n\n"));
        }
        (entries, _) => out.line(table(entries, arguments.wide)),
    }
    Ok(exit)
}

pub(super) fn entries(
    service: Option<ServiceName>,
    limit: Option<u64>,
    dirs: &Dirs,
) -> Result<Vec<Entry>, Failure> {
    match ask(dirs, &Request::History(api::History { service, limit }))? {
        Response::History(entries) => Ok(entries),
        other => unreachable!("the client reads only entries as the answer to history: {other:?}"),
    }
}

/// The attempts with this id; else the only attempt whose id contains this part. More than one attempt can have the
/// same id: an operation, and what followed from it.
fn entries_with_id(entries: Vec<Entry>, part: &str) -> Result<Vec<Entry>, Failure> {
    let wanted = part.to_ascii_lowercase();
    let found: Vec<Entry> =
        entries.into_iter().filter(|entry| entry.id.to_string().contains(&wanted)).collect();
    match &found[..] {
        [] => {
            let message = format!("There is no attempt with {part:?} in its id.");
            Err(Failure::failed(message, "`handoff history` lists them; old ones are not kept."))
        }
        [first, rest @ ..] if rest.iter().all(|entry| entry.id == first.id) => Ok(found),
        [_, ..] => {
            let message = format!("There are {} attempts with {part:?} in their id.", found.len());
            Err(Failure::failed(message, "Give more of it."))
        }
    }
}

pub(super) fn table(entries: &[Entry], wide: Wide) -> String {
    let shown: Vec<(&ServiceName, Option<&Version>)> =
        entries.iter().map(|entry| (&entry.service, entry.to.as_ref().or(entry.from.as_ref()))).collect();
    let rows = entries.iter().enumerate().map(|(at, entry)| {
        [
            human::since(entry.at),
            entry.service.to_string(),
            entry.operation.as_str().to_owned(),
            outcome(entry),
            told_apart(&shown, at),
            human::span(entry.took_us),
            entry.accept_gap_us.map_or_else(String::new, human::span),
            shortened(&by(entry)),
            tail(&entry.id.to_string()),
        ]
    });
    table::table_sparing(
        ["AGO", "SERVICE", "WHAT", "OUTCOME", "TO", "TOOK", "GAP", "BY", "ID"],
        rows,
        "BY",
        wide,
    )
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
    let ending = one_line(&picture::ending(entry));
    let ending = match entry.outcome {
        Ending::Committed | Ending::Started | Ending::Stopped => style.green(&ending),
        Ending::Failed | Ending::Rejected => style.red(&ending),
        Ending::UnderWay | Ending::RolledBack | Ending::Staged | Ending::Other => style.yellow(&ending),
    };
    let head = format!("{} {}", entry.operation.as_str(), style.bold(entry.service.as_str()));
    let mut lines = vec![wrapped(&format!("{head}: {ending}"), 2)];
    let mut add = |label: &str, value: String| {
        lines.push(wrapped(&format!("  {label:<10}{}", one_line(&value)), 12));
    };
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

/// The version's own name, else the name of its file. If another version of the service has the same in this list, the
/// shortest end of the path that differs, or the beginning of the hash.
fn told_apart(shown: &[(&ServiceName, Option<&Version>)], at: usize) -> String {
    let (service, Some(version)) = shown[at] else { return String::new() };
    let others: Vec<&Version> = shown
        .iter()
        .filter(|(of, _)| *of == service)
        .filter_map(|(_, other)| *other)
        .filter(|other| {
            other.sha256 != version.sha256 || other.path != version.path && version.sha256.is_none()
        })
        .collect();
    let length = version.path.components().count();
    for parts in 1..=length {
        let name = short(version, parts);
        if others.iter().all(|other| short(other, parts) != name) {
            return name;
        }
    }
    match version.sha256.as_deref().and_then(|sha256| sha256.get(..8)) {
        Some(hash) => format!("{} ({hash})", short(version, 1)),
        None => short(version, length),
    }
}

/// The version's own name, else the last `parts` of its path.
fn short(version: &Version, parts: usize) -> String {
    let end = || {
        let all: Vec<_> = version.path.components().collect();
        let end: std::path::PathBuf = all[all.len().saturating_sub(parts)..].iter().collect();
        end.display().to_string()
    };
    version.version.clone().unwrap_or_else(end)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn version(path: &str, sha256: &str, name: Option<&str>) -> Version {
        Version { path: path.into(), sha256: Some(sha256.repeat(64)), version: name.map(str::to_owned) }
    }

    #[test]
    fn versions_are_told_apart_by_the_end_of_their_path_or_their_hash() {
        let (web, other) = ("web".parse().unwrap(), "other".parse().unwrap());
        let versions = [
            version("/py/1/app.py", "1", None),
            version("/py/2/app.py", "2", None),
            version("/py/2/app.py", "3", None),
            version("/py/run", "4", None),
            version("/py/5/app.py", "5", Some("5.0")),
        ];
        let mut shown: Vec<(&ServiceName, Option<&Version>)> =
            versions.iter().map(|version| (&web, Some(version))).collect();
        shown.push((&other, Some(&versions[0])));
        shown.push((&other, None));
        let told: Vec<String> = (0..shown.len()).map(|at| told_apart(&shown, at)).collect();
        assert_eq!(told, ["1/app.py", "app.py (22222222)", "app.py (33333333)", "run", "5.0", "app.py", ""]);
    }
}
