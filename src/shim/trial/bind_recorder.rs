//! The recorded actions of a program.

use std::sync::{Arc, Mutex, PoisonError};

use super::super::inject::{EventSink, InjectEvent};
use super::super::program::Program;
use super::OtherBind;

/// Records what the program binds, and wakes the threads that wait for its events.
pub(super) struct BindRecorder {
    program: Arc<Program>,
    events: Mutex<Vec<InjectEvent>>,
}

impl BindRecorder {
    pub(super) fn new(program: &Arc<Program>) -> Arc<Self> {
        Arc::new(Self { program: Arc::clone(program), events: Mutex::default() })
    }

    /// All recorded events for which `look` returns a value.
    pub(super) fn find<T>(&self, look: impl FnMut(&InjectEvent) -> Option<T>) -> Vec<T> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().filter_map(look).collect()
    }

    /// The listeners that it received.
    pub(super) fn bound(&self) -> Vec<String> {
        self.find(|event| match event {
            InjectEvent::Bound { name, .. } => Some(name.clone()),
            _ => None,
        })
    }

    /// The listeners that it requested but did not receive, each with the reason.
    pub(super) fn refused(&self) -> Vec<(String, String)> {
        self.find(|event| match event {
            InjectEvent::Failed { name, error, .. } => Some((name.clone(), error.clone())),
            _ => None,
        })
    }

    /// Its other binds, each once; without those whose port the kernel chose.
    pub(super) fn others(&self) -> Vec<OtherBind> {
        let mut others = self.find(|event| match event {
            // The kernel gives each process another port.
            InjectEvent::Passed { address, .. } if address.ends_with(":0") => None,
            InjectEvent::Passed { address, pid, why, .. } => {
                Some(OtherBind { address: address.clone(), why: why.to_string(), pid: *pid })
            }
            _ => None,
        });
        let mut seen = std::collections::BTreeSet::new();
        others.retain(|other| seen.insert(other.to_string()));
        others
    }
}

impl EventSink for BindRecorder {
    fn record(&self, event: InjectEvent) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        self.program.learn(|_| {});
    }
}
