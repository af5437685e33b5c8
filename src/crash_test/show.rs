//! Performs the selected runs, with progress and a report.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::checks::Baseline;
use super::junit::junit;
use super::matrix::{Job, choose};
use super::report::{Entry, Report};
use super::run::{RunReport, RunResult, play};
use super::scenario::Scenario;
use super::{Error, Selection, Subject};

/// Performs the selected runs, and prints each failure at once on standard error. Blocks for minutes to hours.
///
/// # Errors
///
/// The harness cannot work: the service file or the load is unusable, or a file cannot be written.
pub fn execute(subject: &Subject, selection: &Selection) -> Result<Report, Error> {
    let began = Instant::now();
    let interrupt = Interrupt::new()?;
    let mut all = TestSession {
        subject,
        selection,
        baselines: BTreeMap::new(),
        points: BTreeSet::new(),
        interrupt,
        interrupted: false,
        entries: Vec::new(),
    };
    match &selection.only {
        Some(job) => all.only(job)?,
        None => all.matrix()?,
    }
    all.entries.sort_by(|a, b| (a.scenario, &a.run).cmp(&(b.scenario, &b.run)));
    let report = Report::new(&all.points, all.entries, began.elapsed(), all.interrupted);
    if let Some(path) = &selection.junit {
        std::fs::write(path, junit(&report)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(report)
}

struct TestSession<'a> {
    subject: &'a Subject,
    selection: &'a Selection,
    baselines: BTreeMap<Scenario, Baseline>,
    points: BTreeSet<String>,
    interrupt: Interrupt,
    interrupted: bool,
    entries: Vec<Entry>,
}

impl TestSession<'_> {
    fn only(&mut self, job: &Job) -> Result<(), Error> {
        if !job.chain.is_empty() {
            self.run_all("without faults", vec![Job::clean(job.scenario)])?;
        }
        self.run_all("the run", vec![job.clone()])?;
        Ok(())
    }

    fn matrix(&mut self) -> Result<(), Error> {
        let clean: Vec<Job> = self.scenarios().into_iter().map(Job::clean).collect();
        let recorded = self.run_all("without faults", clean)?;
        let mut jobs: Vec<Job> = Vec::new();
        let mut killed: Vec<Job> = Vec::new();
        for (job, finding) in recorded.iter().filter(|(_, finding)| finding.result == RunResult::Held) {
            jobs.extend(job.extended_by(&finding.reached));
            if self.selection.twice && job.scenario == Scenario::Upgrade {
                killed = job.killed_in_each_phase(&finding.reached);
            }
        }
        if !killed.is_empty() {
            for (job, finding) in self.run_all("with the supervisor killed", killed)? {
                let second = job.extended_by(&finding.reached).into_iter();
                jobs.extend(second.filter(|job| job.chain.iter().all(|it| it.fault == super::Fault::Kill)));
            }
        }
        self.run_all("with faults", choose(jobs, self.selection))?;
        Ok(())
    }

    fn scenarios(&self) -> Vec<Scenario> {
        let chosen = &self.selection.scenarios;
        let possible = |scenario: &Scenario| *scenario != Scenario::BadRelease || self.subject.bad.is_some();
        let all = Scenario::ALL.into_iter().filter(possible);
        all.filter(|scenario| chosen.is_empty() || chosen.contains(scenario)).collect()
    }

    /// Performs runs concurrently. Results come in the order of their ends.
    fn run_all(&mut self, what: &str, jobs: Vec<Job>) -> Result<Vec<(Job, RunReport)>, Error> {
        let workers = self
            .selection
            .jobs
            .unwrap_or_else(|| 2 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        let mut progress = Progress::new(what, jobs.len());
        let next = AtomicUsize::new(if self.interrupted { jobs.len() } else { 0 });
        let (sender, receiver) = mpsc::channel();
        let mut results = Vec::with_capacity(jobs.len());
        let (subject, selection, baselines) = (self.subject, self.selection, &self.baselines);
        std::thread::scope(|scope| {
            for _ in 0..workers.min(jobs.len()) {
                let (sender, next, jobs) = (sender.clone(), &next, &jobs);
                scope.spawn(move || {
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let baseline = baselines.get(&job.scenario);
                        let finding = play(subject, selection.lease, selection.keep, job, baseline);
                        if sender.send((job.clone(), finding)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            loop {
                match receiver.recv_timeout(CHECK_INTERVAL) {
                    Ok((job, finding)) => {
                        let finding: RunReport = finding?;
                        progress.ended(&job, &finding);
                        results.push((job, finding));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok::<(), Error>(()),
                }
                if !self.interrupted && self.interrupt.is_interrupted() {
                    self.interrupted = true;
                    progress.line("interrupted: the runs that are under way end first");
                    next.store(jobs.len(), Ordering::Relaxed);
                }
            }
        })?;
        progress.finish();
        self.add_results(&results);
        Ok(results)
    }

    fn add_results(&mut self, results: &[(Job, RunReport)]) {
        for (job, finding) in results {
            if job.chain.is_empty() {
                self.baselines.insert(job.scenario, finding.baseline.clone());
                self.points.extend(finding.reached.iter().map(|seen| seen.point.clone()));
            }
            self.entries.push(Entry::new(job, finding));
        }
    }
}

/// Whether Ctrl-C or SIGTERM has come. A harness that simply died would leave its daemons behind. (A signal that is
/// blocked for reading would stay blocked in the loads.)
pub(super) struct Interrupt(Arc<AtomicBool>);

/// Interval of checks for an interrupt.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

impl Interrupt {
    pub(super) fn new() -> Result<Self, Error> {
        let came = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&came);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut interrupt, mut terminate) = runtime.block_on(async {
            Ok::<_, Error>((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
        })?;
        std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            theirs.store(true, Ordering::Relaxed);
        })?;
        Ok(Self(came))
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The progress of runs.
struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    total: usize,
    ended: usize,
    failed: usize,
    shown_at: Instant,
}

/// Interval of progress lines without a terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

impl Progress {
    fn new(what: &str, total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {elapsed} (eta {eta})");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(what.to_owned());
            bar
        });
        Self { bar, label: what.to_owned(), total, ended: 0, failed: 0, shown_at: Instant::now() }
    }

    fn ended(&mut self, job: &Job, finding: &RunReport) {
        self.ended += 1;
        if let RunResult::Failed(problems) = &finding.result {
            self.failed += 1;
            let kept = finding.kept.as_ref().map(|path| format!("\n    kept in {}", path.display()));
            let problems = problems.join("\n    ");
            self.line(&format!("FAILED --only {job}\n    {problems}{}", kept.unwrap_or_default()));
        }
        match &self.bar {
            Some(bar) => bar.inc(1),
            None if self.shown_at.elapsed() >= PROGRESS_INTERVAL || self.ended == self.total => {
                self.shown_at = Instant::now();
                let Self { label: what, total, ended, failed, .. } = self;
                note(&format!("{what}: {ended} of {total} runs, {failed} failed"));
            }
            None => {}
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Writes a line to standard error. If its reader is gone, no one needs the line.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
