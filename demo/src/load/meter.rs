//! The counts and latencies shared by all clients of a load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::failure::{Failure, Kind};

/// Maximum number of failures to keep with their texts.
const EXAMPLES: usize = 20;

/// Counts requests and failures, and separates latencies of the steady state from those during upgrades.
pub struct Meter {
    upgrading: AtomicBool,
    requests: AtomicU64,
    acknowledged: AtomicU64,
    failures: [AtomicU64; Kind::ALL.len()],
    examples: Mutex<Vec<String>>,
    steady: Mutex<Histogram<u64>>,
    upgrade: Mutex<Histogram<u64>>,
}

/// Quantiles of a set of durations, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Quantiles {
    /// Number of durations.
    pub count: u64,
    /// The median.
    pub p50_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
    /// The maximum.
    pub max_us: u64,
}

impl Quantiles {
    /// The quantiles of a histogram of microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        }
    }
}

/// An empty histogram of microseconds without a maximum.
pub fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("3 significant figures are allowed")
}

/// Adds a duration to a histogram of microseconds.
pub fn record(histogram: &mut Histogram<u64>, duration: Duration) {
    let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    histogram.record(us).expect("a histogram that grows takes any value");
}

/// A request in progress.
#[derive(Debug)]
pub struct Span {
    began: Instant,
    in_upgrade: bool,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            upgrading: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            failures: Default::default(),
            examples: Mutex::default(),
            steady: Mutex::new(histogram()),
            upgrade: Mutex::new(histogram()),
        }
    }
}

impl Meter {
    /// Records whether an upgrade is in progress.
    pub fn set_upgrading(&self, upgrading: bool) {
        self.upgrading.store(upgrading, Ordering::Relaxed);
    }

    /// Records the start of a request.
    pub fn begin(&self) -> Span {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Span { began: Instant::now(), in_upgrade: self.upgrading.load(Ordering::Relaxed) }
    }

    /// Records the response to a request. A request that overlaps an upgrade belongs to the upgrade.
    pub fn end(&self, span: Span) {
        let in_upgrade = span.in_upgrade || self.upgrading.load(Ordering::Relaxed);
        let histogram = if in_upgrade { &self.upgrade } else { &self.steady };
        record(&mut lock(histogram), span.began.elapsed());
    }

    /// Records an acknowledged write.
    pub fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of acknowledged writes.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Records a failure.
    pub fn failed(&self, failure: &Failure) {
        self.failures[failure.kind as usize].fetch_add(1, Ordering::Relaxed);
        let mut examples = lock(&self.examples);
        if examples.len() < EXAMPLES {
            examples.push(failure.to_string());
        }
    }

    /// Number of started requests.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Number of failures of this kind.
    pub fn count(&self, kind: Kind) -> u64 {
        self.failures[kind as usize].load(Ordering::Relaxed)
    }

    /// Number of failures of all kinds.
    pub fn failures(&self) -> u64 {
        Kind::ALL.iter().map(|kind| self.count(*kind)).sum()
    }

    /// The texts of the first failures.
    pub fn examples(&self) -> Vec<String> {
        lock(&self.examples).clone()
    }

    /// The latencies of requests outside of upgrades, and during upgrades. Neither includes intentionally slow
    /// uploads.
    pub fn latencies(&self) -> (Quantiles, Quantiles) {
        (Quantiles::of(&lock(&self.steady)), Quantiles::of(&lock(&self.upgrade)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
