//! The limit of what a service may write to its log in a second.
//!
//! Within a second, lines pass until the limit is used up; then none does, until the second is over. So what passes is
//! one piece, and one note says what was dropped after it.

use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// What was dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) lines: u64,
    pub(super) bytes: u64,
}

/// The gate of one log.
#[derive(Debug, Default)]
pub(super) struct Gate {
    second_begins: Option<Instant>,
    used_bytes: u64,
    is_shut: bool,
    dropped: Dropped,
}

impl Gate {
    /// Whether a line passes at `now`. If lines were dropped before it, the caller reports them first.
    pub(super) fn admit(&mut self, limit_bytes: u64, line_bytes: u64, now: Instant) -> bool {
        if self.second_begins.is_none_or(|begins| now.saturating_duration_since(begins) >= SECOND) {
            (self.second_begins, self.used_bytes, self.is_shut) = (Some(now), 0, false);
        }
        // A line that is longer than the limit passes at the start of a second.
        let is_over = self.used_bytes > 0 && self.used_bytes.saturating_add(line_bytes) > limit_bytes;
        self.is_shut |= is_over;
        if self.is_shut {
            self.dropped.lines += 1;
            self.dropped.bytes += line_bytes;
        } else {
            self.used_bytes = self.used_bytes.saturating_add(line_bytes.max(1));
        }
        !self.is_shut
    }

    /// When what was dropped is reported at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        self.second_begins.filter(|_| self.dropped.lines > 0).map(|begins| begins + SECOND)
    }

    /// What was dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> Option<Dropped> {
        Some(std::mem::take(&mut self.dropped)).filter(|dropped| dropped.lines > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_one_piece_that_passes_and_one_that_is_dropped() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut gate = Gate::default();
        let passed: Vec<bool> = (0..5).map(|_| gate.admit(100, 40, at(0))).collect();
        assert_eq!(passed, [true, true, false, false, false]);
        assert!(!gate.admit(100, 1, at(999)), "a short line does not slip through");
        assert_eq!(gate.due(), Some(at(1000)));
        assert!(gate.admit(100, 500, at(1000)), "a long line at the start of a second");
        assert_eq!(gate.take_dropped(), Some(Dropped { lines: 4, bytes: 121 }));
        assert_eq!((gate.take_dropped(), gate.due()), (None, None));
        assert!(!gate.admit(100, 1, at(1001)));
        assert!(gate.admit(100, 1, at(9000)));
        assert_eq!(gate.take_dropped(), Some(Dropped { lines: 1, bytes: 1 }));
    }
}
