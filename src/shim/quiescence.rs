//! Finds a moment to end a program at which none of its requests is in progress.
//!
//! Surveys follow each other every few milliseconds, and each one decides the next step:
//!
//! ```text
//!            something is under way                    nothing is under way any more
//!  Running ─────────────────────────▶ Wait, look      ──────────────────────────────▶ Hold, look while nothing runs
//!     ▲                                                                                 │                  │
//!     └──────────────── let it go, perhaps hold back what clients send next ◀───────────┘ not so           ▼ so
//!                                                                                                         End
//! ```
//!
//! - At first it waits for a moment at which no client waits at all. Clients that send requests back to back leave
//!   none, so after [`QuiescenceLimits::clean`] their further input is held back, and the program finishes what it has
//!   begun. Until [`QuiescenceLimits::some`] it does not hold back occasional clients.
//! - A response written in parts looks complete in between. So nothing must have been written for the length of such a
//!   pause, unless the client has sent another request since. Clients that were idle longer do not delay the moment.
//! - An unread request has not begun. Its client sees the connection end, and can retry.
//! - The search is bounded. New connections already wait elsewhere, so the program must end in any case: otherwise
//!   those clients would have waited in vain.

use std::time::Duration;

use crate::config::DrainCondition;

/// No movement for this long counts as still.
const STILL: Duration = Duration::from_millis(5);

/// Maximum number of failed attempts to stop a program: a busy machine may stop it late.
const STOP_ATTEMPTS_MAX: u8 = 3;

/// Time limits of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QuiescenceLimits {
    /// Until no client is in transit to the program. The other times start then.
    pub(super) settle: Duration,
    /// Until no client waits.
    pub(super) clean: Duration,
    /// Until the input of idle connections is held back as well.
    pub(super) some: Duration,
    /// Until requests in progress are finished, if nothing is held back.
    pub(super) loose: Duration,
    /// The same while input is held back.
    pub(super) held_back: Duration,
    /// Until all connections are closed, if they are waited for.
    pub(super) connections: Duration,
}

/// How far client input is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum HeldBack {
    /// Not at all.
    Nothing,
    /// On some connections.
    Some,
    /// On all connections.
    All,
    /// The kernel does not allow it, or the program cannot be stopped.
    Refused,
}

/// The result of a survey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SurveySummary {
    /// No client is in transit to the program.
    pub(super) settled: bool,
    /// It has connections.
    pub(super) open: bool,
    /// A request is in progress.
    pub(super) work: bool,
    /// All requests in progress are uncertain, and the kernel can be asked about them.
    pub(super) uncertain: bool,
    /// An unread request waits.
    pub(super) waiting: bool,
    /// The held-back input may be the rest of a request in progress.
    pub(super) stuck: bool,
    /// Nothing has moved recently.
    pub(super) still: bool,
    /// A response may continue after a pause.
    pub(super) paused: bool,
}

/// The next step after a survey of the running program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum RunningStep {
    /// Survey again soon.
    Wait,
    /// Stop the program, and survey at once.
    StopProgram,
    /// End the program.
    End,
}

/// The next step after a survey of the stopped program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum StoppedStep {
    /// End the program.
    End,
    /// Hold back client input, then continue the program.
    HoldBack {
        /// Also on connections that are not in use now.
        all: bool,
    },
    /// Continue the program.
    Continue,
}

/// The table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quiescence {
    pub(super) drain: DrainCondition,
    pub(super) limits: QuiescenceLimits,
    pub(super) held_back: HeldBack,
    /// Number of failed attempts to stop the program.
    pub(super) failed_stops: u8,
}

impl Quiescence {
    /// After a survey of the running program. `after` counts from the time when no client was in transit, or before
    /// that from the first survey.
    pub(super) fn running(&self, after: Duration, summary: SurveySummary) -> RunningStep {
        let clean_is_over = after >= self.limits.clean;
        match (self.drain, summary) {
            (_, SurveySummary { settled: false, .. }) if after < self.limits.settle => RunningStep::Wait,
            (_, SurveySummary { settled: false, .. }) => RunningStep::End,
            _ if after >= self.limit() => RunningStep::End,
            (DrainCondition::Nothing | DrainCondition::LongRequests, _) => RunningStep::End,
            (DrainCondition::Connections | DrainCondition::Requests, SurveySummary { open: false, .. }) => {
                RunningStep::End
            }
            (DrainCondition::Connections, _) if after < self.limits.connections => RunningStep::Wait,
            // Unread data is known only while the program is stopped.
            (_, _) if clean_is_over && (self.can_hold_back() || summary.stuck) => RunningStep::StopProgram,
            (_, SurveySummary { work: true, uncertain: true, still: true, .. }) => RunningStep::StopProgram,
            (
                _,
                SurveySummary { work: true, .. }
                | SurveySummary { still: false, .. }
                | SurveySummary { paused: true, .. },
            ) => RunningStep::Wait,
            (_, SurveySummary { waiting: true, .. }) if !clean_is_over => RunningStep::Wait,
            (_, _) => RunningStep::StopProgram,
        }
    }

