//! A soak: one daemon, one service and one directory for a long time, with random operations and faults at random
//! moments.
//!
//! The matrix hits each point once, each time in an empty directory. A soak finds what was not planned: faults during
//! the recovery from other faults, and effects that add up over hundreds of upgrades. After each round the service
//! must come to rest without help. After each stretch of rounds the observations of the clients are evaluated, and
//! the leftovers are checked from outside.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;

use super::checks::{self, Baseline};
use super::director::{Director, Lengths};
use super::init::Init;
use super::load::Load;
use super::operator::{Operator, is_at_rest};
use super::run::{WARM_UP, end_all};
use super::script::{LoadPeriod, Operation, Round, Script};
use super::show::{Interrupt, note};
use super::workspace::Workspace;
use super::{Error, Selection, Subject};
use crate::control::api::{Ending, Request, Response, State};
use crate::control::{ClientError, Kind};
use crate::sys::clock::as_ms;
use crate::sys::process::Signal;

/// A service that has rested this long is at rest.
const AT_REST: Duration = Duration::from_millis(100);
/// Number of lines of the daemon's log in a report of a failure.
const LOG_LINES: usize = 40;

/// The results of a soak.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SoakReport {
    /// The seed of the script.
    pub seed: u64,
    /// Duration of the soak.
    pub took_ms: u64,
    /// Number of rounds, by operation.
    pub rounds: BTreeMap<String, u64>,
    /// Number of faults, by victim and fault.
    pub faults: BTreeMap<String, u64>,
    /// Number of starts of the daemon.
    pub daemons: u32,
    /// Number of acknowledged writes. All of them were read back.
    pub acknowledged: u64,
    /// The longest time without an answer to any client, in milliseconds.
    pub longest_gap_ms: f64,
    /// The failed checks, each with its round. A soak ends at the first one.
    pub problems: Vec<String>,
    /// The end of the daemon's log, if a check failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log: String,
    /// The path of the directory, if it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<PathBuf>,
    /// Whether it was interrupted before its time was over.
    pub interrupted: bool,
}

/// Soaks the service for at least this long, or until a check fails. Blocks for that long.
///
/// # Errors
///
/// The harness cannot work: the service file or the load is unusable.
pub fn soak(subject: &Subject, selection: &Selection, length: Duration) -> Result<SoakReport, Error> {
    let workspace = Workspace::new(subject, selection.lease)?;
    let lease = Duration::from_millis(selection.lease);
    let freeze = lease + lease / 4 + Duration::from_millis(50);
    let director = Director::start(&workspace.points(), Lengths { freeze, stall: workspace.stall() })?;
    let began = Instant::now();
    let mut soak = Soak {
        subject,
        director: &director,
        operator: Operator { workspace: &workspace, lease },
        interrupt: Interrupt::new()?,
        baseline: None,
        report: SoakReport { seed: selection.seed, ..SoakReport::default() },
    };
    let ended = soak.act(began + length);
    end_all(&workspace);
    let mut report = soak.report;
    report.problems.extend(ended.err().map(|error| error.to_string()));
    report.problems.extend(director.error());
    report.took_ms = as_ms(began.elapsed());
    if !report.problems.is_empty() {
        report.log = workspace.tail("daemon.log", LOG_LINES);
        drop(director);
        report.kept = selection.keep.then(|| workspace.keep());
    }
    Ok(report)
}

struct Soak<'a> {
    subject: &'a Subject,
    director: &'a Director,
    operator: Operator<'a>,
    interrupt: Interrupt,
    /// The state before any operation.
    baseline: Option<Baseline>,
    report: SoakReport,
}

