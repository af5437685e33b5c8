//! Waits until the program has bound its listeners. Reports likely obstacles at once.

use std::fs;
use std::time::{Duration, Instant};

use super::{Runner, early_end};
use crate::config::ListenAddress;
use crate::shim::WAITS;
use crate::shim::frozen::{self, FrozenProcesses};
use crate::shim::idle_period::{IdlePeriod, RESTS_FOR, ResourceUsage};
use crate::shim::program::ProgramState;
use crate::shim::unmatched::Mismatch;
use crate::sys::process::is_traced;

/// Polling interval.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Interval of the looks whether the program works.
const ACTIVITY_INTERVAL: Duration = Duration::from_secs(1);
/// A start that takes longer than this is mentioned.
const REPORT_AFTER: Duration = Duration::from_secs(10);

impl Runner {
    /// Waits until the program has bound `count` of its listeners, or is found not to bind them. There is no time limit
    /// while it works: the daemon has the deadline.
    pub(super) fn await_binds(&self, count: usize) -> Result<(), String> {
        let found = self.await_binds_here(count);
        let _ = fs::remove_file(self.config.own_path.with_extension(WAITS));
        found
    }

    fn await_binds_here(&self, count: usize) -> Result<(), String> {
        let bound = |known: &ProgramState| match known.life.is_whole() {
            false => Some(Err(early_end(known))),
            true => (known.bound.len() >= count).then_some(Ok(())),
        };
        let settled =
            |known: &ProgramState| bound(known).map(|bound| bound.map_err(|error| (error, Duration::ZERO)));
        let refused = |known: &ProgramState| known.failed.clone().map(Err);
        let (began, mut text) = (Instant::now(), None);
        // When it became idle, and how much it had bound by then.
        let mut idle = (began, 0);
        let (mut rest, mut rests, mut next_look) = (IdlePeriod::begin(began), Duration::ZERO, began);
        let mut frozen = FrozenProcesses::default();
        loop {
            match self.program.wait(Some(CHECK_INTERVAL), |known| settled(known).or_else(|| refused(known))) {
                // It may try another address.
                Some(Err((error, patience))) if self.program.lives() => {
                    return self.program.wait(Some(patience), bound).unwrap_or(Err(error));
                }
                Some(found) => return found.map_err(|(error, _)| error),
                None => {}
            }
            self.look_whether_frozen(&mut frozen, &self.program.frozen())?;
            let (mismatch, binds) = self.mismatch();
            let tells = mismatch.as_ref().map(ToString::to_string).or_else(|| self.slow(began.elapsed()));
            if tells != text {
                self.report_wait(tells.as_deref());
                text = tells;
            }
            if mismatch.is_none() || binds != idle.1 || self.program.is_busy() {
                idle = (Instant::now(), binds);
            }
            if Instant::now() >= next_look {
                next_look = Instant::now() + ACTIVITY_INTERVAL;
                rests = rest.update(Instant::now(), ResourceUsage::of(self.program.tree()));
            }
            let idle_for = idle.0.elapsed().min(rests);
            if let Some(mismatch) = mismatch.filter(|mismatch| mismatch.is_for_good(idle_for)) {
                return Err(mismatch.to_string());
            }
            if rests >= RESTS_FOR {
                return Err(self.never_bound());
            }
        }
    }

    /// Waits until the program has said that it is ready, if it does that, and its server is not stopped. There is no time
    /// limit otherwise.
    pub(super) fn await_word(&self) -> Result<(), String> {
        let says = self.config.program.notify.is_some();
        let mut frozen = FrozenProcesses::default();
        loop {
            let ready = self.program.wait(Some(CHECK_INTERVAL), |known| match known.life.is_whole() {
                false => Some(Err(early_end(known))),
                true => (!says || known.ready).then_some(Ok(())),
            });
            let is_ready = ready.transpose()?.is_some();
            let mut stopped = self.program.frozen();
            if is_ready && !stopped.is_empty() {
                let servers = self.program.servers();
                stopped.retain(|pid| servers.contains(pid));
            }
            self.look_whether_frozen(&mut frozen, &stopped)?;
            match stopped.is_empty() {
                true if is_ready => return Ok(()),
                true => {}
                false => std::thread::sleep(CHECK_INTERVAL),
            }
        }
    }

    /// An error if one of these stopped processes has been so for the whole lease.
    fn look_whether_frozen(&self, frozen: &mut FrozenProcesses, stopped: &[u32]) -> Result<(), String> {
        let lease = self.config.lease;
        let Some(pid) = frozen.look(Instant::now(), stopped, lease) else { return Ok(()) };
        self.program.learn(|known| known.is_held_by_debugger = is_traced(pid));
        Err(frozen::told(pid, lease))
    }

    /// What the program has bound in place of a listener, and the number of such bound addresses.
    fn mismatch(&self) -> (Option<Mismatch>, usize) {
        let look = |known: &ProgramState| {
            let listen =
                self.config.listen.iter().filter(|(name, _)| !known.bound.contains(&name.to_string()));
            let parse = |(name, text): &(_, String)| -> Option<(String, ListenAddress)> {
                Some((ToString::to_string(name), text.parse().ok()?))
            };
            let missing: Vec<_> = listen.filter_map(parse).collect();
            Some((Mismatch::find(&missing, &known.unmatched), known.unmatched.len()))
        };
        self.program.wait(Some(Duration::ZERO), look).unwrap_or_default()
    }

    /// What to report of a start that takes long.
    fn slow(&self, after: Duration) -> Option<String> {
        (after >= REPORT_AFTER).then(|| format!("the program has not bound {} yet", self.missing()))
    }

    /// Reports to the service's log, and to the daemon, which shows it during the wait.
    fn report_wait(&self, what: Option<&str>) {
        let path = self.config.own_path.with_extension(WAITS);
        let text = match what {
            Some(what) => {
                log_line!("{what}");
                fs::write(&path, what)
            }
            None => fs::remove_file(&path),
        };
        if let Err(error) = text {
            log_line!("cannot report this to the daemon: {}: {error}", path.display());
        }
    }

    fn never_bound(&self) -> String {
        let seen = self.program.wait(None, |known| Some(known.status.clone())).unwrap_or_default();
        let seen = if seen.is_empty() { "it was not seen to bind anything".to_owned() } else { seen };
        format!(
            "the program has not bound {} and has done nothing for {RESTS_FOR:?}: {seen}; does it listen elsewhere, over \
             io_uring, or is it a 32-bit program? `handoff doctor` tries it out",
            self.missing()
        )
    }

    /// The listeners that it has not bound.
    fn missing(&self) -> String {
        let missing = |known: &ProgramState| {
            let listen =
                self.config.listen.iter().filter(|(name, _)| !known.bound.contains(&name.to_string()));
            Some(listen.map(|(name, address)| format!("{name} = {address}")).collect::<Vec<_>>())
        };
        self.program.wait(None, missing).unwrap_or_default().join(", ")
    }
}