    /// After a survey of the stopped program.
    pub(super) fn held(&self, after: Duration, summary: SurveySummary) -> StoppedStep {
        let clean_is_over = after >= self.limits.clean;
        match summary {
            SurveySummary { work: false, still: true, paused: false, waiting: false, .. } => StoppedStep::End,
            SurveySummary { work: false, still: true, paused: false, waiting: true, .. } if clean_is_over => {
                StoppedStep::End
            }
            _ if clean_is_over && (self.can_hold_back() || summary.stuck) => {
                StoppedStep::HoldBack { all: after >= self.limits.some }
            }
            _ => StoppedStep::Continue,
        }
    }

    /// A part of the program did not stop. Attempts are limited: otherwise the rest would be stopped most of the time.
    pub(super) fn not_held(&mut self) -> StoppedStep {
        self.failed_stops += 1;
        if self.failed_stops >= STOP_ATTEMPTS_MAX {
            self.held_back = HeldBack::Refused;
        }
        StoppedStep::Continue
    }

    fn can_hold_back(&self) -> bool {
        match self.held_back {
            HeldBack::Nothing | HeldBack::Some => true,
            HeldBack::All | HeldBack::Refused => false,
        }
    }

    fn limit(&self) -> Duration {
        let limit = match self.held_back {
            HeldBack::Refused => self.limits.loose,
            HeldBack::Nothing | HeldBack::Some | HeldBack::All => self.limits.held_back,
        };
        match self.drain {
            DrainCondition::Connections => self.limits.connections + limit,
            DrainCondition::Nothing | DrainCondition::LongRequests | DrainCondition::Requests => limit,
        }
    }
}

