//! The state that this release hands over, and the state from its predecessor.

use std::sync::Mutex;

use handoff_service::{BoxError, State};

/// A description of the last state, and the number of states.
#[derive(Default)]
pub struct Inherited(Mutex<(Option<String>, usize)>);

impl Inherited {
    /// Takes a state, unless this release refuses.
    pub fn take(&self, fault: &str, state: State) -> Result<(), BoxError> {
        if fault == "refuses-state" {
            return Err(format!("told to refuse format {}", state.format()).into());
        }
        let sound = state.content() == content(state.content().len());
        let text = format!("format {}, {} bytes, sound {sound}", state.format(), state.content().len());
        let mut inherited = self.0.lock().unwrap();
        *inherited = (Some(text), inherited.1 + 1);
        Ok(())
    }

    pub fn description(&self) -> String {
        self.0.lock().unwrap().0.clone().unwrap_or_else(|| "none".to_owned())
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

/// The state that this release hands over, if any: `hands-over-<bytes>` or `hands-over-and-exits-<bytes>`. The format
/// shows when.
pub fn state(fault: &str, format: u32) -> Option<State> {
    let length = fault.strip_prefix("hands-over-")?.rsplit('-').next()?.parse().ok()?;
    State::new(format, content(length)).ok()
}

/// Number of additional states before that, all at once: `hands-over-burst-<count>-<bytes>`.
pub fn burst(fault: &str) -> usize {
    let count = fault.strip_prefix("hands-over-burst-").and_then(|rest| rest.split('-').next()?.parse().ok());
    count.unwrap_or(0)
}

pub const FROM_DRAIN: u32 = 1;
pub const FROM_SEAL: u32 = 2;

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}
