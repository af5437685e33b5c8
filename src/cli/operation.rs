//! The shared code of `start`, `stop`, `restart`, `upgrade`, `installed`, `rollback` and `cancel`: the request, its
//! progress, and the end.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::exit::{Exit, Failure};
use super::interrupt::{ContinuationHint, Interrupt};
use super::output::{Output, Style, last_lines_text, note, one_line};
use super::{human, sentence};
use crate::config::Dirs;
use crate::control::Client;
use crate::control::api::{Ending, Outcome, Progress, Request, Response};

/// Performs an operation, shows it, and returns the exit code.
pub(super) fn run(request: &Request, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let outcome = perform(request, dirs, out)?;
    print_outcome(&outcome, out);
    Ok(match outcome.outcome {
        Ending::RolledBack => Exit::RolledBack,
        Ending::Failed => Exit::Failed,
        Ending::Stopped if !matches!(request, Request::Stop(_)) => {
            if !out.is_json() {
                note(format!(
                    "Another command has stopped {0}. To start it: handoff start {0}",
                    outcome.service
                ));
            }
            Exit::Failed
        }
        Ending::Committed
        | Ending::Started
        | Ending::Completed
        | Ending::Stopped
        | Ending::Unchanged
        | Ending::Staged => Exit::Done,
    })
}

/// Performs an operation and shows its phases. The operation belongs to the daemon: an interrupt of this command does
/// not stop it, and prints that.
pub(super) fn perform(request: &Request, dirs: &Dirs, out: &mut Output) -> Result<Outcome, Failure> {
    let mut client = Client::connect(&dirs.control_socket())?;
    // An operation may take long, so a frozen daemon would go unnoticed.
    client.call(&Request::Ping, &mut |_| {})?;
    let interrupt = Interrupt::hold();
    let mut display = ProgressDisplay::new(out.is_json());
    let (shown, asked) = (Arc::new(Mutex::new(String::new())), request.clone());
    let phase = Arc::clone(&shown);
    let watch = interrupt.print_on_interrupt(out.is_json(), display.bar(), move || {
        ContinuationHint::of(&asked, &phase.lock().unwrap_or_else(PoisonError::into_inner))
    });
    let answer = client.call(request, &mut |progress| {
        shown.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&progress.phase);
        display.show(&progress, out);
    });
    drop(watch);
    display.clear();
    match answer? {
        Response::Outcome(outcome) => Ok(*outcome),
        other => unreachable!("the client reads only an outcome as the answer to an operation: {other:?}"),
    }
}

/// Prints how an operation ended.
pub(super) fn print_outcome(outcome: &Outcome, out: &mut Output) {
    let mark = match outcome.outcome {
        Ending::RolledBack => Style::yellow as fn(Style, &str) -> String,
        Ending::Failed => Style::red as _,
        _ if !outcome.killed.is_empty() || outcome.lost_datagrams > 0 => Style::yellow as _,
        Ending::Staged => Style::yellow as _,
        Ending::Committed | Ending::Started | Ending::Completed | Ending::Unchanged => Style::green as _,
        Ending::Stopped => (|_: Style, text: &str| text.to_owned()) as _,
    };
    if out.is_json() {
        out.object(&json!({ "outcome": outcome }));
    } else {
        out.line(mark(Style::of_stdout(), &one_line(&sentence::of(outcome))));
        outcome.last_lines.iter().for_each(|lines| out.line(last_lines_text(lines)));
    }
}

/// How progress is shown.
enum ProgressDisplay {
    /// As objects on standard output.
    Objects,
    /// As lines on standard error.
    Lines,
    /// As lines on a terminal, above a progress line.
    Spinner(ProgressBar),
}

impl ProgressDisplay {
    fn new(json: bool) -> ProgressDisplay {
        if json {
            return ProgressDisplay::Objects;
        }
        if !std::io::stderr().is_terminal() {
            return ProgressDisplay::Lines;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message("asking the daemon");
        bar.enable_steady_tick(Duration::from_millis(100));
        ProgressDisplay::Spinner(bar)
    }

    fn show(&mut self, progress: &Progress, out: &mut Output) {
        match self {
            ProgressDisplay::Objects => out.object(&json!({ "progress": progress })),
            ProgressDisplay::Lines => note(line(progress)),
            ProgressDisplay::Spinner(bar) => {
                bar.println(Style::of_stderr().escape_controls(&line(progress)));
                bar.set_message(format!("{}: {}", progress.service, progress.phase));
            }
        }
    }

    fn bar(&self) -> Option<ProgressBar> {
        match self {
            ProgressDisplay::Spinner(bar) => Some(bar.clone()),
            ProgressDisplay::Objects | ProgressDisplay::Lines => None,
        }
    }

    fn clear(&self) {
        if let ProgressDisplay::Spinner(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// A phase with its time, as one line.
pub(super) fn line(progress: &Progress) -> String {
    let at = format!("+{}", human::span(progress.at_us));
    let detail = progress.detail.as_ref().map_or_else(String::new, |detail| format!("  {detail}"));
    one_line(format!("{at:>10}  {:<10}{detail}", progress.phase).trim_end())
}
