//! A clock that stands still while a program is held.
//!
//! A held program reads and writes nothing, and on a busy machine it stays held for long. So its inactivity means
//! something only for the time in which the program could run.

use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct HeldClock {
    spells: Vec<Spell>,
}

/// A period during which the program is held.
#[derive(Debug)]
struct Spell {
    from: Instant,
    /// `None` while it lasts.
    to: Option<Instant>,
    /// The total duration of all earlier periods.
    before: Duration,
}

impl HeldClock {
    /// Stops the clock: the program is held from now on.
    pub(super) fn stop(&mut self, now: Instant) {
        if self.spells.last().is_some_and(|last| last.to.is_none()) {
            return;
        }
        let before = self.spells.last().map_or(Duration::ZERO, |last| last.before + last.lasted_by(now));
        self.spells.push(Spell { from: now, to: None, before });
    }

    /// Starts the clock again: the program continues.
    pub(super) fn go_on(&mut self, now: Instant) {
        if let Some(last) = self.spells.last_mut() {
            last.to.get_or_insert(now);
        }
    }

    /// The time of this clock at a moment: the moment minus the total time that the program was held until then.
    pub(super) fn at(&self, moment: Instant) -> Instant {
        let begun = self.spells.partition_point(|spell| spell.from <= moment);
        let held = self.spells[..begun].last().map(|last| last.before + last.lasted_by(moment));
        moment.checked_sub(held.unwrap_or_default()).unwrap_or(moment)
    }
}

impl Spell {
    fn lasted_by(&self, moment: Instant) -> Duration {
        self.to.map_or(moment, |to| to.min(moment)).saturating_duration_since(self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_still_while_the_program_is_held() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let mut clock = HeldClock::default();
        assert_eq!(clock.at(at(5)), at(5));
        clock.stop(at(10));
        clock.stop(at(15));
        assert_eq!(clock.at(at(40)), at(10), "it is held");
        clock.go_on(at(30));
        clock.go_on(at(35));
        clock.stop(at(50));
        clock.go_on(at(60));
        for (real, shown) in [(5, 5), (10, 10), (20, 10), (30, 10), (40, 20), (50, 30), (55, 30), (70, 40)] {
            assert_eq!(clock.at(at(real)), at(shown), "{real}");
        }
    }
}
