//! An operation as a picture: what supervisor, incumbent and successor did, along a time axis.

use super::human;
use crate::control::api::PhaseTime;
use crate::history::{Ending, Entry, Operation};
use handoff_protocol::message::Mode;

/// Width of the row names before the plot.
const MARGIN: usize = 12;
/// Width after the plot, for the time of its end.
const END: usize = 10;
/// Minimum width of a phase.
const WIDTH_MIN: usize = 3;

/// What one process does in one phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// The process does not exist.
    Absent,
    /// It accepts connections, and may do something else too.
    Serves(&'static str),
    /// It works on the operation, and accepts no connections.
    Works(&'static str),
    /// It waits for the others.
    Waits,
    /// No daemon saw what it did.
    Unknown,
}
use Activity::{Absent, Serves, Unknown, Waits, Works};

/// The lines of the picture, at most `width` columns wide if that is wide enough for a picture.
pub(super) fn draw(entry: &Entry, width: usize) -> Vec<String> {
    let phases = shown(entry);
    if phases.is_empty() {
        return Vec::new();
    }
    let widths = widths(&phases, width.saturating_sub(MARGIN + END));
    let activities = activities(entry, &phases);
    let row =
        |name: &str, cells: Vec<String>| format!("{name:<MARGIN$}{}", cells.concat()).trim_end().to_owned();
    let cells = |party: usize| {
        let of_party = activities.iter().map(|parties| parties[party]);
        merged(of_party, &widths).into_iter().map(|(activity, width)| cell(activity, width)).collect()
    };
    let names = phases.iter().zip(&widths).enumerate();
    let names =
        names.map(|(index, (phase, width))| fit(&label(index, &phase.phase, *width), *width)).collect();
    vec![
        row("", names),
        row("", ticks(&phases, &widths)),
        row("supervisor", cells(0)),
        row("incumbent", cells(1)),
        row("successor", cells(2)),
    ]
}

/// The meaning of the signs.
pub(super) const LEGEND: &str = "█ accepts connections   ▒ at work   · waits   ? not seen";

/// The phases to show. The idle phases after the operation are left out.
pub(super) fn shown(entry: &Entry) -> Vec<&PhaseTime> {
    let rests = ["serving", "stopped", "backoff"];
    entry.phases.iter().filter(|phase| !rests.contains(&phase.phase.as_str())).collect()
}

/// The activities in each phase: supervisor, incumbent, successor.
fn activities(entry: &Entry, phases: &[&PhaseTime]) -> Vec<[Activity; 3]> {
    let is_cold = entry.from.is_none() && entry.operation != Operation::Stop;
    let mut now = [Waits, if is_cold { Absent } else { Serves("") }, Absent];
    let mut is_sealed = false;
    let step = |phase: &&PhaseTime| {
        now[0] = supervisor(&phase.phase);
        let overlap = entry.mode == Mode::Overlap;
        let [_, incumbent, successor] = &mut now;
        let was_cold = *incumbent == Absent;
        match phase.phase.as_str() {
            "greeting" | "warming" => *successor = Works("starts"),
            "draining" => (*incumbent, *successor) = (Serves("drains"), Waits),
            "sealing" => {
                is_sealed = true;
                *incumbent = Works("seals");
            }
            "beginning" => {
                *successor = Works("begins");
                if !overlap {
                    (is_sealed, *incumbent) = (true, Waits);
                }
            }
            "probing" if overlap => *successor = Works("is probed"),
            "probing" => *successor = Serves("is probed"),
            "committing" => {
                *successor = Serves("");
                if *incumbent == Unknown && !overlap {
                    *incumbent = Waits;
                }
            }
            // What an earlier daemon saw is not on record, and none saw what came after it.
            "recovering" => (*incumbent, *successor) = (Unknown, Unknown),
            "canary" => (*incumbent, *successor) = (Serves("shares"), Serves("shares")),
            "probation" => (*incumbent, *successor) = (Waits, Serves("on probation")),
            "retiring" => (*incumbent, *successor) = (Works("leaves"), Serves("")),
            "reaping" => {
                *successor = Works("is ended");
                *incumbent = if is_sealed { Waits } else { Serves("") };
            }
            "resuming" | "reverting" => (*incumbent, *successor) = (Works("resumes"), Absent),
            "stopping" => *incumbent = Works("stops"),
            _ => {}
        }
        if was_cold {
            *incumbent = Absent;
        }
        now
    };
    phases.iter().map(step).collect()
}

fn supervisor(phase: &str) -> Activity {
    match phase {
        "importing" => Works("imports"),
        "preflight" => Works("preflight"),
        "hook" => Works("hook"),
        "recovering" => Works("recovers"),
        "probing" => Works("probes"),
        "committing" => Works("records"),
        "reverting" => Works("records"),
        _ => Waits,
    }
}

/// The width of each phase: in proportion to its time, but always wide enough to be seen. If all names fit, each
/// phase is wide enough for its own.
fn widths(phases: &[&PhaseTime], room: usize) -> Vec<usize> {
    let named: Vec<usize> = phases.iter().map(|phase| phase.phase.chars().count() + 1).collect();
    let least = if named.iter().sum::<usize>() <= room { named } else { vec![WIDTH_MIN; phases.len()] };
    let left = room.saturating_sub(least.iter().sum());
    let total: u64 = phases.iter().map(|phase| phase.took_us).sum::<u64>().max(1);
    let share = |took_us: u64| (left as u128 * u128::from(took_us) / u128::from(total)) as usize;
    least.iter().zip(phases).map(|(least, phase)| least + share(phase.took_us)).collect()
}

/// The name of a phase, or its number in the table below if there is no room.
fn label(index: usize, phase: &str, width: usize) -> String {
    if phase.chars().count() < width { phase.to_owned() } else { (index + 1).to_string() }
}

/// The start times of the phases, each if there is room before the next.
fn ticks(phases: &[&PhaseTime], widths: &[usize]) -> Vec<String> {
    let mut line = String::new();
    let mut at = 0;
    for (phase, width) in phases.iter().zip(widths) {
        let text = format!("|{}", human::span(phase.started_us));
        let used = line.chars().count();
        if used <= at {
            line.push_str(&" ".repeat(at - used));
            line.push_str(&text);
            // A gap before the next one.
            line.push(' ');
        }
        at += width;
    }
    let end = phases.last().map(|phase| phase.started_us.saturating_add(phase.took_us));
    let used = line.chars().count();
    if let Some(end) = end.filter(|_| used <= at) {
        line.push_str(&" ".repeat(at - used));
        line.push_str(&format!("|{}", human::span(end)));
    }
    vec![line]
}

/// Merges neighbouring phases in which a process does the same.
fn merged(activities: impl Iterator<Item = Activity>, widths: &[usize]) -> Vec<(Activity, usize)> {
    let mut cells: Vec<(Activity, usize)> = Vec::new();
    for (activity, width) in activities.zip(widths) {
        match cells.last_mut() {
            Some((last, so_far)) if *last == activity => *so_far += width,
            _ => cells.push((activity, *width)),
        }
    }
    cells
}

/// A bar with its word, if the word fits.
fn cell(activity: Activity, width: usize) -> String {
    let (sign, word) = match activity {
        Absent => (' ', ""),
        Serves(word) => ('█', word),
        Works(word) => ('▒', word),
        Waits => ('·', ""),
        Unknown => ('?', ""),
    };
    let length = word.chars().count();
    if length == 0 || length + 3 > width {
        return sign.to_string().repeat(width);
    }
    let left = (width - length - 2) / 2;
    let bar = |width: usize| sign.to_string().repeat(width);
    format!("{} {word} {}", bar(left), bar(width - length - 2 - left))
}

fn fit(text: &str, width: usize) -> String {
    let cut: String = text.chars().take(width).collect();
    format!("{cut:<width$}")
}

/// One sentence that says how it ended.
pub(super) fn ending(entry: &Entry) -> String {
    let took = human::span(entry.took_us);
    let gap =
        entry.accept_gap_us.map_or_else(String::new, |gap| format!(", accept gap {}", human::span(gap)));
    let reason = entry.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
    match entry.outcome {
        Ending::UnderWay => format!("{} for {took}", entry.outcome.description()),
        outcome => format!("{} after {took}{gap}{reason}", outcome.description()),
    }
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