impl Soak<'_> {
    fn act(&mut self, until: Instant) -> Result<(), Error> {
        let init = Init::start(self.operator.workspace, self.subject.program.clone())?;
        self.await_rest(&init, "the service to come up")?;
        let (found, baseline) = checks::inspect(self.operator.workspace, None);
        self.baseline = Some(baseline);
        fail(found)?;
        let mut script = Script::new(self.report.seed, self.subject.bad.is_some());
        let mut number = 0;
        while Instant::now() < until && !self.interrupt.is_interrupted() {
            number += 1;
            self.period(&init, number, &script.next_period())?;
            self.report.daemons = init.starts();
            let left = until.saturating_duration_since(Instant::now()).as_secs();
            note(&format!("soak, stretch {number}: held, {left} s left"));
        }
        self.report.interrupted = Instant::now() < until;
        let _ = self.operator.ask(Request::Stop(self.operator.workspace.name().clone()))?;
        init.stop(self.operator.limit())?;
        let left = self.operator.workspace.processes();
        fail((!left.is_empty()).then(|| format!("left behind: {left:?}")))
    }

    fn period(&mut self, init: &Init, number: usize, period: &LoadPeriod) -> Result<(), Error> {
        let load = Load::start(self.operator.workspace, &self.subject.load)?;
        std::thread::sleep(WARM_UP);
        let mut harmed = false;
        for (at, round) in period.rounds.iter().enumerate() {
            harmed |= round.harms_the_service();
            self.round(init, round)
                .map_err(|error| format!("stretch {number}, round {at}: {round}: {error}"))?;
        }
        self.operator.upgrade_for_sure(init, self.subject.next.clone())?;
        let result = load.finish()?;
        self.report.acknowledged += result.acknowledged;
        self.report.longest_gap_ms =
            self.report.longest_gap_ms.max(result.longest_gap_ms.unwrap_or_default());
        let of_stretch = |problem: String| {
            let rounds: Vec<String> = period.rounds.iter().map(ToString::to_string).collect();
            format!("stretch {number} ({}): {problem}", rounds.join("; "))
        };
        fail(result.problem(harmed).map(of_stretch))?;
        let (found, _) = checks::inspect(self.operator.workspace, self.baseline.as_ref());
        fail(found.into_iter().map(of_stretch))?;
        let dark = &period.without_clients;
        self.round(init, dark)
            .map_err(|error| format!("stretch {number}, without clients: {dark}: {error}").into())
    }

    fn round(&mut self, init: &Init, round: &Round) -> Result<(), Error> {
        *self.report.rounds.entry(round.operation.to_string()).or_default() += 1;
        let operator = self.operator;
        let answer = std::thread::scope(|scope| {
            let asked = scope.spawn(|| self.operate(init, round.operation));
            let mut hits = Vec::new();
            for scheduled in &round.faults {
                std::thread::sleep(scheduled.after);
                let pids: Vec<u32> = operator.workspace.processes().iter().map(|it| it.pid).collect();
                if self.director.inject_now(scheduled.victim, scheduled.fault, |pid| pids.contains(&pid)) {
                    hits.push(format!("{} {}", scheduled.victim, scheduled.fault));
                }
            }
            asked.join().map(|answer| (answer, hits)).map_err(|_| Error::from("the operator panicked"))
        });
        let (answer, hits) = answer?;
        let undisturbed = hits.is_empty();
        for hit in hits {
            *self.report.faults.entry(hit).or_default() += 1;
        }
        self.await_rest(init, "the service to recover")?;
        if undisturbed { judge(round.operation, answer) } else { Ok(()) }
    }

    /// Performs an operation. Its answer counts only if no fault has hit.
    fn operate(&self, init: &Init, operation: Operation) -> Result<Option<Response>, Error> {
        let name = self.operator.workspace.name().clone();
        let request = match operation {
            Operation::Nothing => return Ok(None),
            Operation::Upgrade => self.operator.upgrade_to(self.subject.next.clone()),
            Operation::BadUpgrade => self.operator.upgrade_to(self.subject.bad.clone()),
            Operation::Restart => Request::Restart(name),
            Operation::StopAndStart => {
                self.operator.ask(Request::Stop(name.clone()))?;
                Request::Start(name)
            }
            Operation::Cancel(after_ms) => {
                let operator = self.operator;
                let upgrade = operator.upgrade_to(self.subject.next.clone());
                return std::thread::scope(|scope| {
                    let asked = scope.spawn(move || operator.ask(upgrade));
                    std::thread::sleep(Duration::from_millis(after_ms.into()));
                    // It has already ended, or is called off. Both are correct.
                    let _ = operator.ask(Request::Cancel(name));
                    let ended = asked.join().map_err(|_| Error::from("the request panicked"))?;
                    // Called off before the new version was started: there is no outcome.
                    ended.map(Some).or_else(|error| if was_cancelled(&error) { Ok(None) } else { Err(error) })
                });
            }
            Operation::ReplaceDaemon | Operation::EndDaemon => {
                let by = if operation == Operation::EndDaemon { Signal::SIGTERM } else { Signal::SIGQUIT };
                init.end(by);
                return Ok(None);
            }
        };
        self.operator.ask(request).map(Some)
    }

    /// Waits until the service serves without help. If a fault has left it stopped, starts it.
    fn await_rest(&self, init: &Init, what: &str) -> Result<(), Error> {
        let mut resting: Option<Instant> = None;
        let Operator { workspace, .. } = self.operator;
        self.operator.await_status(init, what, |status| {
            if status.state == State::Stopped && status.phase.is_none() && !self.director.is_freezing() {
                let _ = self.operator.ask(Request::Start(workspace.name().clone()));
            }
            if !is_at_rest(workspace, status) || self.director.is_freezing() {
                resting = None;
                return false;
            }
            resting.get_or_insert_with(Instant::now).elapsed() >= AT_REST
        })
    }
}

