//! Whether a request is under way on a connection.
//!
//! That is told from outside, by what the kernel knows, so it is a guess:
//!
//! - Bytes that the process has not read, or that the client has not acknowledged, are work. That the client has not
//!   acknowledged what was sent to it tells, too, that it has asked nothing since.
//! - Data that was received after the last data was sent is a request that has no answer yet.
//! - The kernel's clock for the two ticks every 1 to 10 ms. If both are in the same tick, an acknowledgment that came
//!   later than the data tells that the client had the answer before it said anything more. Without one, it has come with
//!   the data: the answer was most likely to the request before, and the connection counts as busy for one second more.
//! - A connection that is younger than a second and has had no data yet is about to have some: clients connect to ask.
//! - An answer that is sent in parts with pauses between them looks finished in the pauses. A client that sends the
//!   first part of a request and no more looks busy.
//! - Of a unix connection only the bytes are known: a request that has been read is not seen.
//!
//! How long it has been so is at least the time since the last data was received, at least the time since consecutive
//! calls have seen it busy, and at most the time since the last data was sent.

use std::time::Duration;

use super::diag::{Found, History};

/// For how long a connection counts as busy whose last request and last answer cannot be put in order, or that has had
/// neither yet.
const TIE_MS: u32 = 1000;

/// A request under way, as old as can be told from one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Work {
    at_least_ms: u32,
    pub(super) at_most_ms: Option<u32>,
    /// Whether the answer is all sent, and only its acknowledgment is missing.
    pub(super) is_sent: bool,
}

impl Work {
    /// The age of a request that has been seen at work for so long.
    pub(super) fn age_ms(self, seen_for: Duration) -> u64 {
        let age = u64::from(self.at_least_ms).max(seen_for.as_millis() as u64);
        age.min(self.at_most_ms.map_or(u64::MAX, u64::from))
    }
}

/// The work that a connection is at, `None` if it is at rest.
pub(super) fn work(found: &Found) -> Option<Work> {
    classify(found.unread, found.unsent, found.is_half_closed(), found.history)
}

fn classify(unread: u32, unsent: u32, half_closed: bool, history: Option<History>) -> Option<Work> {
    // The kernel counts the end of the client's data as one byte.
    let end = u32::from(half_closed);
    let unread = unread.saturating_sub(end) > 0;
    let Some(history) = history else {
        return (unread || unsent > 0).then_some(Work { at_least_ms: 0, at_most_ms: None, is_sent: false });
    };
    let History { last_sent_ms, last_received_ms, last_ack_ms, bytes_received, not_sent, segments_sent } =
        history;
    if unread {
        return Some(Work { at_least_ms: last_received_ms, at_most_ms: None, is_sent: false });
    }
    let received_any = bytes_received > u64::from(end);
    let unanswered = received_any && (last_received_ms < last_sent_ms || segments_sent == 0);
    if unsent > 0 {
        return Some(Work { at_least_ms: 0, at_most_ms: None, is_sent: not_sent == 0 && !unanswered });
    }
    // Since the handshake.
    if !half_closed && !received_any && segments_sent == 0 && last_sent_ms < TIE_MS {
        return Some(Work { at_least_ms: 0, at_most_ms: Some(0), is_sent: false });
    }
    let tie =
        last_received_ms == last_sent_ms && last_ack_ms >= last_received_ms && last_received_ms < TIE_MS;
    let busy = unanswered || received_any && tie;
    busy.then_some(Work { at_least_ms: last_received_ms, at_most_ms: Some(last_sent_ms), is_sent: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that has had a request and an answer, at rest.
    const AT_REST: History = History {
        last_sent_ms: 40,
        last_received_ms: 80,
        last_ack_ms: 40,
        bytes_received: 100,
        not_sent: 0,
        segments_sent: 3,
    };

    #[test]
    fn work_is_told_from_rest() {
        const OPEN: bool = false;
        const ENDED: bool = true;
        let busy = |at_least_ms, at_most_ms| Some(Work { at_least_ms, at_most_ms, is_sent: false });
        let on_its_way = |at_least_ms, at_most_ms| Some(Work { at_least_ms, at_most_ms, is_sent: true });
        let fresh =
            History { last_sent_ms: 500, last_received_ms: 500, last_ack_ms: 500, ..History::default() };
        let stale = History { last_sent_ms: 1000, last_received_ms: 1000, ..fresh };
        let asked = History { last_received_ms: 20, ..AT_REST };
        let first = History { bytes_received: 1, ..fresh };
        let tie = History { last_sent_ms: 80, last_ack_ms: 80, ..AT_REST };
        let long_ago = History { last_sent_ms: 1000, last_received_ms: 1000, last_ack_ms: 1000, ..AT_REST };
        for (what, unread, unsent, end, history, expected) in [
            ("answered", 0, 0, OPEN, AT_REST, None),
            ("answered, and the client has ended", 0, 0, ENDED, AT_REST, None),
            ("answered, and the end is not read", 1, 0, ENDED, AT_REST, None),
            ("nothing was sent or received yet", 0, 0, OPEN, fresh, busy(0, Some(0))),
            ("nothing was ever sent or received", 0, 0, OPEN, stale, None),
            ("the end came without a request", 0, 0, ENDED, fresh, None),
            ("only the end was received", 1, 0, ENDED, first, None),
            ("unread", 1, 0, OPEN, AT_REST, busy(80, None)),
            ("unread before the end", 2, 0, ENDED, AT_REST, busy(80, None)),
            ("sent, and not acknowledged", 0, 1, OPEN, AT_REST, on_its_way(0, None)),
            ("the same in the tick of the request", 0, 1, OPEN, tie, on_its_way(0, None)),
            ("the same to a client that has ended", 1, 1, ENDED, AT_REST, on_its_way(0, None)),
            ("not sent", 0, 1, OPEN, History { not_sent: 1, ..AT_REST }, busy(0, None)),
            ("asked before it has acknowledged", 0, 1, OPEN, asked, busy(0, None)),
            ("unread and unsent", 1, 1, OPEN, AT_REST, busy(80, None)),
            ("asked after the answer", 0, 0, OPEN, asked, busy(20, Some(40))),
            ("asked after the answer, then ended", 1, 0, ENDED, asked, busy(20, Some(40))),
            (
                "asked for the first time, in the tick of the handshake",
                0,
                0,
                OPEN,
                first,
                busy(500, Some(500)),
            ),
            (
                "asked and answered in a tick, acknowledged later",
                0,
                0,
                OPEN,
                History { last_ack_ms: 40, ..tie },
                None,
            ),
            ("asked and answered in a tick, in which order?", 0, 0, OPEN, tie, busy(80, Some(80))),
            ("the same, but it is long ago", 0, 0, OPEN, long_ago, None),
        ] {
            assert_eq!(classify(unread, unsent, end, Some(history)), expected, "{what}");
        }
        assert_eq!(classify(0, 0, OPEN, None), None);
        assert_eq!(classify(1, 0, OPEN, None), busy(0, None));
        assert_eq!(classify(0, 1, OPEN, None), busy(0, None));
    }

    #[test]
    fn the_age_is_what_was_seen_within_what_is_possible() {
        let age = |at_least_ms, at_most_ms, seen| {
            Work { at_least_ms, at_most_ms, is_sent: false }.age_ms(Duration::from_millis(seen))
        };
        assert_eq!(age(20, Some(40), 0), 20);
        assert_eq!(age(20, Some(40), 30), 30);
        assert_eq!(age(20, Some(40), 5000), 40, "there was an answer in between");
        assert_eq!(age(20, None, 5000), 5000);
    }
}
