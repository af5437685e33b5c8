//! The results of the benchmark: tables for people, or one JSON object for programs.

use std::fmt;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::burst::Burst;
use crate::deaths::Row;
use crate::floor::Floor;
use crate::idle::Idle;
use crate::injection::Injection;
use crate::machine::Machine;
use crate::spread::Spread;
use crate::syncs::Syncs;
use crate::takeover::Takeovers;
use crate::upgrades::Series;

/// All results.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Upgrades of a service without requests.
    pub quiet: Vec<Series>,
    /// Upgrades to a newly written binary.
    pub unseen: Vec<Series>,
    /// Upgrades of a service under continuous requests.
    pub busy: Vec<Series>,
    /// Number of the supervisors' disk barriers; `None` without strace.
    pub syncs: Option<Vec<Syncs>>,
    /// Clients that connect while no process accepts.
    pub bursts: Vec<Burst>,
    /// Idle supervisors.
    pub idle: Vec<Idle>,
    /// Killed daemons and their successors.
    pub takeovers: Vec<Takeovers>,
    /// How long clients wait after a death or freeze.
    pub deaths: Vec<Row>,
    /// From a new file to the running version.
    pub installs: Vec<Row>,
    /// Time without service when a new version dies on probation.
    pub probation: Vec<Row>,
    /// The costs of the adapter `inject` for a program.
    pub injection: Option<Injection>,
    /// The costs of the machine itself.
    pub floor: Floor,
}

impl Report {
    /// Number of burst clients without an answer. All other failures end the run.
    pub fn failed(&self) -> usize {
        self.bursts.iter().map(|burst| burst.failed).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { kernel, processor, processors, filesystem, load_before, load_after } = &self.machine;
        writeln!(
            f,
            "{kernel}, {processors} processors ({processor}), {filesystem}, load {load_before} to {load_after}"
        )?;
        if !self.quiet.is_empty() {
            self.upgrades(f)?;
        }
        if !self.takeovers.is_empty() {
            writeln!(f, "{}", self.takeover_table())?;
        }
        for rows in
            [&self.deaths, &self.installs, &self.probation].into_iter().filter(|rows| !rows.is_empty())
        {
            let rows = rows.iter().map(|row| ("handoff", row.what.to_owned(), row.spread));
            writeln!(f, "{}", times(rows))?;
        }
        if let Some(injection) = &self.injection {
            writeln!(f, "{injection}")?;
        }
        let floor = &self.floor;
        let floor = [
            ("start a process and wait for its end", floor.process),
            ("append 4 KiB and fdatasync", floor.sync),
            ("round trip over a socketpair", floor.round_trip),
        ];
        write!(f, "{}", times(floor.map(|(what, spread)| ("this machine", what.to_owned(), spread))))
    }
}

fn rows(series: &Series, when: &str) -> Vec<(&'static str, String, Spread)> {
    let rows = [
        ("upgrade, request to commit", Some(series.own)),
        ("upgrade, request to answer", Some(series.client)),
        ("accept gap, by the processes", Some(series.gap)),
        ("accept gap, by the supervisor", series.told_gap),
        ("longest wait of a request", series.stall),
        ("every request", series.requests),
    ];
    rows.into_iter()
        .filter_map(|(what, spread)| Some((series.name, format!("{what}{when}"), spread?)))
        .collect()
}

fn times(rows: impl IntoIterator<Item = (&'static str, String, Spread)>) -> Table {
    let mut table = table(["who", "how long it took", "count", "p50", "p99", "max"], 2);
    for (who, what, spread) in rows {
        let [p50, p99, max] = [spread.p50_us, spread.p99_us, spread.max_us].map(duration);
        table.add_row([who.to_owned(), what, spread.count.to_string(), p50, p99, max]);
    }
    table
}

impl Report {
    fn upgrades(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quiet = times(self.quiet.iter().flat_map(|series| rows(series, "")));
        let unseen =
            self.unseen.iter().map(|series| (series.name, "upgrade to a new file".to_owned(), series.own));
        let busy = self.busy.iter().flat_map(|series| rows(series, ", under requests"));
        writeln!(f, "{quiet}\n{}\n{}", times(unseen.chain(busy)), self.phases())?;
        match &self.syncs {
            Some(syncs) => writeln!(f, "{}", syncs_table(syncs))?,
            None => writeln!(
                f,
                "strace is missing or may not trace: disk barriers and system calls are not counted"
            )?,
        }
        writeln!(f, "{}\n{}", self.burst_table(), self.idle_table())
    }

    fn phases(&self) -> Table {
        let mut table = table(["who", "phase", "p50"], 2);
        for series in &self.quiet {
            for (phase, us) in &series.phases {
                table.add_row([series.name.to_owned(), phase.clone(), duration(*us)]);
            }
        }
        table
    }

    fn burst_table(&self) -> Table {
        let header = [
            "who",
            "clients",
            "no accepts for",
            "connect p50",
            "p99",
            "max",
            "over 900 ms",
            "answer max",
            "failed",
        ];
        let mut table = table(header, 1);
        for burst in &self.bursts {
            let connect = burst.connect;
            let [gap, p50, p99, max] =
                [burst.gap_us, connect.p50_us, connect.p99_us, connect.max_us].map(duration);
            let [clients, retransmitted, failed] =
                [burst.clients, burst.retransmitted, burst.failed].map(|count| count.to_string());
            let answer = duration(burst.answer.max_us);
            table.add_row([
                burst.name.to_owned(),
                clients,
                gap,
                p50,
                p99,
                max,
                retransmitted,
                answer,
                failed,
            ]);
        }
        table
    }

    fn idle_table(&self) -> Table {
        let mut table = table(["idle", "watched for", "wake-ups", "system calls", "resident memory"], 1);
        for idle in &self.idle {
            let calls = idle.system_calls.map_or("not counted".to_owned(), |calls| calls.to_string());
            let memory = memory(idle.resident_kib);
            table.add_row([
                idle.name.clone(),
                duration(idle.watched_ms * 1000),
                idle.wakeups.to_string(),
                calls,
                memory,
            ]);
        }
        table
    }

    fn takeover_table(&self) -> Table {
        let header = ["killed", "services", "count", "takeover p50", "max", "requests", "longest", "memory"];
        let mut table = table(header, 1);
        for each in &self.takeovers {
            let [p50, max, longest] =
                [each.takeover.p50_us, each.takeover.max_us, each.requests.max_us].map(duration);
            let [services, count, requests] =
                [each.services, each.takeover.count, each.requests.count].map(|count| count.to_string());
            let memory = memory(each.resident_kib);
            table.add_row([each.killed.to_owned(), services, count, p50, max, requests, longest, memory]);
        }
        table
    }
}

fn syncs_table(syncs: &[Syncs]) -> Table {
    let mut table =
        table(["disk barriers per upgrade", "by the supervisor", "by the service", "of both, in the gap"], 1);
    for each in syncs {
        let [supervisor, service, in_gap] =
            [each.supervisor, each.service, each.in_gap].map(|count| format!("{count:.2}"));
        table.add_row([each.name.to_owned(), supervisor, service, in_gap]);
    }
    table
}

/// A table with `texts` text columns, followed by number columns.
fn table<const COLUMNS: usize>(header: [&str; COLUMNS], texts: usize) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(texts) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn memory(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

/// Formats microseconds for people.
fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}
