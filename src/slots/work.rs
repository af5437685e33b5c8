//! Whether a request is in progress on a connection.
//!
//! This is inferred from outside, from the kernel's counters, so it is a guess. Each observation is compared with the
//! previous one:
//!
//! - The process's total read and written bytes. If only one of them grew, that one came last. A request is *asked*
//!   when the process has read any of it; an unread request *waits*, and has not begun.
//! - If both grew, or at the first observation, differing timestamps decide. Data that arrived after the last data was
//!   sent is an unanswered request. If an acknowledgment is missing, or came later than the data, the client has sent
//!   no request since the response.
//! - The kernel's clock for timestamps ticks every 1 to 10 ms. Within one tick, a single segment since an idle
//!   observation can only be a request that was answered. Otherwise the state is *unsure*: a privileged process asks
//!   the kernel (`sys::tcp`), any other one waits. If nothing moves for [`TIE_LIMIT`], or for [`LONG_TIE`], a response
//!   came last.
//! - A connection younger than a second without data is about to have some: clients connect in order to send requests.
//!   One with few segments may be in its first request, of which no part may stay unread until the process is gone.
//! - A response sent in parts looks complete during the pauses. So recent output that no request follows may continue:
//!   see [`ConnectionWork::answers`]. A client that sends only the first part of a request looks busy.
//! - Processing that takes [`LONG`] is a request, not a step of a handshake.
//! - For unix connections only the unread bytes are known: a request that has been read is invisible.

use std::time::{Duration, Instant};

use super::diag::{SocketInfo, TrafficHistory};

/// How long without movement until an unknown order counts as idle.
const TIE_LIMIT: Duration = Duration::from_millis(50);
/// The same if a request was, or may have been, in progress before: the rest of a request and its response are as
/// likely as a response and the next request.
const LONG_TIE: Duration = Duration::from_millis(300);
/// The same if the kernel can be asked. A connection at rest for longer is not asked about: there may be thousands.
const ASKED_TIE: Duration = Duration::from_secs(10);
/// How long a connection without any data counts as about to have some.
const YOUNG: Duration = Duration::from_secs(1);
/// Output this long after the last request is a stream: it may never end, and is not waited for.
const STREAM: Duration = Duration::from_secs(3);
/// With at most this many segments, a connection may be in its first request: TLS segments precede it.
const NEW_SEGMENTS: u32 = 3;
/// No server spends longer than this on a step of a handshake.
const LONG: Duration = Duration::from_millis(500);

/// The state of a connection at the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum WorkState {
    /// Idle. A completely sent response counts as idle: the kernel delivers it even if the process ends.
    Idle,
    /// A request has arrived, and the process has read none of it.
    Unread,
    /// A request is unanswered.
    Unanswered,
    /// A response is not completely sent.
    Sending,
    /// The order of the last request and the last response is unknown.
    Uncertain {
        /// Whether a request was, or may have been, in progress before.
        was_asked: bool,
    },
    /// It is about to receive its first request.
    New,
}

/// What has grown since the previous observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Movement {
    /// There is no previous observation.
    Unknown,
    Nothing,
    Read,
    Written,
    /// Whether everything that arrived can be one request.
    ReadAndWritten {
        one_request: bool,
    },
}

/// What came last, by timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LastTransfer {
    Request,
    Answer,
    Unknown,
}

/// One observation, without numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sample {
    movement: Movement,
    last_transfer: LastTransfer,
    /// The process has unread data.
    unread: bool,
    /// Written data was not sent for the first time yet.
    not_sent: bool,
    /// There was no data yet, and the connection is young.
    is_young: bool,
    /// Nothing has moved for long enough that an unknown order counts as idle.
    is_still: bool,
}

/// The transition table: previous state and observation to the new state.
fn state_of(before: WorkState, signs: Sample) -> WorkState {
    let Sample { movement: moved, last_transfer: last, unread, not_sent, is_young, is_still } = signs;
    let rest = if unread { WorkState::Unread } else { WorkState::Idle };
    let by_times = |unknown| match last {
        LastTransfer::Request => WorkState::Unanswered,
        LastTransfer::Answer => WorkState::Idle,
        LastTransfer::Unknown => unknown,
    };
    let unsure = |was_asked| if is_still { rest } else { WorkState::Uncertain { was_asked } };
    match (moved, before) {
        _ if not_sent => WorkState::Sending,
        _ if is_young => WorkState::New,
        (Movement::Read, _) => WorkState::Unanswered,
        (Movement::Written, _) => rest,
        // Unread data says nothing about what was read before.
        (Movement::Unknown, _) if unread => unsure(true),
        (Movement::Unknown, _) => by_times(unsure(true)),
        (Movement::Nothing, WorkState::Unanswered) => WorkState::Unanswered,
        (Movement::Nothing, WorkState::Idle | WorkState::Unread | WorkState::New) => rest,
        (Movement::Nothing, WorkState::Uncertain { was_asked }) if unread => unsure(was_asked),
        (Movement::Nothing, WorkState::Uncertain { was_asked }) => by_times(unsure(was_asked)),
        (Movement::Nothing, WorkState::Sending) => {
            if unread {
                rest
            } else {
                by_times(rest)
            }
        }
        (Movement::ReadAndWritten { .. }, WorkState::Unanswered | WorkState::Sending) if unread => {
            unsure(true)
        }
        (Movement::ReadAndWritten { .. }, _) if unread => unsure(false),
        (Movement::ReadAndWritten { .. }, WorkState::Unanswered | WorkState::Sending) => {
            by_times(unsure(true))
        }
        (
            Movement::ReadAndWritten { one_request: true },
            WorkState::Idle | WorkState::Unread | WorkState::New,
        ) => by_times(WorkState::Idle),
        (Movement::ReadAndWritten { .. }, _) => by_times(unsure(false)),
    }
}

