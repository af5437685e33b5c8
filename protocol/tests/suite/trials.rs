//! The trials of a new process, if the service file configures them: a probe, a canary, a probation. The tables are
//! like those of `transitions`.

use std::fmt::Write;

use handoff_protocol::deadline::{CanaryStep, Deadline, Policy, Stragglers};
use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{Done, FromService, Hello, Mode, Ready, ToService};
use handoff_protocol::supervisor::{Action, Event, Moment, Phase, Refusal, Request, Supervisor};
use handoff_protocol::version::VersionRange;

use crate::common::brief::{did, seen};
use crate::common::events::{supervisor_events, upgrade};
use crate::common::table::{id, other, table};

/// The table of a supervisor, by the states that `seen` distinguishes.
fn written(mode: Mode, policy: &Policy, seen: impl Fn(&Supervisor) -> String) -> String {
    table(
        Supervisor::new(mode, policy.clone()),
        seen,
        supervisor_events,
        |machine, event| machine.step(Moment { now: 0, next_id: other(machine.handoff()) }, event),
        did,
    )
}

/// With a probe: the difference, which is the state that waits for it.
#[test]
fn a_probe_is_awaited_as_written() {
    let policy = Policy { probes: true, ..Policy::default() };
    let mut text = String::new();
    for mode in [Mode::Exclusive, Mode::Overlap] {
        let written = written(mode, &policy, seen);
        let _ = writeln!(text, "{mode:?}\n");
        for state in written.split_inclusive("\n\n").filter(|state| state.starts_with("Probing")) {
            text.push_str(state);
        }
    }
    crate::common::assert_golden("supervisor_probing.txt", &text);
}

/// With a canary and a probation: the additional states.
#[test]
fn a_canary_and_a_probation_are_gone_through_as_written() {
    let canary = [50, 500].map(|permille| CanaryStep { permille, time_ms: 1_000 }).to_vec();
    let policy = Policy { canary, probation_ms: 30_000, ..Policy::default() };
    let mut text = String::new();
    for mode in [Mode::Exclusive, Mode::Overlap] {
        let seen = |machine: &Supervisor| match machine.shares() {
            0 => seen(machine),
            shares => format!("{}, step {shares}", seen(machine)),
        };
        let written = written(mode, &policy, seen);
        let _ = writeln!(text, "{mode:?}\n");
        let is_trial = |state: &&str| {
            let head = state.lines().next().unwrap_or_default();
            head.starts_with("Canary") || head.contains("Standby")
        };
        written.split_inclusive("\n\n").filter(is_trial).for_each(|state| text.push_str(state));
    }
    crate::common::assert_golden("supervisor_on_trial.txt", &text);
}

/// With liveness checks: the effect of a verdict in each state in which there can be one.
#[test]
fn whoever_serves_and_is_condemned_is_killed_as_written() {
    let policy = Policy { liveness: true, ..Policy::default() };
    let mut text = String::new();
    for mode in [Mode::Exclusive, Mode::Overlap] {
        let written = written(mode, &policy, seen);
        let _ = writeln!(text, "{mode:?}\n");
        for state in written.split("\n\n") {
            let verdict = state.lines().find(|line| line.trim_start().starts_with("condemned"));
            if let (Some(head), Some(verdict)) = (state.lines().next(), verdict) {
                let _ = writeln!(text, "{head}\n{verdict}\n");
            }
        }
    }
    crate::common::assert_golden("supervisor_watched.txt", &text);
}

/// A supervisor in the middle of an upgrade in overlap mode, with the probe passed, before the end of the canary and
/// the probation.
fn on_trial(probes: bool, steps: usize) -> Supervisor {
    let canary = [50, 500].map(|permille| CanaryStep { permille, time_ms: 1_000 })[..steps].to_vec();
    let policy = Policy { probes, canary, probation_ms: 30_000, ..Policy::default() };
    let mut machine = Supervisor::new(Mode::Overlap, policy);
    for (number, request) in [(1, Request::Start), (2, upgrade())] {
        let at = Moment { now: 0, next_id: id(number) };
        machine.step(at, Event::Request(request));
        let hello = Hello { versions: VersionRange::OURS, pid: 1 };
        let ready = Ready { healthy: true, reason: String::new() };
        for message in [FromService::Hello(hello), FromService::Prepared(Done {}), FromService::Ready(ready)]
        {
            machine.step(at, Event::FromSuccessor(id(number), message));
        }
        if probes {
            machine.step(at, Event::Probed(id(number), Ok(())));
        }
        if machine.phase() == Phase::Committing {
            machine.step(at, Event::Durable);
        }
    }
    machine
}

