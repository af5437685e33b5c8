use super::*;

const BEFORE: [Doing; 7] = [
    Doing::Rest,
    Doing::Waits,
    Doing::Asked,
    Doing::Sends,
    Doing::Unsure { was_asked: false },
    Doing::Unsure { was_asked: true },
    Doing::Young,
];
const MOVED: [Moved; 6] = [
    Moved::Unknown,
    Moved::Nothing,
    Moved::Read,
    Moved::Written,
    Moved::Both { one_request: true },
    Moved::Both { one_request: false },
];
const LAST: [Last; 3] = [Last::Request, Last::Answer, Last::Unknown];

/// Nothing is unread, nothing is in transit, and no time has passed.
const PLAIN: Signs = Signs {
    moved: Moved::Nothing,
    last: Last::Answer,
    unread: false,
    not_sent: false,
    is_young: false,
    is_still: false,
};

fn all_signs() -> impl Iterator<Item = (Doing, Signs)> {
    let flags = (0..16_u8).map(|bits| [1, 2, 4, 8].map(|bit| bits & bit != 0));
    let all = flags.flat_map(|flags| LAST.map(|last| (flags, last)));
    let all = all.flat_map(|(flags, last)| MOVED.map(|moved| (flags, last, moved)));
    all.flat_map(|([unread, not_sent, is_young, is_still], last, moved)| {
        BEFORE.map(|before| (before, Signs { moved, last, unread, not_sent, is_young, is_still }))
    })
}

/// Rules that hold for every table entry.
#[test]
fn every_look_keeps_the_rules() {
    let mut count = 0;
    for (before, signs) in all_signs() {
        let doing = judge(before, signs);
        let what = format!("{before:?}, {signs:?}: {doing:?}");
        count += 1;
        if signs.not_sent {
            assert_eq!(doing, Doing::Sends, "{what}");
            continue;
        }
        if signs.is_young {
            assert_eq!(doing, Doing::Young, "{what}");
            continue;
        }
        assert_ne!(doing, Doing::Young, "{what}");
        // An unread request waits, and a waiting request is unread.
        assert!(doing != Doing::Waits || signs.unread, "{what}");
        assert!(doing != Doing::Rest || !signs.unread, "{what}");
        match signs.moved {
            Moved::Read => assert_eq!(doing, Doing::Asked, "{what}"),
            Moved::Written => assert!(matches!(doing, Doing::Rest | Doing::Waits), "{what}"),
            Moved::Nothing if before == Doing::Asked => assert_eq!(doing, Doing::Asked, "{what}"),
            Moved::Nothing if matches!(before, Doing::Rest | Doing::Waits) => {
                assert!(matches!(doing, Doing::Rest | Doing::Waits), "{what}")
            }
            Moved::Unknown | Moved::Nothing | Moved::Both { .. } if !signs.unread => match signs.last {
                Last::Request => assert!(
                    doing == Doing::Asked || before == Doing::Young && signs.moved == Moved::Nothing,
                    "{what}"
                ),
                Last::Answer => assert_eq!(doing, Doing::Rest, "{what}"),
                Last::Unknown => {}
            },
            Moved::Unknown | Moved::Nothing | Moved::Both { .. } => {}
        }
        // Nothing stays unsure while nothing moves.
        assert!(!signs.is_still || !matches!(doing, Doing::Unsure { .. }), "{what}");
    }
    assert_eq!(count, 7 * 6 * 3 * 16);
}

#[test]
fn a_tie_is_decided_by_what_was_so_before() {
    let tie = Signs { last: Last::Unknown, ..PLAIN };
    let both = |one_request| Signs { moved: Moved::Both { one_request }, ..tie };
    let unsure = |was_asked| Doing::Unsure { was_asked };
    for (before, signs, expected) in [
        // One segment since an idle state was a request, and the output since is its response.
        (Doing::Rest, both(true), Doing::Rest),
        (Doing::Rest, both(false), unsure(false)),
        (Doing::Waits, both(true), Doing::Rest),
        // Its response and another request, or its rest and its response.
        (Doing::Asked, both(true), unsure(true)),
        (Doing::Asked, both(false), unsure(true)),
        (unsure(false), both(true), unsure(false)),
        (unsure(true), Signs { moved: Moved::Nothing, ..tie }, unsure(true)),
        (unsure(true), Signs { moved: Moved::Nothing, is_still: true, ..tie }, Doing::Rest),
        (unsure(true), Signs { moved: Moved::Written, ..tie }, Doing::Rest),
        (unsure(true), Signs { moved: Moved::Read, ..tie }, Doing::Asked),
        (Doing::Rest, Signs { moved: Moved::Unknown, ..tie }, unsure(true)),
        (Doing::Rest, Signs { moved: Moved::Unknown, is_still: true, ..tie }, Doing::Rest),
    ] {
        assert_eq!(judge(before, signs), expected, "{before:?} {signs:?}");
    }
}

