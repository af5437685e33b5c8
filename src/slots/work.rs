//! Whether a request is under way on a connection.
//!
//! That is found out from outside, by what the kernel counts, so it is a guess. A look at a connection is compared with the
//! look before:
//!
//! - What the process has read, and what it has written, are numbers of bytes. If only one of them grew, that tells what
//!   came last. A request is *asked* when the process has read of it: one that nobody has read *waits*, and has not begun.
//! - If both grew, or at the first look, times decide where they differ: data that came after the last data was sent is a
//!   request without an answer. An acknowledgment that is missing, or that came later than the data, says that the client
//!   has asked nothing since the answer.
//! - The kernel's clock for the times ticks every 1 to 10 ms. In the same tick, one segment since a look at rest can only be
//!   a request that was answered. Otherwise it is *unsure*: a privileged process asks the kernel (`sys::tcp`), and any other
//!   one waits. If nothing moves for [`TIE`], or for [`LONG_TIE`], an answer was the last thing.
//! - A connection that is younger than a second and has had no data yet is about to have some: clients connect to ask. One
//!   that has had few segments may be in its first request, of which nothing may wait until the process is gone.
//! - An answer that is sent in parts with pauses between them looks finished in the pauses. So what was written lately, and not
//!   followed by a request, may go on: see [`Account::answers`]. A client that sends the first part of a request and no more looks busy.
//! - No time counts in which the process was held: see `held_clock.rs`.
//! - What takes the process for [`LONG`] is a request, and no step of a handshake.
//! - Of a unix connection only the bytes are known: a request that has been read is not seen.

use std::time::{Duration, Instant};

use super::diag::{Found, History};
use super::held_clock::HeldClock;

/// For how long a request is looked for whose order with the last answer is not known, if nothing moves.
const TIE: Duration = Duration::from_millis(50);
/// The same where a request was under way before, or may have been: an answer and the next request are as likely as the rest
/// of one and its answer.
const LONG_TIE: Duration = Duration::from_millis(300);
/// For how long a connection without any data counts as one that is about to have some.
const YOUNG: Duration = Duration::from_secs(1);
/// What is written so long after the last request is a stream: it is not known to end, and is not waited for.
const STREAM: Duration = Duration::from_secs(3);
/// With no more segments than these, a connection may be in its first request: those of TLS come before it.
const NEW_SEGMENTS: u32 = 3;
/// For longer than that no server works at a step of a handshake.
const LONG: Duration = Duration::from_millis(500);

/// What a process is doing on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Doing {
    /// Nothing. An answer that is all sent is done: the kernel delivers it, whatever becomes of the process.
    Rest,
    /// A request has come of which the process has read nothing.
    Waits,
    /// There is a request that is not answered.
    Asked,
    /// An answer is not all sent.
    Sends,
    /// The order of the last request and the last answer is not known.
    Unsure {
        /// Whether a request was under way before, or may have been.
        was_asked: bool,
    },
    /// It is about to be asked for the first time.
    Young,
}

/// What has grown since the look before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Moved {
    /// There was no look before.
    Unknown,
    Nothing,
    Read,
    Written,
    /// And whether all that came can be one request.
    Both {
        one_request: bool,
    },
}

/// What came last, by the times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Last {
    Request,
    Answer,
    Unknown,
}

/// One look, without numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Signs {
    moved: Moved,
    last: Last,
    /// Something came that the process has not read.
    unread: bool,
    /// Something was written that has not been sent for the first time.
    not_sent: bool,
    /// There was no data yet, and it is not for long that there was none.
    is_young: bool,
    /// For so long has nothing moved that an unknown order counts as rest.
    is_still: bool,
}

/// The table: what was so before, and what is seen, give what is so.
fn judge(before: Doing, signs: Signs) -> Doing {
    let Signs { moved, last, unread, not_sent, is_young, is_still } = signs;
    let rest = if unread { Doing::Waits } else { Doing::Rest };
    let by_times = |unknown| match last {
        Last::Request => Doing::Asked,
        Last::Answer => Doing::Rest,
        Last::Unknown => unknown,
    };
    let unsure = |was_asked| if is_still { rest } else { Doing::Unsure { was_asked } };
    match (moved, before) {
        _ if not_sent => Doing::Sends,
        _ if is_young => Doing::Young,
        (Moved::Read, _) => Doing::Asked,
        (Moved::Written, _) => rest,
        // What waits says nothing of what was read before.
        (Moved::Unknown, _) if unread => unsure(true),
        (Moved::Unknown, _) => by_times(unsure(true)),
        (Moved::Nothing, Doing::Asked) => Doing::Asked,
        (Moved::Nothing, Doing::Rest | Doing::Waits | Doing::Young) => rest,
        (Moved::Nothing, Doing::Unsure { was_asked }) if unread => unsure(was_asked),
        (Moved::Nothing, Doing::Unsure { was_asked }) => by_times(unsure(was_asked)),
        (Moved::Nothing, Doing::Sends) => {
            if unread {
                rest
            } else {
                by_times(rest)
            }
        }
        (Moved::Both { .. }, Doing::Asked | Doing::Sends) if unread => unsure(true),
        (Moved::Both { .. }, _) if unread => unsure(false),
        (Moved::Both { .. }, Doing::Asked | Doing::Sends) => by_times(unsure(true)),
        (Moved::Both { one_request: true }, Doing::Rest | Doing::Waits | Doing::Young) => {
            by_times(Doing::Rest)
        }
        (Moved::Both { .. }, _) => by_times(unsure(false)),
    }
}

