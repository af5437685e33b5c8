//! Whether a service starts again after its process has ended, and when. A pure table with a small memory.

use alloc::vec;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::deadline::Millis;
use crate::reason::Exit;

/// The deaths after which a service starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// All.
    #[default]
    Always,
    /// Those that are no success.
    OnFailure,
    /// None.
    Never,
}

/// What the service file says about restarts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Restart {
    /// The deaths after which the service starts again.
    pub when: When,
    /// The exit codes that are a success. A signal never is.
    pub success: Vec<i32>,
    /// The pause before the second restart in a row; the first has none. Milliseconds.
    pub first_ms: Millis,
    /// By how much each pause is longer than the one before.
    pub factor: u32,
    /// The longest pause. Milliseconds.
    pub max_ms: Millis,
    /// A process that has served this long makes earlier failures count no more. Milliseconds.
    pub healthy_ms: Millis,
    /// How many failed starts and deaths within [`Restart::within_ms`] make the service fail for good; 0: no number.
    pub budget: u8,
    /// The time in which they count. Milliseconds.
    pub within_ms: Millis,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            when: When::Always,
            success: vec![0],
            first_ms: 100,
            factor: 2,
            max_ms: 30_000,
            healthy_ms: 10_000,
            budget: 5,
            within_ms: 60_000,
        }
    }
}

impl Restart {
    /// Whether a process that ended like this has done what it should.
    pub fn is_success(&self, exit: Exit) -> bool {
        matches!(exit, Exit::Code(code) if self.success.contains(&code))
    }

    /// Whether a process that served and ended like this is followed by none.
    pub fn rest_after(&self, exit: Exit) -> Option<Rest> {
        let is_success = self.is_success(exit);
        match self.when {
            When::Never | When::OnFailure if is_success => Some(Rest::Exited),
            When::Never => Some(Rest::Failed),
            When::Always | When::OnFailure => None,
        }
    }

    /// The pause before the restart after this number of restarts in a row. Milliseconds.
    fn pause_ms(&self, in_row: u8) -> Millis {
        match in_row {
            0 => 0,
            n => {
                let longer = Millis::from(self.factor).saturating_pow(u32::from(n - 1));
                self.first_ms.saturating_mul(longer).min(self.max_ms)
            }
        }
    }
}

/// Why a service does not start again, and has no process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rest {
    /// Its process ended with a success, and is not to be started again after that.
    Exited,
    /// It died, and is not to be started again after that; or its budget is used up.
    Failed,
}

/// How the last process of a service that is to run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// It served, and ended like this.
    Died(Exit),
    /// Its start has failed.
    NotReady,
    /// It could not be started at all, which says nothing about the program: the machine lacks something.
    NotStarted,
}

/// What follows the end of the last process of a service that is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Next {
    /// Start it now.
    Now,
    /// Start it after a pause. Milliseconds.
    Later(Millis),
    /// Do not start it.
    Never(Rest),
}

/// The failures of a service that still count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Failures {
    /// Restarts in a row.
    in_row: u8,
    /// Those of the budget.
    spent: u8,
    /// When the first of these was.
    since: Millis,
}

/// A pause does not become longer after this.
const IN_ROW_MAX: u8 = 32;

impl Failures {
    /// Decides after the end of the last process.
    pub fn next(&mut self, restart: &Restart, now: Millis, end: End) -> Next {
        if let End::Died(exit) = end
            && let Some(rest) = restart.rest_after(exit)
        {
            return Next::Never(rest);
        }
        if restart.budget > 0 && end != End::NotStarted {
            if self.spent == 0 || now.saturating_sub(self.since) > restart.within_ms {
                (self.spent, self.since) = (0, now);
            }
            self.spent = self.spent.saturating_add(1);
            if self.spent >= restart.budget {
                return Next::Never(Rest::Failed);
            }
        }
        let pause_ms = restart.pause_ms(self.in_row);
        // Below the longest pause each number has another one; above it they are alike.
        if pause_ms < restart.max_ms {
            self.in_row = (self.in_row + 1).min(IN_ROW_MAX);
        }
        if pause_ms == 0 { Next::Now } else { Next::Later(pause_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(restart: &Restart, count: usize) -> Vec<Next> {
        let mut failures = Failures::default();
        (0..count).map(|_| failures.next(restart, 0, End::NotReady)).collect()
    }

    #[test]
    fn the_first_restart_comes_at_once_and_the_pauses_double_up_to_the_longest() {
        let restart = Restart { budget: 0, ..Restart::default() };
        let pauses = pauses(&restart, 300);
        let first: Vec<Next> = [100, 200, 400, 800, 1600].map(Next::Later).into();
        assert_eq!((pauses[0], &pauses[1..6]), (Next::Now, first.as_slice()));
        assert_eq!((pauses[9], pauses[10]), (Next::Later(25_600), Next::Later(30_000)));
        assert_eq!(pauses[299], Next::Later(30_000));
    }

    #[test]
    fn extreme_values_pause_for_the_longest_time_at_most() {
        let restart = Restart { budget: 0, first_ms: 1, factor: u32::MAX, max_ms: 7, ..Restart::default() };
        assert_eq!(pauses(&restart, 4), [Next::Now, Next::Later(1), Next::Later(7), Next::Later(7)]);
        let restart = Restart { budget: 0, first_ms: 0, factor: 0, max_ms: 0, ..Restart::default() };
        assert_eq!(pauses(&restart, 200), [Next::Now; 200]);
    }

    #[test]
    fn the_budget_counts_within_its_time() {
        let restart = Restart { budget: 3, within_ms: 1000, ..Restart::default() };
        let mut failures = Failures::default();
        let mut at = |now| failures.next(&restart, now, End::NotReady);
        assert_eq!([at(0), at(500)], [Next::Now, Next::Later(100)]);
        // More than a second after the first one.
        assert_eq!([at(1001), at(1002)], [Next::Later(200), Next::Later(400)]);
        assert_eq!(at(2001), Next::Never(Rest::Failed));
    }

    #[test]
    fn what_the_machine_lacks_costs_a_pause_and_no_attempt() {
        let restart = Restart { budget: 2, max_ms: 200, ..Restart::default() };
        let mut failures = Failures::default();
        let mut next = |end| failures.next(&restart, 0, end);
        let pauses = [Next::Now, Next::Later(100), Next::Later(200), Next::Later(200)];
        assert_eq!(pauses.map(|_| next(End::NotStarted)), pauses);
        assert_eq!([next(End::NotReady), next(End::NotReady)], [Next::Later(200), Next::Never(Rest::Failed)]);
    }

    /// Each policy with each end.
    #[test]
    fn a_death_is_followed_by_what_the_file_says() {
        let (success, failure) =
            ([Exit::Code(0), Exit::Code(3)], [Exit::Code(1), Exit::Signal(15), Exit::Unknown]);
        let (again, exited, failed) = (Next::Now, Next::Never(Rest::Exited), Next::Never(Rest::Failed));
        for (when, after_success, after_failure) in
            [(When::Always, again, again), (When::OnFailure, exited, again), (When::Never, exited, failed)]
        {
            let restart = Restart { when, success: vec![0, 3], ..Restart::default() };
            let next = |exit| Failures::default().next(&restart, 0, End::Died(exit));
            assert_eq!(success.map(next), [after_success; 2], "{when:?}");
            assert_eq!(failure.map(next), [after_failure; 3], "{when:?}");
            // A start that fails has not died.
            assert_eq!(Failures::default().next(&restart, 0, End::NotReady), again, "{when:?}");
        }
    }
}
