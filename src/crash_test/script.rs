//! The script of a soak, generated from a seed: stretches of rounds. A round is an operation and the faults that hit
//! it.
//!
//! The same seed gives the same script. What the service does when a fault hits depends on the machine. In a *calm*
//! stretch the faults hit only the daemon and the keeper, so clients must not notice anything. In a *rough* one they
//! also hit the processes of the service, whose connections may break, but nothing else. Between stretches there are
//! no clients, and the service may be stopped.

use std::fmt;
use std::time::Duration;

use super::fault::{Fault, ProcessRole};
use super::random::Random;

/// Number of rounds in a stretch.
const ROUNDS: usize = 8;
/// Maximum time from the request of the operation, or from the last fault, to the next fault.
const WITHIN_MS: usize = 120;

/// What the operator does in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    /// Nothing: the service is at rest.
    Nothing,
    /// An upgrade to a good release.
    Upgrade,
    /// An upgrade to a release that never serves.
    BadUpgrade,
    /// An upgrade to a good release that is called off after this many milliseconds.
    Cancel(u16),
    /// The same binary, in a new process.
    Restart,
    /// SIGQUIT to the daemon. The next one takes over.
    ReplaceDaemon,
    /// Stop and start, only without clients.
    StopAndStart,
    /// SIGTERM to the daemon: it stops the service, and the next daemon starts it. Only without clients.
    EndDaemon,
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScheduledFault {
    /// Time after the request of the operation, or after the previous fault.
    pub(super) after: Duration,
    pub(super) victim: ProcessRole,
    pub(super) fault: Fault,
}

/// An operation, and the faults that hit it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Round {
    pub(super) operation: Operation,
    pub(super) faults: Vec<ScheduledFault>,
}

/// Rounds under one load, followed by one without clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoadPeriod {
    pub(super) rough: bool,
    pub(super) rounds: Vec<Round>,
    pub(super) without_clients: Round,
}

/// An endless script.
#[derive(Debug, Clone)]
pub(super) struct Script {
    random: Random,
    /// Whether there is a release that never serves.
    bad: bool,
    periods: usize,
}

impl Script {
    pub(super) fn new(seed: u64, bad: bool) -> Self {
        Self { random: Random::new(seed), bad, periods: 0 }
    }

    pub(super) fn next_period(&mut self) -> LoadPeriod {
        self.periods += 1;
        let rough = self.periods.is_multiple_of(2);
        let rounds = (0..ROUNDS).map(|_| self.round(rough)).collect();
        let dark = self.random.weighted(&[(2, Operation::StopAndStart), (1, Operation::EndDaemon)]);
        let without_clients = Round { operation: dark, faults: self.random_faults(true) };
        LoadPeriod { rough, rounds, without_clients }
    }

    fn round(&mut self, rough: bool) -> Round {
        let after_ms = u16::try_from(self.random.below(WITHIN_MS)).unwrap_or_default();
        let operation = self.random.weighted(&[
            (2, Operation::Nothing),
            (8, Operation::Upgrade),
            (if self.bad { 3 } else { 0 }, Operation::BadUpgrade),
            (2, Operation::Cancel(after_ms)),
            (2, Operation::Restart),
            (1, Operation::ReplaceDaemon),
        ]);
        Round { operation, faults: self.random_faults(rough) }
    }

    fn random_faults(&mut self, rough: bool) -> Vec<ScheduledFault> {
        let service = if rough { 3 } else { 0 };
        let count = self.random.weighted(&[(3, 0), (5, 1), (2, 2), (1, 3)]);
        let fault = |_| ScheduledFault {
            after: Duration::from_millis(self.random.below(WITHIN_MS) as u64),
            victim: self.random.weighted(&[
                (3, ProcessRole::Supervisor),
                (1, ProcessRole::Keeper),
                (service, ProcessRole::Incumbent),
                (service, ProcessRole::Successor),
            ]),
            fault: self.random.weighted(&[(2, Fault::Kill), (1, Fault::Stop)]),
        };
        (0..count).map(fault).collect()
    }
}

impl Round {
    /// Whether a fault hits a process of the service.
    pub(super) fn harms_the_service(&self) -> bool {
        self.faults.iter().any(|scheduled| scheduled.victim.is_service())
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Upgrade => "upgrade",
            Self::BadUpgrade => "bad upgrade",
            Self::Cancel(_) => "cancelled upgrade",
            Self::Restart => "restart",
            Self::ReplaceDaemon => "new daemon",
            Self::StopAndStart => "stop and start",
            Self::EndDaemon => "end of the daemon",
        })
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.operation.fmt(f)?;
        if let Operation::Cancel(after_ms) = self.operation {
            write!(f, " after {after_ms} ms")?;
        }
        for ScheduledFault { after, victim, fault } in &self.faults {
            write!(f, ", {} ms later {victim} {fault}", after.as_millis())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretches(seed: u64, bad: bool) -> Vec<LoadPeriod> {
        let mut script = Script::new(seed, bad);
        (0..100).map(|_| script.next_period()).collect()
    }

    #[test]
    fn a_script_can_be_repeated() {
        assert_eq!(stretches(3, true), stretches(3, true));
        assert_ne!(stretches(3, true), stretches(4, true));
    }

    #[test]
    fn calm_stretches_leave_the_service_alone_and_everything_else_happens() {
        let all = stretches(1, true);
        let rounds: Vec<&Round> = all.iter().flat_map(|period| &period.rounds).collect();
        for period in all.iter().filter(|period| !period.rough) {
            assert!(!period.rounds.iter().any(Round::harms_the_service), "{period:?}");
        }
        for victim in ProcessRole::ALL {
            for fault in [Fault::Kill, Fault::Stop] {
                let hit = |scheduled: &ScheduledFault| scheduled.victim == victim && scheduled.fault == fault;
                assert!(rounds.iter().any(|round| round.faults.iter().any(hit)), "{victim} {fault}");
            }
        }
        let happens = |word: &str| rounds.iter().any(|round| round.operation.to_string() == word);
        for word in ["nothing", "upgrade", "bad upgrade", "cancelled upgrade", "restart", "new daemon"] {
            assert!(happens(word), "{word}");
        }
        for dark in [Operation::StopAndStart, Operation::EndDaemon] {
            assert!(!rounds.iter().any(|round| round.operation == dark));
            assert!(all.iter().any(|period| period.without_clients.operation == dark));
        }
    }

    #[test]
    fn without_a_bad_release_there_is_no_upgrade_to_one() {
        let all = stretches(1, false);
        assert!(all.iter().flat_map(|it| &it.rounds).all(|round| round.operation != Operation::BadUpgrade));
    }
}
