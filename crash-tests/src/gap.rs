//! What a load found, and the longest time without an answer.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;

/// The line with which a load ends.
#[derive(Debug, Default, Serialize)]
pub struct LoadResult {
    pub ok: bool,
    pub acknowledged: u64,
    pub lost: u64,
    pub wrong: u64,
    pub refused: u64,
    pub reset: u64,
    pub cut: u64,
    pub errors: u64,
    pub longest_gap_ms: f64,
    pub first: Option<String>,
}

/// Measures how long there was no answer.
#[derive(Debug)]
pub struct Gap(Mutex<(Instant, Duration)>);

impl Gap {
    pub fn begin() -> Self {
        Self(Mutex::new((Instant::now(), Duration::ZERO)))
    }

    /// An answer came.
    pub fn answered(&self) {
        let mut inner = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (last, longest) = *inner;
        *inner = (Instant::now(), longest.max(last.elapsed()));
    }

    pub fn longest_ms(&self) -> f64 {
        let inner = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.1.as_secs_f64() * 1e3
    }
}
