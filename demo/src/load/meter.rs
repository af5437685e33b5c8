//! The counts and latencies that all clients of a load share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::failure::{Failure, Kind};

/// How many failures are kept in words.
const EXAMPLES: usize = 20;

/// Counts requests and failures, and keeps latencies of the steady state and of upgrades apart.
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
pub struct Spread {
    /// How many durations there were.
    pub count: u64,
    /// Half of them were at most this.
    pub p50_us: u64,
    /// 99 of 100 were at most this.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Spread {
    /// The spread of a histogram of microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        }
    }
}

/// An empty histogram of microseconds, which grows to take any duration.
pub fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("3 significant figures are allowed")
}

/// Enters a duration into a histogram of microseconds.
pub fn record(histogram: &mut Histogram<u64>, duration: Duration) {
    let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    histogram.record(us).expect("a histogram that grows takes any value");
}

/// A request in progress, as the meter sees it.
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
    /// Says that an upgrade begins, or is over.
    pub fn set_upgrading(&self, upgrading: bool) {
        self.upgrading.store(upgrading, Ordering::Relaxed);
    }

    /// A request begins.
    pub fn begin(&self) -> Span {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Span { began: Instant::now(), in_upgrade: self.upgrading.load(Ordering::Relaxed) }
    }

    /// A request has got its answer. One that had any part in an upgrade belongs to the upgrade.
    pub fn end(&self, span: Span) {
        let in_upgrade = span.in_upgrade || self.upgrading.load(Ordering::Relaxed);
        let histogram = if in_upgrade { &self.upgrade } else { &self.steady };
        record(&mut lock(histogram), span.began.elapsed());
    }

    /// A write was acknowledged.
    pub fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// A client has noticed a failure.
    pub fn failed(&self, failure: &Failure) {
        self.failures[failure.kind as usize].fetch_add(1, Ordering::Relaxed);
        let mut examples = lock(&self.examples);
        if examples.len() < EXAMPLES {
            examples.push(failure.to_string());
        }
    }

    /// How many requests were begun.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many failures of this kind there were.
    pub fn count(&self, kind: Kind) -> u64 {
        self.failures[kind as usize].load(Ordering::Relaxed)
    }

    /// How many failures of any kind there were.
    pub fn failures(&self) -> u64 {
        Kind::ALL.iter().map(|kind| self.count(*kind)).sum()
    }

    /// The first failures, in words.
    pub fn examples(&self) -> Vec<String> {
        lock(&self.examples).clone()
    }

    /// The latencies of requests that had no part in an upgrade, and of those that had. Uploads that are
    /// slow on purpose are in neither.
    pub fn latencies(&self) -> (Spread, Spread) {
        (Spread::of(&lock(&self.steady)), Spread::of(&lock(&self.upgrade)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
