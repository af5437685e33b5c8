//! What a program was seen to do.

use std::sync::{Arc, Mutex, PoisonError};

use super::super::inject::{Event, Watcher};
use super::super::program::Program;

/// Remembers what the program binds, and wakes whoever waits for something to happen to it.
pub(super) struct Watch {
    program: Arc<Program>,
    events: Mutex<Vec<Event>>,
}

impl Watch {
    pub(super) fn new(program: &Arc<Program>) -> Arc<Self> {
        Arc::new(Self { program: Arc::clone(program), events: Mutex::default() })
    }

    /// What `look` finds in all that was seen.
    pub(super) fn find<T>(&self, look: impl FnMut(&Event) -> Option<T>) -> Vec<T> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().filter_map(look).collect()
    }

    /// The listeners that it has got.
    pub(super) fn bound(&self) -> Vec<String> {
        self.find(|event| match event {
            Event::Bound { name, .. } => Some(name.clone()),
            _ => None,
        })
    }

    /// The listeners that it wanted and could not get, each with the reason.
    pub(super) fn refused(&self) -> Vec<(String, String)> {
        self.find(|event| match event {
            Event::Failed { name, error, .. } => Some((name.clone(), error.clone())),
            _ => None,
        })
    }

    /// What it bound besides, each once; not where it let the kernel choose.
    pub(super) fn others(&self) -> Vec<String> {
        let mut others = self.find(|event| match event {
            // The kernel gives each process another port.
            Event::Passed { address, .. } if address.ends_with(":0") => None,
            Event::Passed { address, why, .. } => Some(format!("it binds {address}: {why}")),
            _ => None,
        });
        let mut seen = std::collections::BTreeSet::new();
        others.retain(|other| seen.insert(other.clone()));
        others
    }
}

impl Watcher for Watch {
    fn tell(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        self.program.learn(|_| {});
    }
}