/// The known state of a connection after an observation.
#[derive(Debug, Clone)]
pub(super) struct ConnectionWork {
    pub(super) state: WorkState,
    read: u64,
    written: u64,
    segments: u32,
    /// Latest possible start of the current work.
    since: Instant,
    /// Upper bound of its age.
    at_most: Option<Duration>,
    /// When the last movement was observed.
    pub(super) moved_at: Instant,
    /// When the process last wrote; `None` if a request has arrived since: a client sends the next request when it has
    /// its response.
    wrote_at: Option<Instant>,
    /// When the client last sent data.
    asked_at: Instant,
    /// Whether it may be in its first request.
    is_new: bool,
    /// Whether there is unread data.
    unread: bool,
    /// Number of received segments that were dropped.
    pub(super) dropped: u32,
}

impl ConnectionWork {
    /// The state after an observation at `now`, with the previous state if there is one. `asks`: who observes will ask the
    /// kernel about an unsure state.
    pub(super) fn next(
        before: Option<&ConnectionWork>,
        found: &SocketInfo,
        asks: bool,
        now: Instant,
    ) -> ConnectionWork {
        // The kernel counts the end of the client's data as one byte.
        let end = u32::from(found.is_half_closed());
        let unread = found.unread.saturating_sub(end);
        match found.history {
            Some(history) => ConnectionWork::of_tcp(before, history, [unread, found.unsent, end], asks, now),
            None => ConnectionWork::of_unix(before, unread > 0 || found.unsent > 0, now),
        }
    }

    fn of_unix(before: Option<&ConnectionWork>, is_busy: bool, now: Instant) -> ConnectionWork {
        let state = if is_busy { WorkState::Unanswered } else { WorkState::Idle };
        let since = before.filter(|before| before.state == state).map_or(now, |before| before.since);
        let (read, written, segments, at_most) = (0, 0, 0, None);
        ConnectionWork {
            state,
            read,
            written,
            segments,
            since,
            at_most,
            moved_at: since,
            wrote_at: None,
            asked_at: since,
            is_new: false,
            unread: is_busy,
            dropped: 0,
        }
    }

    fn of_tcp(
        before: Option<&ConnectionWork>,
        history: TrafficHistory,
        [unread, unsent, end]: [u32; 3],
        asks: bool,
        now: Instant,
    ) -> ConnectionWork {
        let ago = |ms: u32| now.checked_sub(Duration::from_millis(ms.into())).unwrap_or(now);
        let received = history.bytes_received.saturating_sub(end.into());
        let (read, written) =
            (received.saturating_sub(unread.into()), history.bytes_acked + u64::from(unsent));
        let moved = moved(before, read, written, history.segments_received);
        let moved_at = match (moved, before) {
            (Movement::Nothing, Some(before)) => before.moved_at,
            (Movement::Unknown, _) | (_, None) => ago(history.last_sent_ms.min(history.last_received_ms)),
            (Movement::Read | Movement::Written | Movement::ReadAndWritten { .. }, Some(_)) => now,
        };
        let doing_before = before.map_or(WorkState::Idle, |before| before.state);
        let patience = match before.map(|before| before.state) {
            // With unread data there is nothing to ask.
            _ if asks && unread == 0 => ASKED_TIE,
            None | Some(WorkState::Uncertain { was_asked: true }) => LONG_TIE,
            Some(_) => TIE_LIMIT,
        };
        let state = state_of(
            doing_before,
            Sample {
                movement: moved,
                last_transfer: last(history, received, unsent),
                unread: unread > 0,
                not_sent: history.not_sent > 0,
                is_young: end == 0
                    && received == 0
                    && history.segments_sent == 0
                    && ago(history.last_sent_ms) + YOUNG > now,
                is_still: now - moved_at >= patience,
            },
        );
        let goes_on = !matches!(moved, Movement::ReadAndWritten { .. } | Movement::Unknown);
        let since = match before {
            Some(before) if goes_on && before.is_begun() => before.since,
            _ => ago(history.last_received_ms),
        };
        let at_most = match state {
            WorkState::New => Some(Duration::ZERO),
            WorkState::Sending => None,
            WorkState::Idle | WorkState::Unread | WorkState::Unanswered | WorkState::Uncertain { .. } => {
                Some(Duration::from_millis(history.last_sent_ms.into()))
            }
        };
        let asks_again = unread > 0 && history.last_received_ms < history.last_sent_ms;
        let wrote = (history.segments_sent > 0 && !asks_again).then(|| ago(history.last_sent_ms));
        let segments = history.segments_received;
        let had_one = before.is_some_and(|before| !before.is_new || before.is_long(now));
        let is_new = !had_one && (history.segments_sent == 0 || segments <= NEW_SEGMENTS);
        ConnectionWork {
            state,
            read,
            written,
            segments,
            since,
            at_most,
            moved_at,
            wrote_at: wrote,
            asked_at: ago(history.last_received_ms),
            is_new,
            unread: unread > 0,
            dropped: history.dropped,
        }
    }

