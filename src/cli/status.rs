//! `handoff status`.

use handoff_protocol::message::Mode;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::{Output, Style, last_lines_text, one_line};
use super::selection::{self, Wanted};
use super::table::wrapped;
use super::{Json, ask, human, list, sentence, stale};
use crate::config::Dirs;
use crate::control::api::{
    DecidedBy, FileChange, Named, NamedIs, Request, Response, ServiceStatus, Skew, StagedStatus, State,
};

const EXAMPLES: &str = "\
Examples:
  handoff status               all services
  handoff status s3            one service
  handoff status 'web-*'       all with such a name
  handoff status s3 --json | jq -r .state";

/// Show what a service does, and how its last upgrade ended
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
    if arguments.services.is_empty() {
        return all(dirs, out);
    }
    match some(&arguments.services, dirs, out) {
        Err(failure) => stale::status(failure, &arguments.services, dirs, out),
        ended => ended,
    }
}

fn some(wanted: &[Wanted], dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let selected = selection::resolve(wanted, dirs)?;
    for (index, service) in selected.into_iter().enumerate() {
        match ask(dirs, &Request::Status(service))? {
            Response::Status(status) if out.is_json() => out.object(&status),
            Response::Status(status) => {
                let space = if index > 0 { "\n" } else { "" };
                out.line(format!("{space}{}", describe(&status, Style::of_stdout())));
            }
            other => unreachable!("the client reads only a status as the answer to status: {other:?}"),
        }
    }
    Ok(Exit::Done)
}

fn all(dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let services = match list::services(dirs) {
        Ok(services) => services,
        Err(failure) => return stale::list(failure, None, dirs, out),
    };
    let misnamed = list::misnamed(dirs);
    if out.is_json() {
        out.object(&json!({ "services": services, "errors": misnamed }));
        return Ok(Exit::Done);
    }
    if services.is_empty() {
        out.line(list::none(dirs));
    } else {
        let style = Style::of_stdout();
        let texts: Vec<String> = services.iter().map(|status| describe(status, style)).collect();
        out.line(texts.join("\n\n"));
    }
    list::print_mistakes(&misnamed, out);
    Ok(Exit::Done)
}

pub(super) fn describe(status: &ServiceStatus, style: Style) -> String {
    let state = painted(status.state, style);
    let phase = status.phase.as_ref().map_or_else(String::new, |phase| format!(" ({phase})"));
    let mut lines = vec![format!("{}: {state}{phase}", style.bold(status.service.as_str()))];
    let mut add = |label: &str, value: String| {
        lines.push(wrapped(&format!("  {label:<12}{}", one_line(&value)), 14));
    };
    if let Some(detail) = &status.detail {
        add("detail", detail.clone());
    }
    if let Some(problem) = &status.problem {
        add("problem", style.red(problem));
    }
    let sha256 =
        status.sha256.as_deref().map_or_else(String::new, |sha| format!(" (sha256 {})", human::short(sha)));
    add("binary", format!("{}{sha256}", status.binary.display()));
    if let Some(version) = &status.version {
        add("version", version.clone());
    }
    if let Some(skew) = status.skew {
        let what = match skew {
            Skew::Changed if status.named.is_some() => {
                let (service, path) = (&status.service, status.binary.display());
                format!("another file is there now; to run it: handoff installed {service} {path}")
            }
            Skew::Changed => {
                format!("another file is there now; to run it: handoff upgrade {}", status.service)
            }
            Skew::Gone => "no file is there any more; what runs is in the store".to_owned(),
            Skew::Deleted => "no file is there any more: what runs could not be started again".to_owned(),
        };
        add("skew", style.yellow(&what));
    }
    if let Some(Named { binary, is }) = &status.named {
        let (service, named) = (&status.service, binary.display());
        let what = match is {
            NamedIs::Newer => format!("{named}, newer than what runs; to run it: handoff upgrade {service}"),
            NamedIs::Older => {
                format!(
                    "{named}, older than what runs; to go back: handoff upgrade {service} --binary {named}"
                )
            }
        };
        add("file names", style.yellow(&what));
    }
    match &status.file {
        Some(file) if file.is == FileChange::Changed => {
            add("file", style.yellow(&list::changed_file(status).unwrap_or_default()))
        }
        // The problem says more.
        Some(file) => add("file", style.red(file.is.as_str())),
        None => {}
    }
    if let Some(StagedStatus { binary, version }) = &status.staged {
        let version = version.as_ref().map_or_else(String::new, |version| format!(" ({version})"));
        add("next start", format!("{}{version}", binary.display()));
    }
    add("generation", status.generation.to_string());
    if let Some(pid) = status.pid {
        let up = status.started_at.map_or_else(String::new, |at| format!(", up {}", human::since(at)));
        let shim = status.shim.map_or_else(String::new, |shim| format!("; run by the shim {shim}"));
        add("pid", format!("{pid}{up}{shim}"));
    }
    if let Some(at) = status.next_try_at {
        add("next try", human::until(at));
    }
    if let Some(text) = at_start(status) {
        add("autostart", text.to_owned());
    }
    add("restarts", status.restarts.to_string());
    if let Some(exit) = &status.last_exit {
        add("last exit", format!("it {exit}"));
    }
    add("mode", mode_word(status.mode).to_owned());
    for listener in &status.listeners {
        add("listens", format!("{} = {}", listener.name, listener.address));
    }
    if let Some(last) = &status.last_handoff {
        add("last", sentence::of(last));
    }
    if let Some(last) = &status.last_lines {
        lines.push(last_lines_text(last).replace('\n', "\n  ").replacen("The last", "  the last", 1));
    }
    lines.join("\n")
}

/// Whether it starts with the daemon, if a person has decided that.
fn at_start(status: &ServiceStatus) -> Option<&'static str> {
    match (status.autostart.decided_by, status.autostart.starts) {
        (DecidedBy::File, true) => None,
        (DecidedBy::File, false) => Some("no (its file says so)"),
        (DecidedBy::Enable, _) => Some("yes (it was enabled)"),
        (DecidedBy::Disable, _) => Some("no (it was disabled)"),
        (DecidedBy::Stop, _) => Some("no (it was stopped)"),
    }
}

/// The word of a state, in its colour.
pub(super) fn painted(state: State, style: Style) -> String {
    match state {
        State::Serving | State::Running => style.green(state.as_str()),
        State::Failed | State::Backoff => style.red(state.as_str()),
        State::Recovering | State::Waiting | State::Starting | State::Upgrading | State::Stopping => {
            style.yellow(state.as_str())
        }
        State::Stopped | State::Exited => state.as_str().to_owned(),
    }
}

fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "exclusive",
        Mode::Overlap => "overlap",
    }
}
