//! The recovery table: every combination of facts hits exactly one row, and what the rows promise holds.

use handoff_protocol::deadline::{Deadline, Policy};
use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::Mode;
use handoff_protocol::reason::Party;
use handoff_protocol::recovery::{Decision, FOUND, Facts, Found, TABLE, Written, decide};
use handoff_protocol::supervisor::{Left, Moment, Supervisor};
use uuid::Uuid;

fn all() -> impl Iterator<Item = Facts> {
    [true, false].into_iter().flat_map(|wanted| {
        [Written::Uncommitted, Written::Committed].into_iter().flat_map(move |written| {
            FOUND.into_iter().flat_map(move |incumbent| {
                FOUND.into_iter().map(move |successor| Facts { wanted, written, incumbent, successor })
            })
        })
    })
}

#[test]
fn exactly_one_row_holds_for_each_combination() {
    let mut hits = vec![0; TABLE.len()];
    for facts in all() {
        let rows: Vec<usize> = (0..TABLE.len()).filter(|at| TABLE[*at].holds(facts)).collect();
        let [row] = rows[..] else {
            let labels: Vec<_> = rows.iter().map(|at| TABLE[*at].label).collect();
            panic!("{facts:?}: {labels:?}");
        };
        assert!(std::ptr::eq(decide(facts), &TABLE[row]));
        hits[row] += 1;
    }
    assert_eq!(hits.iter().sum::<i32>(), 256);
    assert!(hits.iter().all(|hits| *hits > 0), "a row that nothing hits: {hits:?}");
}

#[test]
fn labels_are_unique_and_every_row_says_why() {
    for (at, row) in TABLE.iter().enumerate() {
        assert!(TABLE[..at].iter().all(|other| other.label != row.label), "{}", row.label);
        assert!(row.why.ends_with('.') && row.why.len() > 20, "{}", row.label);
    }
}

#[test]
fn who_serves_is_neither_killed_nor_replaced_by_a_start() {
    for facts in all() {
        let decision = decide(facts).decision;
        match decision {
            Decision::Start | Decision::Rest => {
                assert_eq!((facts.incumbent, facts.successor), (Found::Gone, Found::Gone), "{facts:?}")
            }
            Decision::KillIncumbent => assert_eq!(facts.incumbent, Found::Frozen, "{facts:?}"),
            Decision::KillSuccessor => {
                assert!(matches!(facts.successor, Found::Frozen | Found::Mute), "{facts:?}")
            }
            Decision::Back | Decision::Revert => {
                assert_ne!(facts.successor, Found::Serving, "{facts:?}");
                assert!(matches!(facts.incumbent, Found::Serving | Found::Mute), "{facts:?}");
            }
            Decision::Commit => assert_eq!(facts.successor, Found::Serving, "{facts:?}"),
            Decision::Wait | Decision::Adopt | Decision::Forward => {}
        }
    }
}

/// Whatever the journal says, a successor that serves is not given up, and one that is at work is waited for.
#[test]
fn what_has_the_data_decides_before_what_was_intended() {
    for facts in all() {
        let decision = decide(facts).decision;
        match facts.successor {
            Found::Serving if matches!(facts.incumbent, Found::Asked | Found::Working) => {
                assert_eq!(decision, Decision::Wait, "{facts:?}")
            }
            Found::Serving => assert!(matches!(decision, Decision::Commit | Decision::Forward), "{facts:?}"),
            Found::Working => assert_eq!(decision, Decision::Wait, "{facts:?}"),
            _ => {}
        }
    }
}

/// To wait is right only while somebody is there whose next word or end is bounded.
#[test]
fn nobody_waits_for_nobody() {
    use Found::{Asked, Leaving, Waiting, Working};
    for facts in all().filter(|facts| decide(*facts).decision == Decision::Wait) {
        let moves = |found| matches!(found, Asked | Working | Waiting | Leaving);
        assert!(moves(facts.incumbent) || moves(facts.successor), "{facts:?}");
    }
}

/// Only who owes a sign of life can be silent: not one that is gone, or that owes its end.
#[test]
fn a_deadline_knows_whose_silence_it_is_about() {
    let at = Moment { now: 0, fresh: HandoffId::from_uuid(Uuid::from_u128(1)) };
    let left = |incumbent, successor| Left {
        wanted: true,
        written: Written::Uncommitted,
        handoff: at.fresh,
        under_way: true,
        incumbent,
        successor,
        retiree: Found::Gone,
    };
    let machine = |incumbent, successor| {
        Supervisor::recover(Mode::Exclusive, Policy::default(), at, left(incumbent, successor)).0
    };
    let both = machine(Found::Asked, Found::Asked);
    assert_eq!(both.silent_at(Deadline::AnswerIncumbent), Some(Party::Incumbent));
    assert_eq!(both.silent_at(Deadline::AnswerSuccessor), Some(Party::Successor));
    assert_eq!(both.silent_at(Deadline::Recover), None);
    assert_eq!(both.silent_at(Deadline::Silence), None, "nobody works for this supervisor yet");
    let killed = machine(Found::Asked, Found::Mute);
    assert_eq!(killed.facts().map(|facts| facts.successor), Some(Found::Leaving));
    assert_eq!(killed.silent_at(Deadline::AnswerSuccessor), None);
    assert_eq!(killed.silent_at(Deadline::AnswerIncumbent), Some(Party::Incumbent));
}