    /// Whether the process must not end now. An unread request on a used connection has not begun, and the client can
    /// retry it; the first request of a client must not be lost.
    pub(super) fn is_work(&self) -> bool {
        match self.state {
            WorkState::Unanswered | WorkState::Sending | WorkState::New | WorkState::Uncertain { .. } => true,
            WorkState::Unread => self.is_new,
            WorkState::Idle => false,
        }
    }

    /// Whether a request waits that no process has begun.
    pub(super) fn waits(&self) -> bool {
        self.state == WorkState::Unread && !self.is_new
    }

    /// Whether a request has been, or may have been, read.
    pub(super) fn is_begun(&self) -> bool {
        matches!(self.state, WorkState::Unanswered | WorkState::Sending | WorkState::Uncertain { .. })
    }

    /// Whether further input may be held back: not the first request, and not the rest of one in progress.
    pub(super) fn may_be_held_back(&self) -> bool {
        !self.is_new && self.state != WorkState::New && !(self.is_begun() && self.unread)
    }

    /// Whether a request has been read that takes longer than any step of a handshake.
    fn is_long(&self, now: Instant) -> bool {
        self.state == WorkState::Unanswered && now.saturating_duration_since(self.moved_at) >= LONG
    }

    /// Whether a request has been read, and nothing has moved for `time`.
    pub(super) fn is_begun_for(&self, time: Duration, now: Instant) -> bool {
        self.is_begun() && !self.unread && now.saturating_duration_since(self.moved_at) >= time
    }

    /// Whether the process may wait for held-back data: the rest of a request.
    pub(super) fn misses_something(&self) -> bool {
        self.state == WorkState::Unanswered && self.unread
    }

    /// Whether a response may continue although it is idle now: the process wrote within `pause`.
    pub(super) fn answers(&self, now: Instant, pause: Duration) -> bool {
        self.is_written(now, pause) && now.saturating_duration_since(self.asked_at) < STREAM
    }

    /// Whether the process wrote within `pause`, long after the last request.
    pub(super) fn streams(&self, now: Instant, pause: Duration) -> bool {
        self.is_written(now, pause) && now.saturating_duration_since(self.asked_at) >= STREAM
    }

    fn is_written(&self, now: Instant, pause: Duration) -> bool {
        !self.is_work() && self.wrote_at.is_some_and(|wrote| now.saturating_duration_since(wrote) < pause)
    }

    /// Resolves an unsure state without unread data by the kernel's answer.
    pub(super) fn settle(&mut self, is_answered: bool) {
        self.state = if is_answered { WorkState::Idle } else { WorkState::Unanswered };
    }

    /// Whether the kernel's answer could resolve the state.
    pub(super) fn is_open_question(&self) -> bool {
        matches!(self.state, WorkState::Uncertain { .. }) && !self.unread
    }

    /// How long the state has lasted.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since).min(self.at_most.unwrap_or(Duration::MAX))
    }
}

fn moved(before: Option<&ConnectionWork>, read: u64, written: u64, segments: u32) -> Movement {
    let Some(before) = before else { return Movement::Unknown };
    // A waiting request arrived before.
    let requests = segments.wrapping_sub(before.segments).saturating_add(u32::from(before.unread));
    match (read != before.read, written != before.written) {
        (false, false) => Movement::Nothing,
        (true, false) => Movement::Read,
        (false, true) => Movement::Written,
        (true, true) => Movement::ReadAndWritten { one_request: requests <= 1 },
    }
}

fn last(history: TrafficHistory, received: u64, unsent: u32) -> LastTransfer {
    let TrafficHistory { last_sent_ms, last_received_ms, last_ack_ms, segments_sent, .. } = history;
    match last_received_ms.cmp(&last_sent_ms) {
        _ if received == 0 => LastTransfer::Answer,
        _ if segments_sent == 0 => LastTransfer::Request,
        std::cmp::Ordering::Less => LastTransfer::Request,
        std::cmp::Ordering::Greater => LastTransfer::Answer,
        std::cmp::Ordering::Equal if unsent > 0 || last_ack_ms < last_received_ms => LastTransfer::Answer,
        std::cmp::Ordering::Equal => LastTransfer::Unknown,
    }
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;
