//! Ends a program, and handles its end by itself.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{Program, ProgramState};
use crate::control::api::Killed;
use crate::shim::killed;
use crate::shim::life::{LifeAction, LifeEvent, LifeState};
use crate::shim::runner::early_end;
use crate::sys::clock::as_ms;
use crate::sys::process::{Exit, Signal, age_of, is_zombie, name_of};

/// After SIGKILL a process is gone unless the kernel holds it.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// Interval of the check whether the signalled processes are gone.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// After this time, processes that outlive the server get the stop signal as well.
const LINGER_LIMIT: Duration = Duration::from_millis(300);
/// What the main process has left behind is mentioned in the log after this time.
const REPORT_AFTER: Duration = Duration::from_secs(1);
/// The exit status is unknown.
const UNKNOWN: Exit = Exit { code: None, signal: None };

impl Program {
    /// Asks it to end, and waits until it and all its descendants are gone. Kills and reports what is left after the
    /// limit. A second call can only extend the limit.
    pub(in crate::shim) fn end(&self, limit: Duration) -> Result<Vec<Killed>, String> {
        self.end_meanwhile(limit, || {})
    }

    /// The same. Calls `meanwhile` once if it has not ended within [`CHECK_INTERVAL`]; that must return quickly.
    pub(in crate::shim) fn end_meanwhile(
        &self,
        limit: Duration,
        meanwhile: impl FnOnce(),
    ) -> Result<Vec<Killed>, String> {
        let now = Instant::now();
        let until = now.checked_add(limit);
        self.learn(|known| {
            let (since, before) = known.ending_since.unwrap_or((now, now));
            known.ending_since = Some((since, until.unwrap_or(before).max(before)));
            known.is_unwanted = true;
        });
        self.feed(LifeEvent::Stop);
        // A stopped process cannot handle the signal.
        self.let_go();
        let (mut lingers_since, mut meanwhile) = (None, Some(meanwhile));
        loop {
            let Some((since, until)) = self.known().ending_since else { return Ok(self.none_killed()) };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.kill_late(since.elapsed());
            }
            if self.wait(Some(left.min(CHECK_INTERVAL)), |known| (!known.lives()).then_some(())).is_some() {
                return Ok(self.none_killed());
            }
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile();
            }
            // The processes that got the signal are gone, but the rest does not end by itself.
            let lingers = self.running().iter().all(|pid| !self.known().signalled.contains(pid));
            lingers_since = lingers.then(|| lingers_since.unwrap_or_else(Instant::now));
            if lingers_since.is_some_and(|since: Instant| since.elapsed() >= LINGER_LIMIT) {
                self.feed(LifeEvent::Lingers);
            }
        }
    }

    /// Its processes, without zombies whose parent does not reap them.
    fn running(&self) -> Vec<u32> {
        self.tree().into_iter().filter(|pid| !is_zombie(*pid)).collect()
    }

    /// This call has killed nothing. Waits until what another thread has killed is on record.
    fn none_killed(&self) -> Vec<Killed> {
        drop(self.killing.lock().unwrap_or_else(PoisonError::into_inner));
        Vec::new()
    }

    /// Kills what has not ended within its time.
    fn kill_late(&self, after: Duration) -> Result<Vec<Killed>, String> {
        let _killing = self.killing.lock().unwrap_or_else(PoisonError::into_inner);
        let killed = self.running().into_iter().map(|pid| Killed {
            pid,
            name: name_of(pid).unwrap_or_default(),
            // It may have been started since.
            after_ms: as_ms(age_of(pid).map_or(after, |age| age.min(after))),
        });
        let killed: Vec<Killed> = killed.collect();
        let is_killed = self.feed(LifeEvent::Late).contains(&LifeAction::Kill);
        let gone = self.await_killed();
        // It has ended by itself, or was killed already.
        if !is_killed || killed.is_empty() {
            return gone.map(|()| Vec::new());
        }
        let text: Vec<String> = killed.iter().map(|it| format!("{} ({})", it.pid, it.name)).collect();
        log_line!("killed what had not ended {after:.1?} after its stop signal: {}", text.join(", "));
        if let Err(error) = killed::note(&self.config.own_path, &killed) {
            log_line!("cannot report this to the daemon: {error}");
        }
        gone.map(|()| killed)
    }

    /// Ends a dismissed program. It may have data to save even if it was never ready, and gets its stop signal. One
    /// that is held in its first bind has no data yet, and cannot handle a signal: it is killed.
    pub(in crate::shim) fn end_or_kill(&self) -> Result<(), String> {
        let is_held = self.known().is_held;
        if is_held { self.kill() } else { self.end(self.config.stop_grace).map(drop) }
    }

    /// Kills it and all its descendants.
    pub(in crate::shim) fn kill(&self) -> Result<(), String> {
        self.learn(|known| known.is_unwanted = true);
        self.feed(LifeEvent::Kill);
        self.await_killed()
    }

    /// Waits for killed processes. A process that has just forked may have left an unseen child, so this repeats the
    /// signal.
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

    /// Waits until it has ended by itself, or `is_over` returns `true`. Returns why it ended. Call [`Self::learn`] when
    /// `is_over` may have changed.
    pub(in crate::shim) fn await_early_end(&self, is_over: impl Fn() -> bool) -> Option<String> {
        let looked = self.wait(None, |known| match known.life.is_whole() {
            _ if is_over() || known.is_unwanted => Some(None),
            true => None,
            false => Some(Some(early_end(known))),
        });
        looked.flatten()
    }

    /// Waits until the program has failed: it served, its end was not requested, and nothing of it is left. Returns the
    /// exit status.
    pub(in crate::shim) fn await_failure(&self) -> Exit {
        loop {
            let fails =
                |known: &ProgramState| (known.has_failed || is_failing(known)).then_some(known.has_failed);
            if self.wait(None, fails).unwrap_or_default() {
                return self.known().life.exit().unwrap_or(UNKNOWN);
            }
            if let Err(error) = self.await_rest(self.config.stop_grace) {
                log_line!("{error}");
            }
        }
    }

    /// Waits for what the main process has left behind, which has its stop signal. No process serves in the meantime, but
    /// one may save data. Kills what is left after `grace`.
    fn await_rest(&self, grace: Duration) -> Result<(), String> {
        let (since, mut is_told) = (Instant::now(), false);
        // A stopped process cannot handle the signal.
        self.let_go();
        while is_failing(&self.known()) {
            let Some(left) = grace.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else {
                return self.kill_late(since.elapsed()).map(drop);
            };
            // Also those that were started in the meantime.
            self.ask(self.tree());
            if !is_told && since.elapsed() > REPORT_AFTER {
                log_line!(
                    "its main process has ended, and {} runs on; it has {left:.0?} to end",
                    self.named()
                );
                is_told = true;
            }
            self.wait(Some(left.min(CHECK_INTERVAL)), |known| (!is_failing(known)).then_some(()));
        }
        Ok(())
    }

    /// Its processes, for people.
    fn named(&self) -> String {
        let name = |pid: u32| format!("process {pid} ({})", name_of(pid).unwrap_or_default());
        self.running().into_iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// Whether its main process has ended by itself, and others have not yet.
fn is_failing(known: &ProgramState) -> bool {
    matches!(known.life.state(), LifeState::Leaving { wanted: false, .. })
}
