//! Waits until the program has bound its listeners. Reports likely obstacles at once.

use std::fs;
use std::time::{Duration, Instant};

use super::{BIND_WITHIN, Runner, early_end};
use crate::config::ListenAddress;
use crate::shim::WAITS;
use crate::shim::elsewhere::Mismatch;
use crate::shim::program::Known;

/// Polling interval.
const LOOK: Duration = Duration::from_millis(100);

impl Runner {
    /// Waits until the program has bound `count` of its listeners, or is found not to bind them.
    pub(super) fn await_binds(&self, count: usize) -> Result<(), String> {
        let found = self.await_binds_here(count);
        let _ = fs::remove_file(self.plan.own_path.with_extension(WAITS));
        found
    }

    fn await_binds_here(&self, count: usize) -> Result<(), String> {
        let bound = |known: &Known| match known.life.is_whole() {
            false => Some(Err(early_end(known))),
            true => (known.bound.len() >= count).then_some(Ok(())),
        };
        let settled =
            |known: &Known| bound(known).map(|bound| bound.map_err(|error| (error, Duration::ZERO)));
        let refused = |known: &Known| known.failed.clone().map(Err);
        let (until, mut told) = (Instant::now() + BIND_WITHIN, None);
        // When it became idle, and how much it had bound by then.
        let mut idle = (Instant::now(), 0);
        loop {
            match self.program.wait(Some(LOOK), |known| settled(known).or_else(|| refused(known))) {
                // It may try another address.
                Some(Err((error, patience))) if self.program.lives() => {
                    return self.program.wait(Some(patience), bound).unwrap_or(Err(error));
                }
                Some(found) => return found.map_err(|(error, _)| error),
                None => {}
            }
            let (mismatch, binds) = self.mismatch();
            if mismatch != told {
                self.tell_of_mismatch(mismatch.as_ref());
                told = mismatch.clone();
            }
            if mismatch.is_none() || binds != idle.1 || self.program.is_busy() {
                idle = (Instant::now(), binds);
            }
            if let Some(mismatch) = mismatch.filter(|mismatch| mismatch.is_for_good(idle.0.elapsed())) {
                return Err(mismatch.to_string());
            }
            if Instant::now() > until {
                return Err(self.never_bound());
            }
        }
    }

    /// What the program has bound in place of a listener, and the number of such bound addresses.
    fn mismatch(&self) -> (Option<Mismatch>, usize) {
        let look = |known: &Known| {
            let listen = self.plan.listen.iter().filter(|(name, _)| !known.bound.contains(&name.to_string()));
            let parse = |(name, text): &(_, String)| -> Option<(String, ListenAddress)> {
                Some((ToString::to_string(name), text.parse().ok()?))
            };
            let missing: Vec<_> = listen.filter_map(parse).collect();
            Some((Mismatch::find(&missing, &known.elsewhere), known.elsewhere.len()))
        };
        self.program.wait(Some(Duration::ZERO), look).unwrap_or_default()
    }

    /// Reports to the service's log, and to the daemon, which shows it during the wait.
    fn tell_of_mismatch(&self, mismatch: Option<&Mismatch>) {
        let path = self.plan.own_path.with_extension(WAITS);
        let told = match mismatch {
            Some(mismatch) => {
                say!("{mismatch}");
                fs::write(&path, mismatch.to_string())
            }
            None => fs::remove_file(&path),
        };
        if let Err(error) = told {
            say!("cannot report this to the daemon: {}: {error}", path.display());
        }
    }

    fn never_bound(&self) -> String {
        let missing = |known: &Known| {
            let listen = self.plan.listen.iter().filter(|(name, _)| !known.bound.contains(&name.to_string()));
            Some((
                listen.map(|(name, address)| format!("{name} = {address}")).collect::<Vec<_>>(),
                known.status.clone(),
            ))
        };
        let (missing, seen) = self.program.wait(None, missing).unwrap_or_default();
        let seen = if seen.is_empty() { "it was not seen to bind anything".to_owned() } else { seen };
        format!(
            "the program has not bound {} within {BIND_WITHIN:?}: {seen}; does it listen elsewhere, over io_uring, or is it a 32-bit \
             program? `handoff doctor` tries it out",
            missing.join(", ")
        )
    }
}