/// What is known of a connection after a look at it.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) doing: Doing,
    read: u64,
    written: u64,
    segments: u32,
    /// Since when, at the latest, what is under way is under way.
    since: Instant,
    /// It cannot be for longer.
    at_most: Option<Duration>,
    /// When anything moved that was seen.
    pub(super) moved: Instant,
    /// When the process wrote last, if nothing was asked since: a client asks again when it has its answer.
    wrote: Option<Instant>,
    /// When the client sent something last.
    asked: Instant,
    /// Whether it may be in its first request.
    is_new: bool,
    /// Whether something is unread.
    unread: bool,
    /// How many segments have come and were dropped.
    pub(super) dropped: u32,
}

impl Account {
    /// After a look at `now`, and perhaps one before. All times of an account are those of the clock.
    pub(super) fn next(before: Option<&Account>, found: &Found, now: Instant, clock: &HeldClock) -> Account {
        // The kernel counts the end of the client's data as one byte.
        let end = u32::from(found.is_half_closed());
        let unread = found.unread.saturating_sub(end);
        match found.history {
            Some(history) => Account::of_tcp(before, history, unread, found.unsent, end, (now, clock)),
            None => Account::of_unix(before, unread > 0 || found.unsent > 0, clock.at(now)),
        }
    }

    fn of_unix(before: Option<&Account>, is_busy: bool, now: Instant) -> Account {
        let doing = if is_busy { Doing::Asked } else { Doing::Rest };
        let since = before.filter(|before| before.doing == doing).map_or(now, |before| before.since);
        let (read, written, segments, at_most) = (0, 0, 0, None);
        Account {
            doing,
            read,
            written,
            segments,
            since,
            at_most,
            moved: since,
            wrote: None,
            asked: since,
            is_new: false,
            unread: is_busy,
            dropped: 0,
        }
    }

    fn of_tcp(
        before: Option<&Account>,
        history: History,
        unread: u32,
        unsent: u32,
        end: u32,
        (now, clock): (Instant, &HeldClock),
    ) -> Account {
        let ago = |ms: u32| clock.at(now.checked_sub(Duration::from_millis(ms.into())).unwrap_or(now));
        let now = clock.at(now);
        let received = history.bytes_received.saturating_sub(end.into());
        let (read, written) =
            (received.saturating_sub(unread.into()), history.bytes_acked + u64::from(unsent));
        let moved = moved(before, read, written, history.segments_received);
        let moved_at = match (moved, before) {
            (Moved::Nothing, Some(before)) => before.moved,
            (Moved::Unknown, _) | (_, None) => ago(history.last_sent_ms.min(history.last_received_ms)),
            (Moved::Read | Moved::Written | Moved::Both { .. }, Some(_)) => now,
        };
        let doing_before = before.map_or(Doing::Rest, |before| before.doing);
        let patience = match before.map(|before| before.doing) {
            None | Some(Doing::Unsure { was_asked: true }) => LONG_TIE,
            Some(_) => TIE,
        };
        let doing = judge(
            doing_before,
            Signs {
                moved,
                last: last(history, received, unsent),
                unread: unread > 0,
                not_sent: history.not_sent > 0,
                is_young: end == 0
                    && received == 0
                    && history.segments_sent == 0
                    && ago(history.last_sent_ms) + YOUNG > now,
                is_still: now - moved_at >= patience,
            },
        );
        let goes_on = !matches!(moved, Moved::Both { .. } | Moved::Unknown);
        let since = match before {
            Some(before) if goes_on && before.is_begun() => before.since,
            _ => ago(history.last_received_ms),
        };
        let at_most = match doing {
            Doing::Young => Some(Duration::ZERO),
            Doing::Sends => None,
            Doing::Rest | Doing::Waits | Doing::Asked | Doing::Unsure { .. } => {
                Some(Duration::from_millis(history.last_sent_ms.into()))
            }
        };
        let asks_again = unread > 0 && history.last_received_ms < history.last_sent_ms;
        let wrote = (history.segments_sent > 0 && !asks_again).then(|| ago(history.last_sent_ms));
        let segments = history.segments_received;
        let had_one = before.is_some_and(|before| !before.is_new || before.is_long(now));
        let is_new = !had_one && (history.segments_sent == 0 || segments <= NEW_SEGMENTS);
        Account {
            doing,
            read,
            written,
            segments,
            since,
            at_most,
            moved: moved_at,
            wrote,
            asked: ago(history.last_received_ms),
            is_new,
            unread: unread > 0,
            dropped: history.dropped,
        }
    }

