use super::*;

const BEFORE: [WorkState; 7] = [
    WorkState::Idle,
    WorkState::Unread,
    WorkState::Unanswered,
    WorkState::Sending,
    WorkState::Uncertain { was_asked: false },
    WorkState::Uncertain { was_asked: true },
    WorkState::New,
];
const MOVED: [Movement; 6] = [
    Movement::Unknown,
    Movement::Nothing,
    Movement::Read,
    Movement::Written,
    Movement::ReadAndWritten { one_request: true },
    Movement::ReadAndWritten { one_request: false },
];
const LAST: [LastTransfer; 3] = [LastTransfer::Request, LastTransfer::Answer, LastTransfer::Unknown];

/// Nothing is unread, nothing is in transit, and no time has passed.
const PLAIN: Sample = Sample {
    movement: Movement::Nothing,
    last_transfer: LastTransfer::Answer,
    unread: false,
    not_sent: false,
    is_young: false,
    is_still: false,
};

fn all_signs() -> impl Iterator<Item = (WorkState, Sample)> {
    let flags = (0..16_u8).map(|bits| [1, 2, 4, 8].map(|bit| bits & bit != 0));
    let all = flags.flat_map(|flags| LAST.map(|last| (flags, last)));
    let all = all.flat_map(|(flags, last)| MOVED.map(|moved| (flags, last, moved)));
    all.flat_map(|([unread, not_sent, is_young, is_still], last, moved)| {
        BEFORE.map(|before| {
            (before, Sample { movement: moved, last_transfer: last, unread, not_sent, is_young, is_still })
        })
    })
}

/// Rules that hold for every table entry.
#[test]
fn every_look_keeps_the_rules() {
    let mut count = 0;
    for (before, signs) in all_signs() {
        let state = state_of(before, signs);
        let what = format!("{before:?}, {signs:?}: {state:?}");
        count += 1;
        if signs.not_sent {
            assert_eq!(state, WorkState::Sending, "{what}");
            continue;
        }
        if signs.is_young {
            assert_eq!(state, WorkState::New, "{what}");
            continue;
        }
        assert_ne!(state, WorkState::New, "{what}");
        // An unread request waits, and a waiting request is unread.
        assert!(state != WorkState::Unread || signs.unread, "{what}");
        assert!(state != WorkState::Idle || !signs.unread, "{what}");
        match signs.movement {
            Movement::Read => assert_eq!(state, WorkState::Unanswered, "{what}"),
            Movement::Written => assert!(matches!(state, WorkState::Idle | WorkState::Unread), "{what}"),
            Movement::Nothing if before == WorkState::Unanswered => {
                assert_eq!(state, WorkState::Unanswered, "{what}")
            }
            Movement::Nothing if matches!(before, WorkState::Idle | WorkState::Unread) => {
                assert!(matches!(state, WorkState::Idle | WorkState::Unread), "{what}")
            }
            Movement::Unknown | Movement::Nothing | Movement::ReadAndWritten { .. } if !signs.unread => {
                match signs.last_transfer {
                    LastTransfer::Request => assert!(
                        state == WorkState::Unanswered
                            || before == WorkState::New && signs.movement == Movement::Nothing,
                        "{what}"
                    ),
                    LastTransfer::Answer => assert_eq!(state, WorkState::Idle, "{what}"),
                    LastTransfer::Unknown => {}
                }
            }
            Movement::Unknown | Movement::Nothing | Movement::ReadAndWritten { .. } => {}
        }
        // Nothing stays unsure while nothing moves.
        assert!(!signs.is_still || !matches!(state, WorkState::Uncertain { .. }), "{what}");
    }
    assert_eq!(count, 7 * 6 * 3 * 16);
}

#[test]
fn a_tie_is_decided_by_what_was_so_before() {
    let tie = Sample { last_transfer: LastTransfer::Unknown, ..PLAIN };
    let both = |one_request| Sample { movement: Movement::ReadAndWritten { one_request }, ..tie };
    let unsure = |was_asked| WorkState::Uncertain { was_asked };
    for (before, signs, expected) in [
        // One segment since an idle state was a request, and the output since is its response.
        (WorkState::Idle, both(true), WorkState::Idle),
        (WorkState::Idle, both(false), unsure(false)),
        (WorkState::Unread, both(true), WorkState::Idle),
        // Its response and another request, or its rest and its response.
        (WorkState::Unanswered, both(true), unsure(true)),
        (WorkState::Unanswered, both(false), unsure(true)),
        (unsure(false), both(true), unsure(false)),
        (unsure(true), Sample { movement: Movement::Nothing, ..tie }, unsure(true)),
        (unsure(true), Sample { movement: Movement::Nothing, is_still: true, ..tie }, WorkState::Idle),
        (unsure(true), Sample { movement: Movement::Written, ..tie }, WorkState::Idle),
        (unsure(true), Sample { movement: Movement::Read, ..tie }, WorkState::Unanswered),
        (WorkState::Idle, Sample { movement: Movement::Unknown, ..tie }, unsure(true)),
        (WorkState::Idle, Sample { movement: Movement::Unknown, is_still: true, ..tie }, WorkState::Idle),
    ] {
        assert_eq!(state_of(before, signs), expected, "{before:?} {signs:?}");
    }
}