#[test]
fn what_is_unread_was_begun_only_if_it_was_read_of() {
    let unread = |moved| Signs { moved, unread: true, ..PLAIN };
    for (before, signs, expected) in [
        (Doing::Rest, unread(Moved::Nothing), Doing::Waits),
        (Doing::Waits, unread(Moved::Nothing), Doing::Waits),
        (Doing::Asked, unread(Moved::Nothing), Doing::Asked),
        (Doing::Rest, unread(Moved::Read), Doing::Asked),
        (Doing::Asked, unread(Moved::Written), Doing::Waits),
        // The rest of a request, or another one?
        (Doing::Asked, unread(Moved::Both { one_request: true }), Doing::Unsure { was_asked: true }),
        (Doing::Rest, unread(Moved::Unknown), Doing::Unsure { was_asked: true }),
    ] {
        assert_eq!(judge(before, signs), expected, "{before:?} {signs:?}");
    }
}

#[test]
fn the_times_tell_what_came_last_where_they_differ() {
    let at_rest = History {
        last_sent_ms: 40,
        last_received_ms: 80,
        last_ack_ms: 40,
        bytes_received: 100,
        segments_sent: 3,
        segments_received: 9,
        ..History::default()
    };
    let tie = History { last_sent_ms: 80, last_ack_ms: 80, ..at_rest };
    for (what, history, received, unsent, expected) in [
        ("answered", at_rest, 100, 0, Last::Answer),
        ("asked", History { last_received_ms: 20, ..at_rest }, 100, 0, Last::Request),
        (
            "asked before it has acknowledged",
            History { last_received_ms: 20, ..at_rest },
            100,
            1,
            Last::Request,
        ),
        ("never asked", at_rest, 0, 0, Last::Answer),
        ("never answered", History { segments_sent: 0, ..at_rest }, 100, 0, Last::Request),
        ("in one tick", tie, 100, 0, Last::Unknown),
        ("in one tick, acknowledged later", History { last_ack_ms: 40, ..tie }, 100, 0, Last::Answer),
        ("in one tick, not acknowledged", tie, 100, 1, Last::Answer),
    ] {
        assert_eq!(last(history, received, unsent), expected, "{what}");
    }
}

#[test]
fn an_answer_may_go_on_for_as_long_as_it_may_pause() {
    let now = Instant::now();
    let wrote = |sent, received, unread| {
        let history = History {
            last_sent_ms: sent,
            last_received_ms: received,
            last_ack_ms: sent,
            bytes_received: 100,
            segments_sent: 3,
            segments_received: 9,
            ..History::default()
        };
        let account = Account::of_tcp(None, history, [unread, 0, 0], false, now);
        let pause = Duration::from_millis(100);
        (account.answers(now, pause), account.streams(now, pause))
    };
    assert_eq!(wrote(20, 50, 0), (true, false), "a head, and perhaps a body");
    assert_eq!(wrote(100, 130, 0), (false, false), "for long enough");
    assert_eq!(wrote(20, 3_020, 0), (false, true), "no request for a long time");
    assert_eq!(wrote(20, 10, 40), (false, false), "its client has asked again");
    let never = History { segments_sent: 0, last_sent_ms: 20, last_received_ms: 20, ..History::default() };
    let account = Account::of_tcp(None, never, [0; 3], false, now);
    assert!(!account.answers(now, Duration::from_secs(1)), "nothing was written");
}

/// Its client has asked again within the tick of its answer, and the answer takes long.
#[test]
fn an_open_question_stays_open_for_who_can_ask() {
    let now = Instant::now();
    let tie = |ms| History {
        last_sent_ms: ms,
        last_received_ms: ms,
        last_ack_ms: ms,
        bytes_received: 100,
        segments_sent: 3,
        segments_received: 9,
        ..History::default()
    };
    let is_open = |ms, unread, asks| {
        Account::of_tcp(None, tie(ms), [unread, 0, 0], asks, now).doing == Doing::Unsure { was_asked: true }
    };
    assert_eq!([100, 400, 9_000, 10_000].map(|ms| is_open(ms, 0, true)), [true, true, true, false]);
    assert_eq!([100, 400, 9_000, 10_000].map(|ms| is_open(ms, 0, false)), [true, false, false, false]);
    assert!(!is_open(400, 7, true), "what is unread waits");
}