#[test]
fn a_share_is_passed_only_by_who_passes_the_probe_again() {
    let at = Moment { now: 0, next_id: id(3) };
    let mut machine = on_trial(true, 2);
    assert_eq!((machine.phase(), machine.shares()), (Phase::Canary, 1));
    for step in [1, 2] {
        assert_eq!((machine.phase(), machine.shares()), (Phase::Canary, step));
        let actions = machine.step(at, Event::Deadline(Deadline::Canary));
        let probe = Action::Probe(id(2), Policy::default().canary_probe_limit_ms);
        assert!(actions.contains(&probe), "{actions:?}");
        machine.step(at, Event::Probed(id(2), Ok(())));
    }
    assert_eq!((machine.phase(), machine.shares()), (Phase::Committing, 0));
}

/// However long a canary is, there is time for the probe after it.
#[test]
fn the_time_of_a_share_does_not_count_against_the_upgrade() {
    let mut machine = on_trial(true, 2);
    let at = |now| Moment { now, next_id: id(3) };
    machine.step(at(299_000), Event::Deadline(Deadline::Canary));
    machine.step(at(299_000), Event::Probed(id(2), Ok(())));
    let actions = machine.step(at(300_000), Event::Deadline(Deadline::Canary));
    assert!(actions.contains(&Action::Arm(Deadline::Probe, 2_000)), "{actions:?}");
}

#[test]
fn a_verdict_of_another_handoff_counts_for_nobody() {
    let at = Moment { now: 0, next_id: id(3) };
    for mut machine in [on_trial(false, 1), on_trial(false, 0)] {
        assert_eq!(machine.watched().map(|(id, _)| id), Some(id(2)));
        let before = machine.clone();
        assert_eq!(machine.step(at, Event::Condemned(id(1), String::from("why"))), []);
        assert_eq!(machine, before);
        assert_ne!(machine.step(at, Event::Condemned(id(2), String::from("why"))), []);
        assert_eq!(machine.watched(), None);
    }
}

#[test]
fn the_limit_of_a_probe_is_cut_to_what_is_left_of_the_upgrade() {
    let policy = Policy { probes: true, ..Policy::default() };
    let ready = FromService::Ready(Ready { healthy: true, reason: String::new() });
    for (now, limit_ms) in [(4_000, 30_000), (290_000, 10_000), (400_000, 0)] {
        let mut machine = Supervisor::new(Mode::Overlap, policy.clone());
        let at = |now| Moment { now, next_id: id(1) };
        machine.step(at(0), Event::Request(Request::Start));
        let hello = Hello { versions: VersionRange::OURS, pid: 1 };
        for message in [FromService::Hello(hello), FromService::Prepared(Done {})] {
            machine.step(at(0), Event::FromSuccessor(id(1), message));
        }
        let actions = machine.step(at(now), Event::FromSuccessor(id(1), ready.clone()));
        assert!(actions.contains(&Action::Arm(Deadline::Probe, limit_ms)), "{now}: {actions:?}");
        assert_eq!(machine.phase(), Phase::Probing);
    }
}

/// A supervisor whose incumbent gets `Seal` at 0. The deadline of the upgrade comes from the policy.
fn sealing(policy: Policy) -> (Supervisor, HandoffId, Vec<Action>) {
    let (mut machine, id, _) = draining(policy);
    let drained = Event::FromIncumbent(id, FromService::Drained(Done {}));
    let actions = machine.step(Moment { now: 0, next_id: HandoffId::from_bytes([8; 16]) }, drained);
    assert_eq!(machine.phase(), Phase::Sealing);
    (machine, id, actions)
}