    /// Whether the process must not end now. What waits on a connection that has carried requests was not begun, and a
    /// client can ask again; the first request of a client is not to be lost.
    pub(super) fn is_work(&self) -> bool {
        match self.doing {
            Doing::Asked | Doing::Sends | Doing::Young | Doing::Unsure { .. } => true,
            Doing::Waits => self.is_new,
            Doing::Rest => false,
        }
    }

    /// Whether a request waits that nobody has begun.
    pub(super) fn waits(&self) -> bool {
        self.doing == Doing::Waits && !self.is_new
    }

    /// Whether a request has been read, or may have been.
    pub(super) fn is_begun(&self) -> bool {
        matches!(self.doing, Doing::Asked | Doing::Sends | Doing::Unsure { .. })
    }

    /// Whether what comes next may be held back: not the first request, and not the rest of one that was begun.
    pub(super) fn may_be_held_back(&self) -> bool {
        !self.is_new && self.doing != Doing::Young && !(self.is_begun() && self.unread)
    }

    /// Whether a request has been read that takes longer than any step of a handshake.
    fn is_long(&self, now: Instant) -> bool {
        self.doing == Doing::Asked && now.saturating_duration_since(self.moved) >= LONG
    }

    /// Whether a request has been read, and for so long nothing has come of it, or gone.
    pub(super) fn is_begun_for(&self, time: Duration, now: Instant) -> bool {
        self.is_begun() && !self.unread && now.saturating_duration_since(self.moved) >= time
    }

    /// Whether the process waits for something that may be held back: the rest of a request.
    pub(super) fn misses_something(&self) -> bool {
        self.doing == Doing::Asked && self.unread
    }

    /// Whether an answer may go on of which nothing is under way at this moment: it was written to it within `pause`.
    pub(super) fn answers(&self, now: Instant, pause: Duration) -> bool {
        self.is_written(now, pause) && now.saturating_duration_since(self.asked) < STREAM
    }

    /// Whether it is written to it, as within `pause`, and the last request is long ago.
    pub(super) fn streams(&self, now: Instant, pause: Duration) -> bool {
        self.is_written(now, pause) && now.saturating_duration_since(self.asked) >= STREAM
    }

    fn is_written(&self, now: Instant, pause: Duration) -> bool {
        !self.is_work() && self.wrote.is_some_and(|wrote| now.saturating_duration_since(wrote) < pause)
    }

    /// Of one whose order is not known, and on which nothing is unread: the kernel has told.
    pub(super) fn settle(&mut self, is_answered: bool) {
        self.doing = if is_answered { Doing::Rest } else { Doing::Asked };
    }

    /// Whether the kernel could tell.
    pub(super) fn is_open_question(&self) -> bool {
        matches!(self.doing, Doing::Unsure { .. }) && !self.unread
    }

    /// For how long it has been so.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since).min(self.at_most.unwrap_or(Duration::MAX))
    }
}

fn moved(before: Option<&Account>, read: u64, written: u64, segments: u32) -> Moved {
    let Some(before) = before else { return Moved::Unknown };
    // A request that waited came before.
    let requests = segments.wrapping_sub(before.segments).saturating_add(u32::from(before.unread));
    match (read != before.read, written != before.written) {
        (false, false) => Moved::Nothing,
        (true, false) => Moved::Read,
        (false, true) => Moved::Written,
        (true, true) => Moved::Both { one_request: requests <= 1 },
    }
}

fn last(history: History, received: u64, unsent: u32) -> Last {
    let History { last_sent_ms, last_received_ms, last_ack_ms, segments_sent, .. } = history;
    match last_received_ms.cmp(&last_sent_ms) {
        _ if received == 0 => Last::Answer,
        _ if segments_sent == 0 => Last::Request,
        std::cmp::Ordering::Less => Last::Request,
        std::cmp::Ordering::Greater => Last::Answer,
        std::cmp::Ordering::Equal if unsent > 0 || last_ack_ms < last_received_ms => Last::Answer,
        std::cmp::Ordering::Equal => Last::Unknown,
    }
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;
