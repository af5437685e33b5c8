//! One run, from an empty directory to an empty directory.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use handoff_protocol::message::Mode;
use serde::Serialize;

use super::checks::{self, Baseline};
use super::director::{Director, InjectedFault, Lengths, ReachedPoint};
use super::fault::Fault;
use super::init::Init;
use super::load::{self, Load};
use super::matrix::Job;
use super::operator::{Operator, TICK, is_at_rest};
use super::scenario::Scenario;
use super::workspace::Workspace;
use super::{Error, Subject};
use crate::control::api::{Ending, Request, Response, State};
use crate::sys::process::{Signal, kill, pidfd_open};

/// How long the load works before the first event.
pub(super) const WARM_UP: Duration = Duration::from_millis(250);
/// A service that has rested this long is at rest.
const AT_REST: Duration = Duration::from_millis(300);

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunResult {
    /// All checks passed.
    Held,
    /// The point was not reached, so the run shows nothing.
    Missed,
    /// The failed checks.
    Failed(Vec<String>),
}

/// The findings of a run.
#[derive(Debug)]
pub(super) struct RunReport {
    pub(super) result: RunResult,
    pub(super) reached: Vec<ReachedPoint>,
    pub(super) baseline: Baseline,
    /// The longest time without an answer for the load, in milliseconds.
    pub(super) gap_ms: Option<f64>,
    /// Time from the last fault until the service was at rest again, in milliseconds.
    pub(super) recovered_ms: Option<f64>,
    /// The path of the directory, if it was kept.
    pub(super) kept: Option<PathBuf>,
    /// The end of the daemon's log, if a check failed.
    pub(super) log: String,
}

/// Performs a run. An error is one of the harness, not of the service under test. Blocks for some seconds.
pub(super) fn play(
    subject: &Subject,
    lease_ms: u64,
    keep: bool,
    job: &Job,
    baseline: Option<&Baseline>,
) -> Result<RunReport, Error> {
    let workspace = Workspace::new(subject, lease_ms)?;
    let freeze = Duration::from_millis(lease_ms + lease_ms / 4 + 50);
    let director = Director::start(&workspace.points(), Lengths { freeze, stall: workspace.stall() })?;
    let mut run = Run {
        subject,
        job,
        operator: Operator { workspace: &workspace, lease: Duration::from_millis(lease_ms) },
        workspace: &workspace,
        director: &director,
        problems: Vec::new(),
        missed: false,
        gap_ms: None,
        recovered_ms: None,
        baseline: Baseline::default(),
    };
    let ended = run.act(baseline);
    end_all(&workspace);
    if let Err(error) = ended {
        run.problems.push(error.to_string());
    }
    run.problems.extend(director.error());
    let Run { problems, missed, gap_ms, recovered_ms, baseline, .. } = run;
    let verdict = match problems.is_empty() {
        false => RunResult::Failed(problems),
        true if missed => RunResult::Missed,
        true => RunResult::Held,
    };
    let failed = matches!(verdict, RunResult::Failed(_));
    let log = if failed { workspace.tail("daemon.log", 30) } else { String::new() };
    let seen = director.seen();
    drop(director);
    let kept = (failed && keep).then(|| workspace.keep());
    Ok(RunReport { result: verdict, reached: seen, baseline, gap_ms, recovered_ms, kept, log })
}

struct Run<'a> {
    subject: &'a Subject,
    job: &'a Job,
    operator: Operator<'a>,
    workspace: &'a Workspace,
    director: &'a Director,
    problems: Vec<String>,
    missed: bool,
    gap_ms: Option<f64>,
    recovered_ms: Option<f64>,
    baseline: Baseline,
}

