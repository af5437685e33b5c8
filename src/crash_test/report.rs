//! The results of all runs, for people and for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;

use super::fault::{Fault, ProcessRole};
use super::matrix::Job;
use super::run::{RunReport, RunResult};
use super::scenario::Scenario;
use crate::sys::clock::as_ms;

/// Quantiles of a set of times, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// The number of times.
    pub count: usize,
    /// Half of the times are at most this.
    pub p50_ms: f64,
    /// 99 % of the times are at most this.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Quantiles {
    /// The spread of these times.
    pub fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |hundredths: usize| {
            let rank = (times.len() * hundredths).div_ceil(100).max(1);
            times.get(rank - 1).copied().unwrap_or_default()
        };
        Self { count: times.len(), p50_ms: at(50), p99_ms: at(99), max_ms: at(100) }
    }
}

/// One run of the report.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Entry {
    /// The run, in the form of `--only`.
    pub(super) run: String,
    pub(super) scenario: Scenario,
    /// The last victim and its fault; none in a run without faults.
    pub(super) hit: Option<(ProcessRole, Fault)>,
    pub(super) verdict: RunResult,
    pub(super) gap_ms: Option<f64>,
    pub(super) recovered_ms: Option<f64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) log: String,
}

impl Entry {
    pub(super) fn new(job: &Job, finding: &RunReport) -> Self {
        Self {
            run: job.to_string(),
            scenario: job.scenario,
            hit: job.chain.last().map(|last| (last.victim, last.fault)),
            verdict: finding.result.clone(),
            gap_ms: finding.gap_ms,
            recovered_ms: finding.recovered_ms,
            log: finding.log.clone(),
        }
    }
}

/// The results of all runs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Number of points found.
    pub points: usize,
    /// Number of runs, including those without faults.
    pub runs: usize,
    /// Number of runs in which all checks passed.
    pub held: usize,
    /// Number of runs that did not reach their point.
    pub missed: usize,
    /// Number of runs in which a check failed.
    pub failed: usize,
    /// Duration of all runs.
    pub took_ms: u64,
    /// Whether it was interrupted before all runs were done.
    pub interrupted: bool,
    /// The time without an answer to any client, in runs that held, by victim and fault.
    pub without_service: BTreeMap<String, Quantiles>,
    /// All runs.
    pub(super) entries: Vec<Entry>,
}

impl Report {
    pub(super) fn new(
        points: &BTreeSet<String>,
        entries: Vec<Entry>,
        took: std::time::Duration,
        interrupted: bool,
    ) -> Self {
        let count =
            |verdict: fn(&RunResult) -> bool| entries.iter().filter(|entry| verdict(&entry.verdict)).count();
        let mut gaps: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.verdict == RunResult::Held) {
            let during = match entry.scenario {
                Scenario::Serve => " at rest",
                Scenario::Upgrade => " in an upgrade",
                _ => " otherwise",
            };
            let class = match entry.hit {
                Some((victim, fault)) => format!("{victim} {fault}{during}"),
                None => format!("no fault{during}"),
            };
            gaps.entry(class).or_default().extend(entry.gap_ms);
        }
        Self {
            points: points.len(),
            runs: entries.len(),
            held: count(|verdict| *verdict == RunResult::Held),
            missed: count(|verdict| *verdict == RunResult::Missed),
            failed: count(|verdict| matches!(verdict, RunResult::Failed(_))),
            took_ms: as_ms(took),
            interrupted,
            without_service: gaps.into_iter().map(|(class, times)| (class, Quantiles::of(times))).collect(),
            entries,
        }
    }

    /// Whether all runs were done, none failed, and at least one held.
    pub fn is_good(&self) -> bool {
        self.failed == 0 && self.held > 0 && !self.interrupted
    }

    /// The number of runs that held, by scenario, victim and fault.
    fn counts(&self) -> Table {
        let hits: BTreeSet<(ProcessRole, Fault)> =
            self.entries.iter().filter_map(|entry| entry.hit).collect();
        let scenarios: BTreeSet<Scenario> = self.entries.iter().map(|entry| entry.scenario).collect();
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        let heads = hits.iter().map(|(victim, fault)| format!("{victim} {fault}"));
        table.set_header(["held of runs".to_owned(), "points".to_owned()].into_iter().chain(heads));
        for scenario in scenarios {
            let of: Vec<&Entry> = self.entries.iter().filter(|entry| entry.scenario == scenario).collect();
            let points: BTreeSet<&str> = of.iter().filter_map(|entry| entry.run.rsplit(':').nth(2)).collect();
            let cells = hits.iter().map(|hit| {
                let all: Vec<_> = of.iter().filter(|entry| entry.hit == Some(*hit)).collect();
                let shown = all.iter().filter(|entry| entry.verdict != RunResult::Missed).count();
                let held = all.iter().filter(|entry| entry.verdict == RunResult::Held).count();
                if all.is_empty() { "-".to_owned() } else { format!("{held}/{shown}") }
            });
            table.add_row([scenario.to_string(), points.len().to_string()].into_iter().chain(cells));
        }
        table
    }

    fn gaps(&self) -> Table {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header(["time without service", "runs", "p50 ms", "p99 ms", "max ms"]);
        for (class, spread) in &self.without_service {
            let ms = |value: f64| format!("{value:.1}");
            table.add_row([
                class.clone(),
                spread.count.to_string(),
                ms(spread.p50_ms),
                ms(spread.p99_ms),
                ms(spread.max_ms),
            ]);
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n\n{}\n", self.counts(), self.gaps())?;
        let Self { points, runs, held, missed, failed, took_ms, .. } = self;
        let seconds = took_ms / 1000;
        write!(
            f,
            "{points} points, {runs} runs in {seconds} s: {held} held, {missed} missed the point, {failed} failed"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_happened() {
        let spread = Quantiles::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(spread, Quantiles { count: 200, p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 });
        assert_eq!(Quantiles::of(vec![7.0]), Quantiles { count: 1, p50_ms: 7.0, p99_ms: 7.0, max_ms: 7.0 });
        assert_eq!(Quantiles::of(Vec::new()), Quantiles::default());
    }
}