/// Whether an upgrade was called off before its new version was started. No other version of a soak is refused.
fn was_cancelled(error: &Error) -> bool {
    let refused =
        |error: &ClientError| matches!(error, ClientError::Refused(error) if error.kind == Kind::Rejected);
    error.downcast_ref().is_some_and(refused)
}

/// Without a fault, each operation has one correct result. A cancel may come too late.
fn judge(operation: Operation, answer: Result<Option<Response>, Error>) -> Result<(), Error> {
    let expected: &[Ending] = match operation {
        Operation::Nothing | Operation::ReplaceDaemon | Operation::EndDaemon => return Ok(()),
        Operation::Upgrade | Operation::Restart => &[Ending::Committed],
        Operation::BadUpgrade => &[Ending::RolledBack],
        Operation::Cancel(_) => &[Ending::RolledBack, Ending::Committed],
        Operation::StopAndStart => &[Ending::Started],
    };
    match answer? {
        Some(Response::Outcome(outcome)) if expected.contains(&outcome.outcome) => Ok(()),
        None if matches!(operation, Operation::Cancel(_)) => Ok(()),
        other => Err(format!("expected {expected:?}, got {other:?}").into()),
    }
}

fn fail(problems: impl IntoIterator<Item = String>) -> Result<(), Error> {
    let problems: Vec<String> = problems.into_iter().collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
}

impl SoakReport {
    /// Whether it lasted its whole time and all checks passed.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty() && !self.interrupted
    }
}

impl fmt::Display for SoakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header(["what happened", "count"]);
        for (what, count) in self.rounds.iter().chain(&self.faults) {
            table.add_row([what.clone(), count.to_string()]);
        }
        writeln!(f, "{table}\n")?;
        for problem in &self.problems {
            writeln!(f, "FAILED {problem}")?;
        }
        if !self.log.is_empty() {
            writeln!(f, "{}", self.log)?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "kept in {}", kept.display())?;
        }
        let Self { seed, took_ms, daemons, acknowledged, longest_gap_ms, .. } = self;
        let rounds: u64 = self.rounds.values().sum();
        let end = match (self.is_good(), self.interrupted) {
            (true, _) => "held",
            (false, true) if self.problems.is_empty() => "interrupted",
            (false, _) => "failed",
        };
        write!(
            f,
            "soak with seed {seed}: {end} after {} s, {rounds} rounds, {daemons} daemons, {acknowledged} writes \
             acknowledged, longest time without an answer {longest_gap_ms:.0} ms",
            took_ms / 1000
        )
    }
}
