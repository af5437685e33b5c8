//! The deadlines of a service, on a clock that stops while this process does.

use std::collections::HashMap;
use std::time::Duration;

use handoff_protocol::deadline::Deadline;
use handoff_protocol::reason::Role;
use handoff_protocol::supervisor::Event;
use tokio::task::{AbortHandle, spawn_local, yield_now};
use tokio::time::{Instant, sleep_until};

use super::Service;
use crate::supervisor::input::Input;
use crate::supervisor::process::Token;
use crate::sys::process::is_busy;

/// The number of parts in which a deadline is waited for.
const PARTS: u32 = 8;
/// A part counts if its end is noticed within this time, even if the part is shorter.
const PUNCTUAL: Duration = Duration::from_millis(50);

impl Service {
    pub(in crate::supervisor) fn arm(&mut self, deadline: Deadline, ms: u64) {
        let (token, inputs) = (self.next_token(), self.inputs.clone());
        let task = spawn_local(async move {
            pass(Duration::from_millis(ms)).await;
            // After a stall of this process, a message may have arrived that was not read yet. It comes first.
            for _ in 0..3 {
                yield_now().await;
            }
            inputs.send(Input::Deadline(deadline, token));
        });
        let timer = Timer { token, task: task.abort_handle() };
        if let Some(before) = self.timers.armed.insert(deadline, timer) {
            before.task.abort();
        }
    }

    /// Handles the end of a deadline, unless it was disarmed or armed again meanwhile.
    pub(in crate::supervisor) fn deadline_over(&mut self, deadline: Deadline, token: Token) {
        if self.timers.armed.get(&deadline).is_none_or(|timer| timer.token != token) {
            return;
        }
        self.timers.armed.remove(&deadline);
        let is_starved = self.is_starved(deadline);
        self.feed(if is_starved { Event::Starved(deadline) } else { Event::Deadline(deadline) });
    }

    /// Whether a deadline is about the silence of a process that is busy or starved.
    fn is_starved(&self, deadline: Deadline) -> bool {
        let silent = match self.machine.silent_at(deadline) {
            Some(Role::Incumbent) => self.processes.incumbent(),
            Some(Role::Successor) => self.processes.successor(),
            None => return false,
        };
        let Some(pid) = silent.as_ref().map(|process| process.pid()).filter(|pid| is_busy(*pid)) else {
            return false;
        };
        tracing::warn!(pid, "a process is silent, and busy or starved");
        true
    }

    pub(in crate::supervisor) fn disarm(&mut self, deadline: Deadline) {
        if let Some(timer) = self.timers.armed.remove(&deadline) {
            timer.task.abort();
        }
    }
}

/// The deadlines that are armed.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Timers {
    armed: HashMap<Deadline, Timer>,
}

#[derive(Debug)]
struct Timer {
    token: Token,
    task: AbortHandle,
}

/// Completes when this process was able to run for `time`. If it was not, because the machine or the container was
/// paused, or the processors or the disk were overloaded, most likely the process that is waited for was not able to
/// run either: its silence says nothing about it.
async fn pass(time: Duration) {
    let part = time / PARTS;
    let mut passed = 0;
    while passed < PARTS {
        let end = Instant::now() + part;
        sleep_until(end).await;
        if end.elapsed() <= part.max(PUNCTUAL) {
            passed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_millis(400);

    #[tokio::test(flavor = "current_thread")]
    async fn time_passes_while_this_process_runs() {
        for time in [Duration::ZERO, Duration::from_millis(1), TIME] {
            let began = Instant::now();
            pass(time).await;
            assert!(began.elapsed() >= time);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn time_does_not_pass_while_this_process_stands_still() {
        let waiting = tokio::spawn(pass(TIME));
        yield_now().await;
        // Nothing else runs on this thread meanwhile.
        std::thread::sleep(2 * TIME);
        let continued = Instant::now();
        waiting.await.unwrap();
        assert!(continued.elapsed() >= TIME, "what was left when it stood still is not over");
    }
}