#[test]
fn what_is_unread_was_begun_only_if_it_was_read_of() {
    let unread = |moved| Sample { movement: moved, unread: true, ..PLAIN };
    for (before, signs, expected) in [
        (WorkState::Idle, unread(Movement::Nothing), WorkState::Unread),
        (WorkState::Unread, unread(Movement::Nothing), WorkState::Unread),
        (WorkState::Unanswered, unread(Movement::Nothing), WorkState::Unanswered),
        (WorkState::Idle, unread(Movement::Read), WorkState::Unanswered),
        (WorkState::Unanswered, unread(Movement::Written), WorkState::Unread),
        // The rest of a request, or another one?
        (
            WorkState::Unanswered,
            unread(Movement::ReadAndWritten { one_request: true }),
            WorkState::Uncertain { was_asked: true },
        ),
        (WorkState::Idle, unread(Movement::Unknown), WorkState::Uncertain { was_asked: true }),
    ] {
        assert_eq!(state_of(before, signs), expected, "{before:?} {signs:?}");
    }
}

#[test]
fn the_times_tell_what_came_last_where_they_differ() {
    let at_rest = TrafficHistory {
        last_sent_ms: 40,
        last_received_ms: 80,
        last_ack_ms: 40,
        bytes_received: 100,
        segments_sent: 3,
        segments_received: 9,
        ..TrafficHistory::default()
    };
    let tie = TrafficHistory { last_sent_ms: 80, last_ack_ms: 80, ..at_rest };
    for (what, history, received, unsent, expected) in [
        ("answered", at_rest, 100, 0, LastTransfer::Answer),
        ("asked", TrafficHistory { last_received_ms: 20, ..at_rest }, 100, 0, LastTransfer::Request),
        (
            "asked before it has acknowledged",
            TrafficHistory { last_received_ms: 20, ..at_rest },
            100,
            1,
            LastTransfer::Request,
        ),
        ("never asked", at_rest, 0, 0, LastTransfer::Answer),
        ("never answered", TrafficHistory { segments_sent: 0, ..at_rest }, 100, 0, LastTransfer::Request),
        ("in one tick", tie, 100, 0, LastTransfer::Unknown),
        (
            "in one tick, acknowledged later",
            TrafficHistory { last_ack_ms: 40, ..tie },
            100,
            0,
            LastTransfer::Answer,
        ),
        ("in one tick, not acknowledged", tie, 100, 1, LastTransfer::Answer),
    ] {
        assert_eq!(last(history, received, unsent), expected, "{what}");
    }
}

#[test]
fn an_answer_may_go_on_for_as_long_as_it_may_pause() {
    let now = Instant::now();
    let wrote = |sent, received, unread| {
        let history = TrafficHistory {
            last_sent_ms: sent,
            last_received_ms: received,
            last_ack_ms: sent,
            bytes_received: 100,
            segments_sent: 3,
            segments_received: 9,
            ..TrafficHistory::default()
        };
        let account = ConnectionWork::of_tcp(None, history, [unread, 0, 0], false, now);
        let pause = Duration::from_millis(100);
        (account.answers(now, pause), account.streams(now, pause))
    };
    assert_eq!(wrote(20, 50, 0), (true, false), "a head, and perhaps a body");
    assert_eq!(wrote(100, 130, 0), (false, false), "for long enough");
    assert_eq!(wrote(20, 3_020, 0), (false, true), "no request for a long time");
    assert_eq!(wrote(20, 10, 40), (false, false), "its client has asked again");
    let never = TrafficHistory {
        segments_sent: 0,
        last_sent_ms: 20,
        last_received_ms: 20,
        ..TrafficHistory::default()
    };
    let account = ConnectionWork::of_tcp(None, never, [0; 3], false, now);
    assert!(!account.answers(now, Duration::from_secs(1)), "nothing was written");
}

/// Its client has asked again within the tick of its answer, and the answer takes long.
#[test]
fn an_open_question_stays_open_for_who_can_ask() {
    let now = Instant::now();
    let tie = |ms| TrafficHistory {
        last_sent_ms: ms,
        last_received_ms: ms,
        last_ack_ms: ms,
        bytes_received: 100,
        segments_sent: 3,
        segments_received: 9,
        ..TrafficHistory::default()
    };
    let is_open = |ms, unread, asks| {
        ConnectionWork::of_tcp(None, tie(ms), [unread, 0, 0], asks, now).state
            == WorkState::Uncertain { was_asked: true }
    };
    assert_eq!([100, 400, 9_000, 10_000].map(|ms| is_open(ms, 0, true)), [true, true, true, false]);
    assert_eq!([100, 400, 9_000, 10_000].map(|ms| is_open(ms, 0, false)), [true, false, false, false]);
    assert!(!is_open(400, 7, true), "what is unread waits");
}
