//! The deadlines of a service, on a clock that stands still while this process does.

use std::time::Duration;

use handoff_protocol::deadline::Deadline;
use handoff_protocol::recovery::{Facts, Found};
use handoff_protocol::supervisor::{Event, Phase};
use tokio::task::{spawn_local, yield_now};
use tokio::time::{Instant, sleep_until};

use super::service::Service;
use crate::sys::process::is_busy;

/// A deadline is waited for in so many parts.
const PARTS: u32 = 8;
/// A part whose end is noticed no later than this has passed, however short it is.
const PUNCTUAL: Duration = Duration::from_millis(50);
/// A process that is silent and busy is waited for so often once more.
const MORE_LEASES: u32 = 3;

impl Service {
    pub(super) fn arm(&mut self, deadline: Deadline, ms: u64) {
        let this = self.this.clone();
        let timer = spawn_local(async move {
            let time = Duration::from_millis(ms);
            pass(time).await;
            for _ in 0..MORE_LEASES {
                match this.upgrade() {
                    Some(service) if service.borrow().is_starved(deadline) => pass(time).await,
                    _ => break,
                }
            }
            // After a stall of this process a message may be there that was not read yet, and it comes first.
            for _ in 0..3 {
                yield_now().await;
            }
            if let Some(service) = this.upgrade() {
                let mut service = service.borrow_mut();
                service.timers.remove(&deadline);
                service.feed(Event::Deadline(deadline));
            }
        });
        if let Some(before) = self.timers.insert(deadline, timer.abort_handle()) {
            before.abort();
        }
    }

    /// Whether the process whose silence this deadline is about would go on if it got a processor, or what it wants from the
    /// disk. Such a one is not frozen, and to kill it makes no machine faster.
    fn is_starved(&self, deadline: Deadline) -> bool {
        let facts = self.machine.facts();
        let silent = match (deadline, self.machine.phase(), facts) {
            // That one owes no sign of life, but its end.
            (Deadline::AnswerIncumbent, _, Some(Facts { incumbent: Found::Leaving, .. }))
            | (Deadline::AnswerSuccessor, _, Some(Facts { successor: Found::Leaving, .. })) => return false,
            (Deadline::AnswerIncumbent, _, _) => &self.incumbent,
            (Deadline::AnswerSuccessor, _, _) => &self.successor,
            (Deadline::Silence, Phase::Warming | Phase::Beginning, _) => &self.successor,
            (Deadline::Silence, _, _) => &self.incumbent,
            (_, _, _) => return false,
        };
        let pid = silent.as_ref().map(|party| party.process.pid);
        let is_starved = pid.is_some_and(is_busy);
        if is_starved {
            tracing::warn!(service = %self.name, pid, "a process is silent, and busy or starved: it is given more time");
        }
        is_starved
    }

    pub(super) fn disarm(&mut self, deadline: Deadline) {
        if let Some(timer) = self.timers.remove(&deadline) {
            timer.abort();
        }
    }
}

/// Completes when so much time has passed in which this process could run. When it could not, because the machine or the
/// container was paused, or the processors or the disk were overloaded, most likely the process that is waited for could
/// not either: that it was silent meanwhile says nothing about it.
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
