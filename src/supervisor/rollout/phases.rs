//! The progress of an upgrade before the machine is asked.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use handoff_protocol::ids::ServiceName;

use crate::control::{ProgressSink, api};
use crate::supervisor::operations::progress;

/// The phases before the machine is asked. They are shown as they begin, also from another thread.
#[derive(Clone)]
pub(in crate::supervisor) struct Phases {
    service: ServiceName,
    since: Instant,
    began: Arc<Mutex<Vec<(&'static str, u64)>>>,
    progress: Option<ProgressSink>,
}

impl Phases {
    pub(in crate::supervisor) fn new(service: &ServiceName, progress: &Option<ProgressSink>) -> Self {
        let (service, progress) = (service.clone(), progress.clone());
        Self { service, since: Instant::now(), began: Arc::default(), progress }
    }

    fn age_us(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(in crate::supervisor) fn enter(&self, phase: &'static str) {
        let at_us = self.age_us();
        self.began.lock().unwrap_or_else(PoisonError::into_inner).push((phase, at_us));
        if let Some(sink) = &self.progress {
            sink.send(progress(&self.service, None, phase, at_us, None));
        }
    }

    /// All phases. The last one ends now.
    pub(in crate::supervisor) fn ended(&self) -> Vec<api::PhaseTime> {
        let began = self.began.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = began.iter().skip(1).map(|(_, at_us)| *at_us).chain([self.age_us()]);
        let phase = |(&(phase, started_us), end): (&(&str, u64), u64)| api::PhaseTime {
            phase: phase.to_owned(),
            started_us,
            took_us: end.saturating_sub(started_us),
        };
        began.iter().zip(ends).map(phase).collect()
    }
}
