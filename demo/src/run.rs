//! The run: under continuous load, one release after the other takes over.

use std::path::PathBuf;
use std::time::Duration;

use handoff::control::api::{Claims, Ending, Outcome, Request, Response, Upgrade};
use handoff_example_s3::stamp::Fault;
use hdrhistogram::Histogram;
use tokio::time::{Instant, interval, sleep_until};

use crate::Error;
use crate::binaries::Release;
use crate::load::Load;
use crate::load::meter::{Quantiles, histogram};
use crate::progress::Progress;
use crate::report::{Report, Upgrades, duration};
use crate::rig::{Rig, SERVICE};

/// The deadline of the upgrade to the release that never becomes ready; the upgrade uses all of it.
const BAD_RELEASE_DEADLINE_MS: u64 = 3_000;
/// Minimum time between two upgrades.
const PAUSE: Duration = Duration::from_millis(300);

/// Loads the service for about `length`, and upgrades it to each of `releases` after the first, which already runs.
///
/// # Errors
///
/// The load cannot be started, or the supervisor does not answer. Failures that clients notice are not errors; they
/// are in the report.
pub async fn run(rig: &Rig, releases: &[Release], clients: usize, length: Duration) -> Result<Report, Error> {
    let load = Load::start(&rig.config(clients)).await?;
    let meter = load.meter().clone();
    let progress = Progress::new(length);
    let began = Instant::now();
    let ticking = async {
        let mut ticks = interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            progress.tick(began.elapsed(), meter.requests(), meter.failures());
        }
    };
    let upgrading = upgrade_all(rig.socket(), releases, &load, &progress, length);
    let counts = tokio::select! {
        counts = upgrading => counts?,
        () = ticking => unreachable!("it ticks forever"),
    };
    progress.event("reading back everything that was written");
    let meter = load.finish().await;
    drop(progress);
    Ok(Report::new(&meter, counts.into_upgrades()))
}

async fn upgrade_all(
    socket: PathBuf,
    releases: &[Release],
    load: &Load,
    progress: &Progress,
    length: Duration,
) -> Result<UpgradeCounts, Error> {
    let (began, upgrades) = (Instant::now(), releases.len().saturating_sub(1));
    let mut counts = UpgradeCounts::default();
    for (number, release) in releases.iter().enumerate().skip(1) {
        let at = length.mul_f64(number as f64 / (upgrades + 1) as f64);
        sleep_until((began + at).max(Instant::now() + PAUSE)).await;
        load.meter().set_upgrading(true);
        let outcome = upgrade(socket.clone(), release).await?;
        load.meter().set_upgrading(false);
        progress.event(&format!("upgrade {number} of {upgrades}, {}", counts.add(release, &outcome)));
    }
    sleep_until((began + length).max(Instant::now() + PAUSE)).await;
    Ok(counts)
}

async fn upgrade(socket: PathBuf, release: &Release) -> Result<Outcome, Error> {
    let hopeless = release.fault == Some(Fault::NeverReady);
    let request = Request::Upgrade(Upgrade {
        service: SERVICE.parse()?,
        binary: Some(release.path.clone()),
        deadline_ms: hopeless.then_some(BAD_RELEASE_DEADLINE_MS),
        drain_grace_ms: hopeless.then_some(BAD_RELEASE_DEADLINE_MS),
        claims: Claims::default(),
    });
    match tokio::task::spawn_blocking(move || Rig::ask(&socket, &request)).await?? {
        Response::Outcome(outcome) => Ok(*outcome),
        other => Err(format!("the supervisor answered {other:?} to an upgrade").into()),
    }
}

/// The upgrades so far.
struct UpgradeCounts {
    committed: usize,
    rolled_back: usize,
    surprises: Vec<String>,
    gaps: Histogram<u64>,
    gaps_rolled_back: Histogram<u64>,
    times: Histogram<u64>,
}

impl Default for UpgradeCounts {
    fn default() -> Self {
        let (gaps, gaps_rolled_back, times) = (histogram(), histogram(), histogram());
        Self { committed: 0, rolled_back: 0, surprises: Vec::new(), gaps, gaps_rolled_back, times }
    }
}

impl UpgradeCounts {
    /// Adds an upgrade, and describes its result.
    fn add(&mut self, release: &Release, outcome: &Outcome) -> String {
        let good = release.fault.is_none();
        let ending = match outcome.outcome {
            Ending::Committed => {
                self.committed += 1;
                self.times.record(outcome.took_us).expect("it grows");
                "committed"
            }
            _ => {
                self.rolled_back += 1;
                "rolled back"
            }
        };
        let gap = outcome.accept_gap_us;
        if let Some(gap) = gap {
            let gaps = if good { &mut self.gaps } else { &mut self.gaps_rolled_back };
            gaps.record(gap).expect("it grows");
        }
        let mut text = format!("{}: {ending} in {}", release.version, duration(outcome.took_us));
        if let Some(gap) = gap {
            text += &format!(", accept gap {}", duration(gap));
        }
        if let Some(reason) = &outcome.reason {
            text += &format!(": {reason}");
        }
        let right = if good { Ending::Committed } else { Ending::RolledBack };
        if outcome.outcome != right {
            self.surprises.push(text.clone());
        }
        text
    }

    fn into_upgrades(self) -> Upgrades {
        Upgrades {
            committed: self.committed,
            rolled_back: self.rolled_back,
            surprises: self.surprises,
            accept_gap: Quantiles::of(&self.gaps),
            accept_gap_rolled_back: Quantiles::of(&self.gaps_rolled_back),
            upgrade_time: Quantiles::of(&self.times),
        }
    }
}