/// A supervisor whose incumbent gets `Prepare` at 0, when the upgrade begins.
fn draining(policy: Policy) -> (Supervisor, HandoffId, Vec<Action>) {
    let mut machine = Supervisor::new(Mode::Exclusive, policy);
    let mut fresh = 0;
    let mut step = |machine: &mut Supervisor, event| {
        fresh += 1;
        machine.step(Moment { now: 0, next_id: HandoffId::from_bytes([fresh; 16]) }, event)
    };
    let hello = || FromService::Hello(Hello { versions: VersionRange::OURS, pid: 1 });
    let ready = || FromService::Ready(Ready { healthy: true, reason: String::new() });
    let mut actions = Vec::new();
    for request in [Request::Start, upgrade()] {
        step(&mut machine, Event::Request(request));
        let id = machine.handoff();
        step(&mut machine, Event::FromSuccessor(id, hello()));
        actions = step(&mut machine, Event::FromSuccessor(id, FromService::Prepared(Done {})));
        if machine.phase() == Phase::Beginning {
            step(&mut machine, Event::FromSuccessor(id, ready()));
            step(&mut machine, Event::Durable);
        }
    }
    assert_eq!(machine.phase(), Phase::Draining);
    let id = machine.handoff();
    (machine, id, actions)
}

fn armed(actions: &[Action], deadline: Deadline) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::Arm(armed, ms) if *armed == deadline => Some(*ms),
        _ => None,
    })
}

/// A program that was ended for the new process is not started again because of a cancel.
#[test]
fn a_seal_that_ends_the_program_is_not_called_off() {
    let policy = |seal_ends| Policy {
        seal_ends,
        deadline_ms: 15_000,
        drain_grace_ms: 0,
        stop_grace_ms: 20_000,
        ..Policy::default()
    };
    let at = |now| Moment { now, next_id: HandoffId::from_bytes([9; 16]) };
    let (mut machine, id, actions) = sealing(policy(true));
    assert_eq!(armed(&actions, Deadline::Seal), Some(30_000), "as long as it may take to end");
    let cancelled = machine.step(at(1), Event::Request(Request::Cancel));
    assert_eq!(cancelled, [Action::Refuse(Refusal::NothingToCancel)]);
    let begins = machine.step(at(25_000), Event::FromIncumbent(id, FromService::Sealed(Done {})));
    assert_eq!((machine.phase(), armed(&begins, Deadline::Begin)), (Phase::Beginning, Some(30_000)));

    // A seal that only stops accepting loses nothing by a way back.
    let (mut machine, id, actions) = sealing(policy(false));
    assert_eq!(armed(&actions, Deadline::Seal), Some(15_000));
    let cancelled = machine.step(at(1), Event::Request(Request::Cancel));
    assert_eq!(machine.phase(), Phase::Resuming);
    assert!(
        cancelled.iter().any(|it| matches!(it, Action::ToIncumbent(to, ToService::Resume(_)) if *to == id))
    );
}

/// Otherwise they would be cut for nothing.
#[test]
fn requests_that_may_be_cut_leave_the_upgrade_some_of_its_deadline() {
    use Stragglers::{Abort, Cut};
    for (stragglers, deadline_ms, drain_grace_ms, limit_ms) in [
        (Cut, 300_000, 30_000, 30_000),
        (Cut, 30_000, 30_000, 20_000),
        (Cut, 10_000, 30_000, 5_000),
        (Abort, 30_000, 30_000, 30_000),
    ] {
        let policy = Policy { stragglers, deadline_ms, drain_grace_ms, ..Policy::default() };
        let (mut machine, id, actions) = draining(policy);
        assert_eq!(armed(&actions, Deadline::Drain), Some(limit_ms), "{stragglers:?} {deadline_ms}");
        let is_told = |action: &Action| matches!(action, Action::ToIncumbent(to, ToService::Prepare(it)) if *to == id && it.grace_ms == limit_ms);
        assert!(actions.iter().any(is_told), "{actions:?}");
        let at = Moment { now: limit_ms, next_id: HandoffId::from_bytes([9; 16]) };
        machine.step(at, Event::Deadline(Deadline::Drain));
        let phase = if stragglers == Cut { Phase::Sealing } else { Phase::Resuming };
        assert_eq!(machine.phase(), phase, "{stragglers:?} {deadline_ms}");
    }
}

