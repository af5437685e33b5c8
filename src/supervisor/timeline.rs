//! When each phase of an operation began: what `status`, progress and the outcome tell.

use std::time::Instant;

use handoff_protocol::ids::HandoffId;
use tokio::sync::oneshot;

use super::recording::Asked;
use crate::control::{Error, ProgressSink, api};

/// An operation that somebody waits for.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) reply: oneshot::Sender<Result<api::Outcome, Error>>,
    pub(super) progress: Option<ProgressSink>,
    /// What the history tells of it; nothing of one that only calls off another.
    pub(super) asked: Option<Asked>,
}

/// The clock of the operation under way.
#[derive(Debug)]
pub(super) struct Timeline {
    began: Instant,
    phases: Vec<(String, u64)>,
    sealed_at: Option<Instant>,
    gap_us: Option<u64>,
    /// When the outcome was decided; what follows is only the old process leaving.
    decided_us: Option<u64>,
}

impl Timeline {
    pub(super) fn begin() -> Self {
        Self { began: Instant::now(), phases: Vec::new(), sealed_at: None, gap_us: None, decided_us: None }
    }

    /// How long ago it began, in microseconds.
    pub(super) fn age_us(&self) -> u64 {
        micros(self.began.elapsed())
    }

    /// A phase begins. Returns when, in microseconds since the operation began.
    pub(super) fn enter(&mut self, phase: &str) -> u64 {
        let now = self.age_us();
        self.phases.push((phase.to_owned(), now));
        now
    }

    /// The incumbent was told to stop accepting, or is gone. The first counts.
    pub(super) fn gap_begins(&mut self) {
        self.sealed_at.get_or_insert_with(Instant::now);
    }

    /// Somebody accepts again.
    pub(super) fn gap_ends(&mut self) {
        if let Some(sealed_at) = self.sealed_at.take() {
            self.gap_us = Some(micros(sealed_at.elapsed()));
        }
    }

    /// The outcome is decided.
    pub(super) fn decided(&mut self) {
        let now = self.age_us();
        self.decided_us.get_or_insert(now);
    }

    /// It is not, after all.
    pub(super) fn undecided(&mut self) {
        self.decided_us = None;
    }

    pub(super) fn took_us(&self) -> u64 {
        self.decided_us.unwrap_or_else(|| self.age_us())
    }

    pub(super) fn gap_us(&self) -> Option<u64> {
        self.gap_us
    }

    /// The phases with their lengths; the last one lasts until now.
    pub(super) fn phases(&self) -> Vec<api::PhaseTime> {
        let ends = self.phases.iter().skip(1).map(|(_, started)| *started).chain([self.age_us()]);
        let times = self.phases.iter().zip(ends).map(|((phase, started_us), end)| api::PhaseTime {
            phase: phase.clone(),
            started_us: *started_us,
            took_us: end.saturating_sub(*started_us),
        });
        times.collect()
    }
}

/// What a new phase looks like to a client.
pub(super) fn progress(
    service: &handoff_protocol::ids::ServiceName,
    handoff: HandoffId,
    phase: &str,
    at_us: u64,
    detail: Option<String>,
) -> api::Progress {
    api::Progress { service: service.clone(), handoff, phase: phase.to_owned(), at_us, detail }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
