//! `handoff reload`.

use serde_json::json;

use super::exit::{Exit, Failure};
use super::interrupt::{ContinuationHint, Interrupt};
use super::output::{Output, Style, last_lines_text, note, one_line};
use super::table::{Wide, table, wrapped};
use super::{Json, operation, sentence};
use crate::config::Dirs;
use crate::control::Client;
use crate::control::api::{
    Ending, FileChange, PlannedService, Reload, ReloadResult, Reloaded, Request, Response,
};

const EXAMPLES: &str = "\
Examples:
  handoff reload --dry-run       what would change, and what would it cost?
  handoff reload                 apply all of it, if no client is refused
  handoff reload --allow-stop    also what stops a service

All service files are read. If one of them is broken, nothing is applied. The
exit code is 3 then, and also if a service would be stopped without
--allow-stop; 4 if a service serves on with its old settings.";

/// Apply changed, new and removed service files
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Also apply what refuses clients: removed files, and changes that a handoff cannot make
    #[arg(long, conflicts_with = "dry_run")]
    allow_stop: bool,
    #[command(flatten)]
    wide: Wide,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let Arguments { dry_run, allow_stop, wide, .. } = *arguments;
    let reloaded = perform(Reload { dry_run, allow_stop }, dirs, out)?;
    if out.is_json() {
        out.object(&reloaded);
    } else {
        print(&reloaded, dry_run, wide, out);
    }
    Ok(exit(&reloaded))
}

/// The daemon does the work: an interrupt of this command does not stop it.
fn perform(reload: Reload, dirs: &Dirs, out: &mut Output) -> Result<Reloaded, Failure> {
    let mut client = Client::connect(&dirs.control_socket())?;
    client.call(&Request::Ping, &mut |_| {})?;
    let watch = Interrupt::hold().print_on_interrupt(out.is_json(), None, ContinuationHint::reload);
    let answer = client.call(&Request::Reload(reload), &mut |progress| {
        if out.is_json() {
            out.object(&json!({ "progress": progress }));
        } else {
            note(format!("{}: {}", progress.service, operation::line(&progress).trim_start()));
        }
    });
    drop(watch);
    match answer? {
        Response::Reload(reloaded) => Ok(*reloaded),
        other => unreachable!("the client reads only a plan as the answer to reload: {other:?}"),
    }
}

fn exit(reloaded: &Reloaded) -> Exit {
    if reloaded.is_broken() || reloaded.refused.is_some() {
        return Exit::ConfigInvalid;
    }
    let ended = |result: &ReloadResult| match &result.outcome {
        Some(outcome) if outcome.outcome == Ending::RolledBack => Exit::RolledBack,
        Some(outcome) if outcome.outcome != Ending::Failed => Exit::Done,
        _ => Exit::Failed,
    };
    let ends: Vec<Exit> = reloaded.results.iter().map(ended).collect();
    let first = |wanted| ends.iter().copied().find(|exit| *exit == wanted);
    first(Exit::Failed).or_else(|| first(Exit::RolledBack)).unwrap_or(Exit::Done)
}

fn print(reloaded: &Reloaded, dry_run: bool, wide: Wide, out: &mut Output) {
    let differ: Vec<&PlannedService> =
        reloaded.plan.iter().filter(|row| row.change != FileChange::Unchanged).collect();
    if !differ.is_empty() {
        out.line(table(["SERVICE", "CHANGE", "COST", "KEYS"], differ.iter().map(|row| cells(row)), wide));
    }
    for error in differ.iter().flat_map(|row| &row.errors) {
        out.line(wrapped(&one_line(&error.to_string()), 2));
    }
    let style = Style::of_stdout();
    for result in &reloaded.results {
        out.line(wrapped(&one_line(&ended(result, style)), 2));
        let failed = result.error.as_ref().and_then(|error| error.last_lines.as_deref());
        let lines = failed.or(result.outcome.as_ref().and_then(|outcome| outcome.last_lines.as_ref()));
        lines.into_iter().for_each(|lines| out.line(last_lines_text(lines)));
    }
    let unchanged = reloaded.plan.len() - differ.len();
    out.line(wrapped(&summary(reloaded, unchanged, dry_run), 2));
}

fn cells(row: &PlannedService) -> [String; 4] {
    let cost = if row.change == FileChange::Broken { "" } else { row.cost.as_str() };
    [
        row.service.as_ref().map_or_else(String::new, ToString::to_string),
        row.change.as_str().to_owned(),
        cost.to_owned(),
        row.keys.join(" "),
    ]
}

fn ended(result: &ReloadResult, style: Style) -> String {
    match (&result.error, &result.outcome) {
        (Some(error), _) => style.red(&format!("{}: {} {}", result.service, error.message, error.hint)),
        (None, Some(outcome)) if outcome.outcome == Ending::RolledBack => {
            let said = sentence::of(outcome);
            style.yellow(&format!("{said} It serves on with its old settings."))
        }
        (None, Some(outcome)) => sentence::of(outcome),
        (None, None) => String::new(),
    }
}

fn summary(reloaded: &Reloaded, unchanged: usize, dry_run: bool) -> String {
    let services = if unchanged == 1 { "service is" } else { "services are" };
    let rest = format!("{unchanged} {services} unchanged.");
    if let Some(refused) = &reloaded.refused {
        return one_line(refused);
    }
    match dry_run {
        true if reloaded.is_broken() => "Nothing would be applied, because a file is broken.".to_owned(),
        true if reloaded.plan.iter().any(|row| row.cost.stops()) => {
            format!("{rest} To apply it: handoff reload --allow-stop")
        }
        true if reloaded.plan.iter().any(|row| row.change != FileChange::Unchanged) => {
            format!("{rest} To apply it: handoff reload")
        }
        _ => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::Cost;

    fn row(change: FileChange, cost: Cost) -> PlannedService {
        PlannedService { service: "web".parse().ok(), change, keys: Vec::new(), cost, errors: Vec::new() }
    }

    #[test]
    fn the_summary_says_how_to_apply_a_plan() {
        let of = |rows: Vec<PlannedService>| {
            let reloaded = Reloaded { applied: false, refused: None, plan: rows, results: Vec::new() };
            (summary(&reloaded, 0, true), exit(&reloaded))
        };
        let (said, code) = of(vec![row(FileChange::Changed, Cost::Handoff)]);
        assert!(said.ends_with("handoff reload") && code == Exit::Done, "{said}");
        let (said, code) = of(vec![row(FileChange::Removed, Cost::Stop)]);
        assert!(said.ends_with("--allow-stop") && code == Exit::Done, "{said}");
        let (said, code) = of(vec![row(FileChange::Broken, Cost::Nothing)]);
        assert!(said.starts_with("Nothing would") && code == Exit::ConfigInvalid, "{said}");
        assert_eq!(of(vec![row(FileChange::Unchanged, Cost::Nothing)]).0, "0 services are unchanged.");
    }
}
