//! The results of the demo: a table for people, or one JSON object for programs.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::load::failure::Kind;
use crate::load::meter::{Meter, Quantiles};

/// All results.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether clients noticed nothing, every good release was committed, and every bad one rolled back.
    pub ok: bool,
    /// Number of committed upgrades.
    pub committed: usize,
    /// Number of rolled back upgrades.
    pub rolled_back: usize,
    /// Descriptions of upgrades with an unexpected result.
    pub surprises: Vec<String>,
    /// Number of requests of all clients.
    pub requests: u64,
    /// Failures that clients noticed, by kind.
    pub failures: BTreeMap<&'static str, u64>,
    /// Descriptions of the first failures.
    pub examples: Vec<String>,
    /// Latency of requests outside of upgrades.
    pub latency_steady: Quantiles,
    /// Latency of requests during upgrades, including rollbacks.
    pub latency_upgrading: Quantiles,
    /// Time without accepts in a committed upgrade.
    pub accept_gap: Quantiles,
    /// Time without accepts in a rolled back upgrade.
    pub accept_gap_rolled_back: Quantiles,
    /// Duration of a committed upgrade, including the drain of slow uploads.
    pub upgrade_time: Quantiles,
}

/// The results of all upgrades of a run.
#[derive(Debug)]
pub struct Upgrades {
    /// Number of committed upgrades.
    pub committed: usize,
    /// Number of rolled back upgrades.
    pub rolled_back: usize,
    /// Descriptions of upgrades with an unexpected result.
    pub surprises: Vec<String>,
    /// See [`Report::accept_gap`].
    pub accept_gap: Quantiles,
    /// See [`Report::accept_gap_rolled_back`].
    pub accept_gap_rolled_back: Quantiles,
    /// See [`Report::upgrade_time`].
    pub upgrade_time: Quantiles,
}

impl Report {
    /// Combines the results of the clients and the upgrades.
    pub fn new(meter: &Meter, upgrades: Upgrades) -> Self {
        let (latency_steady, latency_upgrading) = meter.latencies();
        Self {
            ok: meter.failures() == 0 && upgrades.surprises.is_empty(),
            committed: upgrades.committed,
            rolled_back: upgrades.rolled_back,
            surprises: upgrades.surprises,
            requests: meter.requests(),
            failures: Kind::ALL.iter().map(|kind| (kind.word(), meter.count(*kind))).collect(),
            examples: meter.examples(),
            latency_steady,
            latency_upgrading,
            accept_gap: upgrades.accept_gap,
            accept_gap_rolled_back: upgrades.accept_gap_rolled_back,
            upgrade_time: upgrades.upgrade_time,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |kind: Kind| self.failures.get(kind.word()).copied().unwrap_or_default().to_string();
        let mut counts = table(["what happened", "count"]);
        counts.add_row(["upgrades committed", &self.committed.to_string()]);
        counts.add_row(["upgrades rolled back", &self.rolled_back.to_string()]);
        counts.add_row(["requests", &self.requests.to_string()]);
        counts.add_row(["refused", &count(Kind::Refused)]);
        counts.add_row(["reset", &count(Kind::Reset)]);
        counts.add_row(["cut", &count(Kind::Cut)]);
        counts.add_row(["timed out", &count(Kind::Timeout)]);
        counts.add_row(["error status", &count(Kind::Status)]);
        counts.add_row(["wrong bytes", &count(Kind::Wrong)]);
        counts.add_row(["lost acknowledged writes", &count(Kind::Lost)]);
        counts.add_row(["other failures", &count(Kind::Other)]);

        let mut times = table(["how long it took", "count", "p50", "p99", "max"]);
        let rows = [
            ("request, steady state", self.latency_steady),
            ("request, during upgrades", self.latency_upgrading),
            ("accept gap, committed", self.accept_gap),
            ("accept gap, rolled back", self.accept_gap_rolled_back),
            ("upgrade, committed", self.upgrade_time),
        ];
        for (what, spread) in rows.into_iter().filter(|(_, spread)| spread.count > 0) {
            let [p50, p99, max] = [spread.p50_us, spread.p99_us, spread.max_us].map(duration);
            times.add_row([what.to_owned(), spread.count.to_string(), p50, p99, max]);
        }
        writeln!(f, "{counts}\n{times}")?;
        for problem in self.surprises.iter().chain(&self.examples) {
            writeln!(f, "! {problem}")?;
        }
        match self.ok {
            true => write!(f, "No client noticed anything, and both bad releases were rolled back."),
            false => write!(f, "Something went wrong: see above."),
        }
    }
}

fn table<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Formats microseconds for people.
pub fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::failure::Failure;

    fn upgrades(surprises: &[&str]) -> Upgrades {
        let spread = Quantiles { count: 8, p50_us: 840, p99_us: 1_230, max_us: 2_500_000 };
        Upgrades {
            committed: 8,
            rolled_back: 2,
            surprises: surprises.iter().map(|text| (*text).to_owned()).collect(),
            accept_gap: spread,
            accept_gap_rolled_back: Quantiles::default(),
            upgrade_time: spread,
        }
    }

    #[test]
    fn a_report_is_ok_only_if_nothing_went_wrong() {
        let meter = Meter::default();
        let report = Report::new(&meter, upgrades(&[]));
        assert!(report.ok);
        let text = report.to_string();
        assert!(text.contains("840 µs") && text.contains("1.23 ms") && text.contains("2.50 s"), "{text}");
        assert!(text.ends_with("both bad releases were rolled back."), "{text}");

        assert!(!Report::new(&meter, upgrades(&["1.4.0 was committed"])).ok);
        for kind in Kind::ALL {
            let meter = Meter::default();
            meter.failed(&Failure::new(kind, "seen"));
            let report = Report::new(&meter, upgrades(&[]));
            assert!(!report.ok, "{kind:?}");
            let json = serde_json::to_value(&report).unwrap();
            assert_eq!(json["failures"][kind.word()], 1, "{json}");
            assert!(report.to_string().contains("seen"), "{report}");
        }
    }
}