impl Run<'_> {
    /// An error ends the run, because the next steps would make no sense.
    fn act(&mut self, baseline: Option<&Baseline>) -> Result<(), Error> {
        let scenario = self.job.scenario;
        if scenario == Scenario::Start {
            self.director.arm(self.job.steps());
        }
        let init = Init::start(self.workspace, self.subject.program.clone())?;
        let mut load = None;
        if scenario != Scenario::Start {
            self.await_service(&init)?;
            if !scenario.is_dark() {
                load = Some(self.start_load()?);
            }
            self.director.arm(self.job.steps());
            self.director.inject_at_rest();
            self.operate();
        }
        self.recover(&init)?;
        self.director.disarm();
        let load = load.map_or_else(|| self.start_load(), Ok)?;
        self.operator.upgrade_for_sure(&init, self.subject.next.clone())?;
        let result = load.finish()?;
        self.judge(&result);
        self.inspect(&init, baseline);
        self.stop(init);
        Ok(())
    }

    fn start_load(&self) -> Result<Load, Error> {
        let load = Load::start(self.workspace, &self.subject.load)?;
        std::thread::sleep(WARM_UP);
        Ok(load)
    }

    /// Sends the request of the operator. Its result is not checked here: the daemon may have been killed in the
    /// meantime.
    fn operate(&mut self) {
        let name = self.workspace.name().clone();
        let request = match self.job.scenario {
            Scenario::Serve | Scenario::Start | Scenario::Recovery => return,
            Scenario::Stop => Request::Stop(name),
            Scenario::BadRelease => self.operator.upgrade_to(self.subject.bad.clone()),
            Scenario::Upgrade
            | Scenario::SuccessorDies
            | Scenario::SuccessorHangs
            | Scenario::DrainFails
            | Scenario::GraceEnds
            | Scenario::SealFails
            | Scenario::IncumbentDies
            | Scenario::Cancel
            | Scenario::Shutdown => self.operator.upgrade_to(self.subject.next.clone()),
        };
        let answers = match self.job.scenario {
            Scenario::Cancel => self.ask_and_cancel(request),
            _ => vec![self.operator.ask(request)],
        };
        if self.job.chain.is_empty() {
            answers.into_iter().for_each(|answer| self.check_clean(answer));
        }
    }

    /// Sends the request, and cancels it when it is held. Returns both answers.
    fn ask_and_cancel(&self, request: Request) -> Vec<Result<Response, Error>> {
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| self.operator.ask(request));
            // The request ends before that if a fault came earlier. It has a limit.
            while self.director.hits().is_empty() && !asked.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let cancelled = self.operator.ask(Request::Cancel(self.workspace.name().clone()));
            let asked = asked.join().unwrap_or_else(|_| Err("the request panicked".into()));
            vec![asked, cancelled]
        })
    }

    /// Without further faults, each scenario has one correct result.
    fn check_clean(&mut self, answer: Result<Response, Error>) {
        let expected = match self.job.scenario {
            Scenario::Serve | Scenario::Start | Scenario::Recovery | Scenario::Shutdown => return,
            Scenario::Stop => &[Ending::Stopped][..],
            Scenario::Upgrade | Scenario::IncumbentDies => &[Ending::Committed],
            // In overlap mode, the old process drains and seals when the new one already serves.
            Scenario::DrainFails | Scenario::GraceEnds | Scenario::SealFails
                if self.workspace.service.mode == Mode::Overlap =>
            {
                &[Ending::Committed]
            }
            Scenario::SuccessorDies
            | Scenario::SuccessorHangs
            | Scenario::BadRelease
            | Scenario::DrainFails
            | Scenario::GraceEnds
            | Scenario::SealFails
            | Scenario::Cancel => &[Ending::RolledBack],
        };
        match answer {
            Ok(Response::Outcome(outcome)) if expected.contains(&outcome.outcome) => {}
            Ok(other) => self.problems.push(format!("expected {expected:?}, got {other:?}")),
            Err(error) => self.problems.push(format!("expected {expected:?}: {error}")),
        }
    }

    fn await_service(&self, init: &Init) -> Result<(), Error> {
        self.operator.await_status(init, "the service to come up", |status| status.state == State::Serving)
    }

    /// Waits until the faults have happened and exactly one process serves again without help.
    fn recover(&mut self, init: &Init) -> Result<(), Error> {
        let mut resting: Option<Instant> = None;
        let (operator, director, scenario) = (self.operator, self.director, self.job.scenario);
        let workspace = operator.workspace;
        self.operator.await_status(init, "the service to recover", |status| {
            let is_stopped = status.state == State::Stopped && status.phase.is_none();
            if is_stopped
                && matches!(scenario, Scenario::Stop | Scenario::Shutdown)
                && !director.is_freezing()
            {
                // A stop was requested, so only the operator can start the service again.
                let _ = operator.ask(Request::Start(workspace.name().clone()));
            }
            let at_rest = is_at_rest(workspace, status) && !director.is_freezing();
            if !at_rest {
                resting = None;
                return false;
            }
            let since = resting.get_or_insert_with(Instant::now);
            since.elapsed() >= AT_REST || director.pending() == 0 && scenario != Scenario::Shutdown
        })?;
        self.missed = director.pending() > 0 || director.is_absent();
        if let (Some(hit), Some(since)) = (director.hits().last(), resting) {
            self.recovered_ms = Some(since.saturating_duration_since(hit.at).as_secs_f64() * 1e3);
        }
        Ok(())
    }

    fn judge(&mut self, result: &load::LoadResult) {
        self.gap_ms = result.longest_gap_ms;
        let harmed = |hit: &InjectedFault| hit.victim.is_service() && hit.fault != Fault::Hold;
        let excused = self.director.hits().iter().any(harmed);
        self.problems.extend(result.problem(excused));
    }

    fn inspect(&mut self, init: &Init, baseline: Option<&Baseline>) {
        let (found, baseline) = checks::inspect(self.workspace, baseline);
        self.problems.extend(found);
        self.baseline = baseline;
        if self.job.steps().next().is_none() && init.starts() != 1 {
            self.problems.push(format!("the daemon was started {} times", init.starts()));
        }
    }

    /// Stops the service and the daemon. No process may be left.
    fn stop(&mut self, init: Init) {
        if let Err(error) = self.operator.ask(Request::Stop(self.workspace.name().clone())) {
            self.problems.push(format!("the service cannot be stopped: {error}"));
        }
        if let Err(error) = init.stop(self.operator.limit()) {
            self.problems.push(error.to_string());
        }
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let left = self.workspace.processes();
            if left.is_empty() {
                return;
            }
            if Instant::now() > until {
                return self.problems.push(format!("left behind: {left:?}"));
            }
            std::thread::sleep(TICK);
        }
    }
}

/// Kills the processes that a failed run has left.
pub(super) fn end_all(workspace: &Workspace) {
    for process in workspace.processes() {
        if let Ok(pidfd) = pidfd_open(process.pid) {
            let _ = kill(&pidfd, Signal::SIGKILL);
        }
    }
}
