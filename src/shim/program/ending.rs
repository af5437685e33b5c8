//! The end of a program: asked for, waited for, brought about. And what happens when it ends by itself.

use std::time::{Duration, Instant};

use super::{Known, Program};
use crate::control::api::Killed;
use crate::shim::killed;
use crate::shim::life::{Action, Event, State};
use crate::shim::runner::early_end;
use crate::sys::process::{Exit, Signal, is_zombie, name_of};

/// After a SIGKILL a process is gone unless the kernel holds it.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked whether those that got the stop signal are gone.
const LOOK: Duration = Duration::from_millis(50);
/// What is still there for so long after the one that served gets the stop signal as well.
const LINGERS: Duration = Duration::from_millis(300);
/// So long may take to end what the process has left that served. Nobody serves meanwhile.
const REST_WITHIN: Duration = Duration::from_secs(2);
/// Nobody can tell how it ended.
const UNKNOWN: Exit = Exit { code: None, signal: None };

impl Program {
    /// Asks it to end, and waits until it and everything that it started is gone. What is left after the limit is killed, and that
    /// is told. Asked twice it has the longer of the two times.
    pub(in crate::shim) fn end(&self, limit: Duration) -> Result<Vec<Killed>, String> {
        self.end_meanwhile(limit, || {})
    }

    /// The same. `meanwhile` is done once if it has not ended within [`LOOK`], and must not take long.
    pub(in crate::shim) fn end_meanwhile(
        &self,
        limit: Duration,
        meanwhile: impl FnOnce(),
    ) -> Result<Vec<Killed>, String> {
        let now = Instant::now();
        let until = now.checked_add(limit);
        self.learn(|known| {
            let (since, before) = known.asked.unwrap_or((now, now));
            known.asked = Some((since, until.unwrap_or(before).max(before)));
            known.is_unwanted = true;
        });
        self.feed(Event::Stop);
        // A stopped process cannot act on it.
        self.let_go();
        let (mut lingers_since, mut meanwhile) = (None, Some(meanwhile));
        loop {
            let Some((since, until)) = self.known().asked else { return Ok(Vec::new()) };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.kill_late(since.elapsed());
            }
            if self.wait(Some(left.min(LOOK)), |known| (!known.lives()).then_some(())).is_some() {
                return Ok(Vec::new());
            }
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile();
            }
            // What has got the signal is gone, and the rest does not go by itself.
            let lingers = self.running().iter().all(|pid| !self.known().told.contains(pid));
            lingers_since = lingers.then(|| lingers_since.unwrap_or_else(Instant::now));
            if lingers_since.is_some_and(|since: Instant| since.elapsed() >= LINGERS) {
                self.feed(Event::Lingers);
            }
        }
    }

    /// Its processes but for those that have ended and wait for a parent that does not reap them.
    fn running(&self) -> Vec<u32> {
        self.tree().into_iter().filter(|pid| !is_zombie(*pid)).collect()
    }

    /// What it was granted is over.
    fn kill_late(&self, after: Duration) -> Result<Vec<Killed>, String> {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let killed = self.running().into_iter().map(|pid| Killed {
            pid,
            name: name_of(pid).unwrap_or_default(),
            after_ms,
        });
        let killed: Vec<Killed> = killed.collect();
        let is_killed = self.feed(Event::Late).contains(&Action::Kill);
        self.await_killed()?;
        // It has ended by itself, or was killed already.
        if !is_killed || killed.is_empty() {
            return Ok(Vec::new());
        }
        let told: Vec<String> = killed.iter().map(|it| format!("{} ({})", it.pid, it.name)).collect();
        say!("killed what had not ended {after:.1?} after its stop signal: {}", told.join(", "));
        if let Err(error) = killed::note(&self.plan.own_path, &killed) {
            say!("the daemon cannot be told: {error}");
        }
        Ok(killed)
    }

    /// It is not wanted any more. What was started in full has data and clients of its own, and ends in order; what is held in
    /// its first bind, or was never ready, has nothing to put in order.
    pub(in crate::shim) fn end_or_kill(&self) -> Result<(), String> {
        let serves = self.known().life.serves();
        if serves { self.end(self.plan.stop_grace).map(drop) } else { self.kill() }
    }

    /// Kills it and everything that it started.
    pub(in crate::shim) fn kill(&self) -> Result<(), String> {
        self.learn(|known| known.is_unwanted = true);
        self.feed(Event::Kill);
        self.await_killed()
    }

    /// What was killed is gone soon. One that has just forked may have left a child that was not seen.
    fn await_killed(&self) -> Result<(), String> {
        let until = Instant::now() + KILLED_WITHIN;
        while self.lives() {
            self.signal_all(Signal::SIGKILL);
            let gone = self.wait(Some(Duration::from_millis(20)), |known| (!known.lives()).then_some(()));
            if gone.is_none() && Instant::now() > until {
                return Err(format!("the processes {:?} do not end", self.tree()));
            }
        }
        Ok(())
    }

    /// Waits until it has ended by itself, or `is_over` says so. Tells whether it has; call [`Self::learn`] when that may have changed.
    pub(in crate::shim) fn await_early_end(&self, is_over: impl Fn() -> bool) -> Option<String> {
        let looked = self.wait(None, |known| match known.life.is_whole() {
            _ if is_over() || known.is_unwanted => Some(None),
            true => None,
            false => Some(Some(early_end(known))),
        });
        looked.flatten()
    }

    /// Waits until the program has failed: it served, nobody wanted its end, and nothing of it is left. Whatever its main process
    /// has left is asked to end, and has a moment for it: nobody serves meanwhile. Says how it ended.
    pub(in crate::shim) fn await_failure(&self) -> Exit {
        loop {
            let is_failing =
                |known: &Known| matches!(known.life.state(), State::Leaving { wanted: false, .. });
            let fails = |known: &Known| (known.has_failed || is_failing(known)).then_some(known.has_failed);
            if self.wait(None, fails).unwrap_or_default() {
                return self.known().life.exit().unwrap_or(UNKNOWN);
            }
            if self.wait(Some(REST_WITHIN), |known| (!is_failing(known)).then_some(())).is_none() {
                self.feed(Event::Late);
                let _ = self.await_killed();
            }
        }
    }
}
