//! `handoff status`.

use handoff_protocol::ids::ServiceName;
use handoff_protocol::message::Mode;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::{Output, Style};
use super::{Json, ask, human, list, sentence};
use crate::config::Dirs;
use crate::control::api::{Request, Response, ServiceStatus, Skew, State};

const EXAMPLES: &str = "\
Examples:
  handoff status               every service
  handoff status s3            one
  handoff status s3 --json | jq -r .state";

/// Show what a service is doing and how its last upgrade ended
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Only this service
    service: Option<ServiceName>,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let Some(service) = &arguments.service else { return all(dirs, out) };
    match ask(dirs, &Request::Status(service.clone()))? {
        Response::Status(status) if out.is_json() => out.object(&status),
        Response::Status(status) => out.line(describe(&status, Style::of_stdout())),
        other => unreachable!("the client reads only a status as the answer to status: {other:?}"),
    }
    Ok(Exit::Done)
}

fn all(dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let services = list::services(dirs)?;
    if out.is_json() {
        out.object(&json!({ "services": services }));
    } else if services.is_empty() {
        out.line("The daemon has no services.");
    } else {
        let style = Style::of_stdout();
        let texts: Vec<String> = services.iter().map(|status| describe(status, style)).collect();
        out.line(texts.join("\n\n"));
    }
    Ok(Exit::Done)
}

fn describe(status: &ServiceStatus, style: Style) -> String {
    let state = match status.state {
        State::Serving => style.green(status.state.as_str()),
        State::Failed | State::Backoff => style.red(status.state.as_str()),
        State::Recovering | State::Starting | State::Upgrading | State::Stopping => {
            style.yellow(status.state.as_str())
        }
        State::Stopped => status.state.as_str().to_owned(),
    };
    let phase = status.phase.as_ref().map_or_else(String::new, |phase| format!(" ({phase})"));
    let mut lines = vec![format!("{}: {state}{phase}", style.bold(status.service.as_str()))];
    let mut add = |label: &str, value: String| lines.push(format!("  {label:<12}{value}"));
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
            Skew::Changed => {
                format!("another file is there now; to run it: handoff upgrade {}", status.service)
            }
            Skew::Gone => "no file is there any more; what runs is in the store".to_owned(),
            Skew::Deleted => "no file is there any more: what runs could not be started again".to_owned(),
        };
        add("skew", style.yellow(&what));
    }
    add("generation", status.generation.to_string());
    if let Some(pid) = status.pid {
        let up = status.started_at.map_or_else(String::new, |at| format!(", up {}", human::since(at)));
        let program = status.program.map_or_else(String::new, |pid| format!("; its program is {pid}"));
        add("pid", format!("{pid}{up}{program}"));
    }
    add("restarts", status.restarts.to_string());
    add("mode", mode_word(status.mode).to_owned());
    for listener in &status.listeners {
        add("listens", format!("{} = {}", listener.name, listener.address));
    }
    if let Some(last) = &status.last_handoff {
        add("last", sentence::of(last));
    }
    lines.join("\n")
}

fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "exclusive",
        Mode::Overlap => "overlap",
    }
}