/// A program that was ended for the upgrade is started again, and is not killed in the middle of that.
#[test]
fn an_incumbent_has_the_time_that_it_needs_to_resume() {
    for (seal_ends, limit_ms) in [(true, 300_000), (false, 30_000)] {
        let (mut machine, id, _) = sealing(Policy { seal_ends, ..Policy::default() });
        let at = |now| Moment { now, next_id: HandoffId::from_bytes([9; 16]) };
        machine.step(at(0), Event::FromIncumbent(id, FromService::Sealed(Done {})));
        let ended = Event::SuccessorGone(handoff_protocol::reason::Exit::Code(1));
        let resumes = machine.step(at(0), ended);
        assert_eq!(machine.phase(), Phase::Resuming);
        assert_eq!(armed(&resumes, Deadline::Resume), Some(limit_ms));
        let late = machine.step(at(limit_ms), Event::Deadline(Deadline::Resume));
        assert_eq!(late, [Action::TerminateIncumbent, Action::Arm(Deadline::Resume, 40_000)]);
        let later = machine.step(at(limit_ms + 40_000), Event::Deadline(Deadline::Resume));
        assert_eq!(later, [Action::KillIncumbent]);
        let silent = machine.step(at(limit_ms), Event::Deadline(Deadline::Silence));
        assert_eq!(silent, [Action::KillIncumbent], "a frozen one is found by its silence");
    }
}

/// What it has acknowledged may not be saved.
#[test]
fn who_may_have_opened_the_data_is_told_to_end_before_it_is_killed() {
    let at = |now| Moment { now, next_id: HandoffId::from_bytes([9; 16]) };
    let begun = || {
        let (mut machine, id, _) = sealing(Policy::default());
        machine.step(at(0), Event::FromIncumbent(id, FromService::Sealed(Done {})));
        assert_eq!(machine.phase(), Phase::Beginning);
        (machine, id)
    };
    for event in [Event::Request(Request::Cancel), Event::Deadline(Deadline::Begin)] {
        let (mut machine, _) = begun();
        let actions = machine.step(at(1), event);
        assert_eq!(armed(&actions, Deadline::Leave), Some(40_000));
        assert!(actions.contains(&Action::TerminateSuccessor), "{actions:?}");
        assert!(!actions.contains(&Action::KillSuccessor), "{actions:?}");
        assert_eq!(machine.step(at(40_001), Event::Deadline(Deadline::Leave)), [Action::KillSuccessor]);
    }
    let (mut machine, id) = begun();
    let unhealthy = FromService::Ready(Ready { healthy: false, reason: String::new() });
    let actions = machine.step(at(1), Event::FromSuccessor(id, unhealthy));
    assert!(!actions.contains(&Action::KillSuccessor), "it ends by itself: {actions:?}");

    let (mut machine, _) = begun();
    let actions = machine.step(at(1), Event::Deadline(Deadline::Silence));
    assert!(actions.contains(&Action::KillSuccessor), "a frozen one acts on no signal: {actions:?}");

    for seal_ends in [true, false] {
        let policy = Policy { seal_ends, probation_ms: 60_000, ..Policy::default() };
        let (mut machine, id, _) = sealing(policy);
        machine.step(at(0), Event::FromIncumbent(id, FromService::Sealed(Done {})));
        let ready = FromService::Ready(Ready { healthy: true, reason: String::new() });
        machine.step(at(0), Event::FromSuccessor(id, ready));
        machine.step(at(0), Event::Durable);
        assert!(machine.is_on_probation());
        let actions = machine.step(at(0), Event::Condemned(id, String::new()));
        assert!(!actions.contains(&Action::KillSuccessor), "{actions:?}");
        assert_eq!(actions.contains(&Action::TerminateSuccessor), seal_ends, "{actions:?}");
    }
}