/// Whether nothing has moved for long enough.
pub(super) fn is_still(still: Duration) -> bool {
    still >= STILL
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const LIMITS: QuiescenceLimits = QuiescenceLimits {
        settle: ms(4000),
        clean: ms(30),
        some: ms(150),
        loose: ms(500),
        held_back: ms(1000),
        connections: ms(2000),
    };
    const REQUESTS: Quiescence = Quiescence {
        drain: DrainCondition::Requests,
        limits: LIMITS,
        held_back: HeldBack::Nothing,
        failed_stops: 0,
    };
    const DRAINS: [DrainCondition; 4] = [
        DrainCondition::Nothing,
        DrainCondition::LongRequests,
        DrainCondition::Requests,
        DrainCondition::Connections,
    ];
    const HELD_BACK: [HeldBack; 4] = [HeldBack::Nothing, HeldBack::Some, HeldBack::All, HeldBack::Refused];

    fn all() -> impl Iterator<Item = (Quiescence, Duration, SurveySummary)> {
        let times = [0, 29, 30, 149, 150, 499, 500, 999, 1000, 1999, 2000, 2500, 3000, 3999, 4000, 60_000];
        let moments = DRAINS.into_iter().flat_map(|drain| {
            HELD_BACK.map(|held_back| Quiescence { drain, limits: LIMITS, held_back, failed_stops: 0 })
        });
        let looks = moments.flat_map(move |moment| times.map(|time| (moment, ms(time))));
        looks.flat_map(|(moment, time)| {
            (0..=255_u8).map(move |bits| {
                let [settled, open, work, waiting, still, unsure, stuck, paused] =
                    [1, 2, 4, 8, 16, 32, 64, 128].map(|bit| bits & bit != 0);
                (
                    moment,
                    time,
                    SurveySummary { settled, open, work, uncertain: unsure, waiting, stuck, still, paused },
                )
            })
        })
    }

    #[test]
    fn each_look_has_one_next_step() {
        for (moment, after, summary) in all() {
            let step = moment.running(after, summary);
            let what = format!("{moment:?} {after:?} {summary:?}: {step:?}");
            if after >= ms(4000) {
                assert_eq!(step, RunningStep::End, "the search is bounded: {what}");
            } else if !summary.settled {
                assert_eq!(step, RunningStep::Wait, "a client is in transit: {what}");
            } else if matches!(moment.drain, DrainCondition::Nothing | DrainCondition::LongRequests) {
                assert_eq!(step, RunningStep::End, "it finishes the rest itself: {what}");
            } else if step == RunningStep::End {
                let is_over = after >= moment.limit();
                assert!(is_over || !summary.open, "only a stopped program ends before the limit: {what}");
            } else if step == RunningStep::StopProgram && (summary.work || summary.paused) {
                assert!(
                    moment.can_hold_back() || summary.work && summary.uncertain || summary.stuck,
                    "to hold it for nothing stops its clients: {what}"
                );
            }
        }
    }

    #[test]
    fn a_held_program_is_told_if_nothing_is_under_way() {
        for (moment, after, summary) in all() {
            let held = moment.held(after, summary);
            let what = format!("{moment:?} {after:?} {summary:?}: {held:?}");
            let is_clean = after < LIMITS.clean;
            match held {
                StoppedStep::End => {
                    assert!(!summary.work && summary.still && !summary.paused, "{what}");
                    assert!(!summary.waiting || !is_clean, "{what}");
                }
                StoppedStep::HoldBack { all } => {
                    assert!(!is_clean && (moment.can_hold_back() || summary.stuck), "{what}");
                    assert_eq!(all, after >= LIMITS.some, "{what}");
                }
                StoppedStep::Continue => assert!(
                    summary.work || !summary.still || summary.paused || summary.waiting && is_clean,
                    "such a moment may not come again: {what}"
                ),
            }
        }
    }

    /// A process that waits for a disk does not stop.
    #[test]
    fn a_program_that_cannot_be_held_is_told_soon() {
        let mut moment = REQUESTS;
        let [work, stuck, unsure, waiting, still] = [true, false, false, false, false];
        let busy = SurveySummary {
            settled: true,
            open: true,
            work,
            uncertain: unsure,
            waiting,
            stuck,
            still,
            paused: false,
        };
        for after in [30, 135, 240] {
            assert_eq!(moment.running(ms(after), busy), RunningStep::StopProgram, "{after}");
            assert_eq!(moment.not_held(), StoppedStep::Continue);
        }
        for after in [345, 499] {
            assert_eq!(moment.running(ms(after), busy), RunningStep::Wait, "{after}");
        }
        assert_eq!(moment.running(ms(500), busy), RunningStep::End);
    }

    /// Clients send requests back to back: each survey finds work until their input is held back.
    #[test]
    fn what_is_held_back_brings_the_moment() {
        let mut moment = REQUESTS;
        let busy = SurveySummary {
            settled: true,
            open: true,
            work: true,
            uncertain: false,
            stuck: false,
            waiting: true,
            still: false,
            paused: false,
        };
        assert_eq!(moment.running(ms(10), busy), RunningStep::Wait);
        assert_eq!(moment.running(ms(30), busy), RunningStep::StopProgram);
        assert_eq!(moment.held(ms(30), busy), StoppedStep::HoldBack { all: false });
        moment.held_back = HeldBack::Some;
        assert_eq!(
            moment.running(ms(35), busy),
            RunningStep::StopProgram,
            "one more connection can be held back"
        );
        assert_eq!(moment.held(ms(150), busy), StoppedStep::HoldBack { all: true });
        moment.held_back = HeldBack::All;
        assert_eq!(moment.running(ms(155), busy), RunningStep::Wait);
        // The head of a response, and its body later.
        let paused = SurveySummary { work: false, still: true, paused: true, ..busy };
        assert_eq!(moment.running(ms(157), paused), RunningStep::Wait);
        assert_eq!(moment.held(ms(157), paused), StoppedStep::Continue);
        assert_eq!(moment.running(ms(1000), paused), RunningStep::End, "the search is bounded");
        let rest = SurveySummary { work: false, still: true, ..busy };
        assert_eq!(moment.running(ms(160), rest), RunningStep::StopProgram);
        assert_eq!(moment.held(ms(160), rest), StoppedStep::End);
    }
}
