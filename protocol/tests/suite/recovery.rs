//! The recovery table: each combination of facts hits exactly one row, and the decisions of the rows are safe.

use handoff_protocol::deadline::{Deadline, LEASES_OF_STARVED, Policy};
use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::message::{Adopted, Done, FromService, Mode, Stage};
use handoff_protocol::reason::{Exit, Reason, Role};
use handoff_protocol::recovery::{Decision, FOUND, Facts, LastHandoff, Observation, TABLE, decide};
use handoff_protocol::supervisor::{Action, Event, Legacy, Moment, Outcome, Phase, Supervisor};
use uuid::Uuid;

fn all() -> impl Iterator<Item = Facts> {
    [true, false].into_iter().flat_map(|wanted| {
        [LastHandoff::Uncommitted, LastHandoff::Committed].into_iter().flat_map(move |written| {
            FOUND.into_iter().flat_map(move |incumbent| {
                FOUND.into_iter().map(move |successor| Facts {
                    wanted,
                    last_handoff: written,
                    incumbent,
                    successor,
                })
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
        assert!(row.reason.ends_with('.') && row.reason.len() > 20, "{}", row.label);
    }
}

#[test]
fn who_serves_is_neither_killed_nor_replaced_by_a_start() {
    for facts in all() {
        let decision = decide(facts).decision;
        match decision {
            Decision::Start | Decision::Rest => {
                assert_eq!(
                    (facts.incumbent, facts.successor),
                    (Observation::Gone, Observation::Gone),
                    "{facts:?}"
                )
            }
            Decision::KillIncumbent => assert_eq!(facts.incumbent, Observation::Frozen, "{facts:?}"),
            Decision::KillSuccessor => {
                assert!(
                    matches!(facts.successor, Observation::Frozen | Observation::Unreachable),
                    "{facts:?}"
                )
            }
            Decision::Back | Decision::Revert => {
                assert_ne!(facts.successor, Observation::Serving, "{facts:?}");
                assert!(
                    matches!(facts.incumbent, Observation::Serving | Observation::Unreachable),
                    "{facts:?}"
                );
            }
            Decision::Advance => assert_eq!(facts.successor, Observation::Serving, "{facts:?}"),
            Decision::Wait | Decision::Adopt | Decision::Forward => {}
        }
    }
}

/// Regardless of the journal: a successor that serves is not given up, and one that is at work is waited for.
#[test]
fn what_has_the_data_decides_before_what_was_intended() {
    for facts in all() {
        let decision = decide(facts).decision;
        match facts.successor {
            Observation::Serving if matches!(facts.incumbent, Observation::Asked | Observation::Working) => {
                assert_eq!(decision, Decision::Wait, "{facts:?}")
            }
            Observation::Serving => {
                assert!(matches!(decision, Decision::Advance | Decision::Forward), "{facts:?}")
            }
            Observation::Working => assert_eq!(decision, Decision::Wait, "{facts:?}"),
            _ => {}
        }
    }
}

/// Waiting is correct only while there is a process whose next message or end has a limit.
#[test]
fn nobody_waits_for_nobody() {
    use Observation::{Asked, Leaving, Waiting, Working};
    for facts in all().filter(|facts| decide(*facts).decision == Decision::Wait) {
        let moves = |found| matches!(found, Asked | Working | Waiting | Leaving);
        assert!(moves(facts.incumbent) || moves(facts.successor), "{facts:?}");
    }
}

/// The rest of the deadline belongs to the successor. The time after it belongs to the incumbent, which waits for the
/// data lock.
#[test]
fn a_deadline_that_passes_ends_the_successor_and_not_the_incumbent() {
    let at = Moment { now: 50, next_id: HandoffId::from_uuid(Uuid::from_u128(1)) };
    let left = Legacy {
        wanted: true,
        last_handoff: LastHandoff::Uncommitted,
        handoff: at.next_id,
        under_way: true,
        left_ms: Some(3_000),
        died: None,
        incumbent: Observation::Asked,
        successor: Observation::Asked,
        outgoing: Observation::Gone,
    };
    let policy = Policy { resume_limit_ms: 7, ..Policy::default() };
    let (mut machine, actions) = Supervisor::recover(Mode::Exclusive, policy.clone(), at, left);
    assert!(actions.contains(&Action::Arm(Deadline::Recover, 3_000)), "{actions:?}");
    machine.step(at, Event::FromIncumbent(at.next_id, answer(Stage::Waiting)));
    // A process that has not answered yet may serve.
    let mut asked = machine.clone();
    let actions = asked.step(at, Event::Deadline(Deadline::Recover));
    assert!(actions.contains(&Action::Arm(Deadline::Recover, 40_007)), "{actions:?}");
    assert!(!actions.contains(&Action::KillSuccessor), "{actions:?}");
    let mut serves = asked.clone();
    serves.step(at, Event::FromSuccessor(at.next_id, answer(Stage::Serving)));
    assert_eq!(serves.phase(), Phase::Committing);
    for (mut machine, event) in [
        (asked, Event::FromSuccessor(at.next_id, answer(Stage::Working))),
        (
            {
                machine.step(at, Event::FromSuccessor(at.next_id, answer(Stage::Working)));
                machine
            },
            Event::Deadline(Deadline::Recover),
        ),
    ] {
        let actions = machine.step(at, event);
        // It works on the data: it has its time to end.
        assert!(actions.contains(&Action::TerminateSuccessor), "{actions:?}");
        assert!(!actions.contains(&Action::KillSuccessor), "{actions:?}");
        let late = machine.clone().step(at, Event::Deadline(Deadline::AnswerSuccessor));
        assert_eq!(late, [Action::KillSuccessor]);
        machine.step(at, Event::SuccessorGone(Exit::Unknown));
        let resumed = Event::FromIncumbent(at.next_id, FromService::Resumed(Done {}));
        let actions = machine.step(at, resumed);
        assert_eq!(machine.phase(), Phase::Serving);
        assert!(actions.contains(&Action::Report(Outcome::RolledBack(Reason::NotReady))), "{actions:?}");
    }
    // The remaining time is unknown, as in a journal of an earlier version.
    let (_, actions) =
        Supervisor::recover(Mode::Exclusive, policy.clone(), at, Legacy { left_ms: None, ..left });
    assert!(actions.contains(&Action::Arm(Deadline::Recover, policy.deadline_ms)), "{actions:?}");
}

/// Only a process that owes a sign of life can be silent: not one that is gone, or that owes its end.
#[test]
fn a_deadline_knows_whose_silence_it_is_about() {
    let at = Moment { now: 0, next_id: HandoffId::from_uuid(Uuid::from_u128(1)) };
    let left = |incumbent, successor| Legacy {
        wanted: true,
        last_handoff: LastHandoff::Uncommitted,
        handoff: at.next_id,
        under_way: true,
        left_ms: None,
        died: None,
        incumbent,
        successor,
        outgoing: Observation::Gone,
    };
    let machine = |incumbent, successor| {
        Supervisor::recover(Mode::Exclusive, Policy::default(), at, left(incumbent, successor)).0
    };
    let both = machine(Observation::Asked, Observation::Asked);
    assert_eq!(both.silent_at(Deadline::AnswerIncumbent), Some(Role::Incumbent));
    assert_eq!(both.silent_at(Deadline::AnswerSuccessor), Some(Role::Successor));
    assert_eq!(both.silent_at(Deadline::Recover), None);
    assert_eq!(both.silent_at(Deadline::Silence), None, "no process works for this supervisor yet");
    let killed = machine(Observation::Asked, Observation::Unreachable);
    assert_eq!(killed.facts().map(|facts| facts.successor), Some(Observation::Leaving));
    assert_eq!(killed.silent_at(Deadline::AnswerSuccessor), None);
    assert_eq!(killed.silent_at(Deadline::AnswerIncumbent), Some(Role::Incumbent));
}

/// A process that leaves in order may run a program that takes long to end. It gets the stop signal, and time after
/// it.
#[test]
fn who_leaves_in_order_gets_its_stop_signal_and_the_time_after_it() {
    let at = Moment { now: 50, next_id: HandoffId::from_uuid(Uuid::from_u128(1)) };
    let answer = |stage| {
        let service = "s3".parse().expect("a name");
        let (generation, listeners) = (Generation(1), Vec::new());
        FromService::Adopted(Adopted { version: 1, pid: 1, service, generation, stage, listeners })
    };
    let (exit_limit_ms, stop_grace_ms) = (7, 100);
    let policy = Policy { exit_limit_ms, stop_grace_ms, ..Policy::default() };
    let machine = |written, incumbent, successor| {
        let found = |stage: Option<Stage>| stage.map_or(Observation::Gone, |_| Observation::Asked);
        let left = Legacy {
            wanted: true,
            last_handoff: written,
            handoff: at.next_id,
            under_way: true,
            left_ms: None,
            died: None,
            incumbent: found(incumbent),
            successor: found(successor),
            outgoing: Observation::Gone,
        };
        let (mut machine, _) = Supervisor::recover(Mode::Exclusive, policy.clone(), at, left);
        let mut actions = Vec::new();
        for (stage, event) in [
            (incumbent, Event::FromIncumbent as fn(HandoffId, FromService) -> Event),
            (successor, Event::FromSuccessor),
        ] {
            actions.extend(
                stage.into_iter().flat_map(|stage| machine.step(at, event(at.next_id, answer(stage)))),
            );
        }
        (machine, actions)
    };
    let leaves = Some(Stage::Leaving);
    let rows = [
        // For each process, before the decision. Also when only the successor, or only the incumbent, is waited for.
        (
            LastHandoff::Uncommitted,
            leaves,
            None,
            Deadline::AnswerIncumbent,
            Action::TerminateIncumbent,
            Action::KillIncumbent,
        ),
        (
            LastHandoff::Uncommitted,
            None,
            leaves,
            Deadline::AnswerSuccessor,
            Action::TerminateSuccessor,
            Action::KillSuccessor,
        ),
        (
            LastHandoff::Uncommitted,
            Some(Stage::Serving),
            leaves,
            Deadline::Leave,
            Action::TerminateSuccessor,
            Action::KillSuccessor,
        ),
        (
            LastHandoff::Committed,
            leaves,
            Some(Stage::Serving),
            Deadline::RetireExit,
            Action::TerminateOutgoing,
            Action::KillOutgoing,
        ),
    ];
    for (written, incumbent, successor, deadline, terminates, kills) in rows {
        let (mut machine, actions) = machine(written, incumbent, successor);
        let what = format!("{written:?}, {incumbent:?}, {successor:?}");
        assert!(
            actions.iter().any(|action| matches!(action, Action::Arm(armed, _) if *armed == deadline)),
            "{what}"
        );
        let actions = machine.step(at, Event::Deadline(deadline));
        let told = [terminates, Action::Arm(deadline, exit_limit_ms + stop_grace_ms)];
        assert!(actions.ends_with(&told), "{what}: {actions:?}");
        let actions = machine.step(at, Event::Deadline(deadline));
        assert!(actions.contains(&kills), "{what}: {actions:?}");
    }
}

fn answer(stage: Stage) -> FromService {
    let service = "s3".parse().expect("a name");
    let (generation, listeners) = (Generation(1), Vec::new());
    FromService::Adopted(Adopted { version: 1, pid: 1, service, generation, stage, listeners })
}

/// In the end it counts as frozen: a process that is starved for this long does no work either.
#[test]
fn a_starved_process_is_given_some_leases_and_each_answer_gives_it_as_many_again() {
    let at = Moment { now: 0, next_id: HandoffId::from_uuid(Uuid::from_u128(1)) };
    let left = Legacy {
        wanted: true,
        last_handoff: LastHandoff::Uncommitted,
        handoff: at.next_id,
        under_way: false,
        left_ms: None,
        died: None,
        incumbent: Observation::Asked,
        successor: Observation::Gone,
        outgoing: Observation::Gone,
    };
    let (mut machine, _) = Supervisor::recover(Mode::Exclusive, Policy::default(), at, left);
    let starved = || Event::Starved(Deadline::AnswerIncumbent);
    let more = [Action::Arm(Deadline::AnswerIncumbent, Policy::default().lease_ms)];
    let working = Event::FromIncumbent(machine.handoff(), answer(Stage::Working));
    for answers in [Some(working), None] {
        for _ in 1..LEASES_OF_STARVED {
            assert_eq!(machine.step(at, starved()), more);
        }
        if let Some(answer) = answers {
            machine.step(at, answer);
        }
    }
    assert!(machine.step(at, starved()).contains(&Action::KillIncumbent));
}
