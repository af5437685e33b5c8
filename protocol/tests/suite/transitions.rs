//! The complete table of each machine, by state and event, as text under `tests/golden/`. A change of behaviour shows
//! there as a changed line.

use std::fmt::Debug;

use handoff_protocol::deadline::Policy;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{Abort, Begin, Commit, Grant, Mode, Prepare, Resume, Seal, ToService};
use handoff_protocol::process::{self, Process};
use handoff_protocol::recovery::{LastHandoff, Observation};
use handoff_protocol::supervisor::{Event, Legacy, Moment, Supervisor};

use crate::common::brief::{did, seen};
use crate::common::events::{all_supervisor_events, state, supervisor_events};
use crate::common::table::{id, other, row, table, table_from};

#[test]
fn the_process_behaves_as_written() {
    for (mode, name) in [(Mode::Exclusive, "process_exclusive.txt"), (Mode::Overlap, "process_overlap.txt")] {
        let written = table(
            Process::new(mode, id(1)),
            |machine| format!("{:?}, connected {}", machine.state(), machine.is_connected()),
            process_events,
            |machine, event| machine.step(event),
            all_named,
        );
        crate::common::assert_golden(name, &written);
    }
}

#[test]
fn the_supervisor_behaves_as_written() {
    for (mode, name) in
        [(Mode::Exclusive, "supervisor_exclusive.txt"), (Mode::Overlap, "supervisor_overlap.txt")]
    {
        let written = table(
            Supervisor::new(mode, Policy::default()),
            seen,
            supervisor_events,
            |machine, event| machine.step(Moment { now: 0, next_id: other(machine.handoff()) }, event),
            did,
        );
        crate::common::assert_golden(name, &written);
    }
}

/// The start of a supervisor with each possible leftover of an earlier one, and the effect of each event until it has
/// decided what to do.
#[test]
fn another_supervisor_begins_as_written() {
    for (mode, name) in [(Mode::Exclusive, "recovery_exclusive.txt"), (Mode::Overlap, "recovery_overlap.txt")]
    {
        let mut text = String::new();
        let mut begun = Vec::new();
        for left in all_left() {
            let (machine, actions) =
                Supervisor::recover(mode, Policy::default(), Moment { now: 0, next_id: id(2) }, left);
            let Legacy { last_handoff: written, incumbent, successor, outgoing, .. } = left;
            let wanted = if left.wanted { "" } else { " unwanted" };
            let under_way = if left.under_way { " under way" } else { "" };
            let left =
                format!("left {written:?} {incumbent:?}/{successor:?}/{outgoing:?}{under_way}{wanted}");
            text.push_str(&row(&left.replace("Gone", "-")));
            text.push_str(&row(&format!("    now -> [{}] {}", seen(&machine), did(&actions))));
            begun.push(machine);
        }
        text.push('\n');
        text.push_str(&table_from(
            begun,
            seen,
            recovery_events,
            |machine, event| machine.step(Moment { now: 0, next_id: id(2) }, event),
            did,
        ));
        crate::common::assert_golden(name, &text);
    }
}

/// An outgoing process does not affect the others. Neither does the wish that the service runs, until they are known.
fn all_left() -> Vec<Legacy> {
    let found = [Observation::Gone, Observation::Asked, Observation::Unreachable];
    let nobody = Legacy {
        wanted: true,
        last_handoff: LastHandoff::Uncommitted,
        handoff: id(1),
        under_way: false,
        left_ms: None,
        died: None,
        incumbent: Observation::Gone,
        successor: Observation::Gone,
        outgoing: Observation::Gone,
    };
    let mut all = Vec::new();
    for incumbent in found {
        for successor in found {
            all.push(Legacy { under_way: true, incumbent, successor, ..nobody });
            all.push(Legacy { last_handoff: LastHandoff::Committed, incumbent, successor, ..nobody });
        }
        all.push(Legacy { incumbent, ..nobody });
        all.push(Legacy { wanted: false, incumbent, ..nobody });
        all.push(Legacy { outgoing: incumbent, ..nobody });
    }
    all.push(Legacy { incumbent: Observation::Asked, outgoing: Observation::Asked, ..nobody });
    all
}

/// The events after the decision are in the other tables. For messages that no process sends to another supervisor,
/// one example is enough.
fn recovery_events(machine: &Supervisor) -> Vec<(&'static str, Event)> {
    const LIKE_OTHERS: [&str; 8] = [
        "stop",
        "upgrade",
        "successor: Hello",
        "successor: Hello of another version",
        "successor: Prepared",
        "incumbent: Sealed",
        "incumbent: SealFailed",
        "incumbent: wrong id",
    ];
    let Some(facts) = machine.facts() else { return Vec::new() };
    let leaving = machine.outgoing().is_some();
    all_supervisor_events(machine.handoff())
        .into_iter()
        .filter(|(_, event)| match event {
            Event::Starved(deadline) => machine.silent_at(*deadline).is_some(),
            _ => true,
        })
        .filter(|(name, _)| match *name {
            name if LIKE_OTHERS.contains(&name) => false,
            name if leaving || is_of_outgoing(name) => leaving && is_of_outgoing(name),
            name if name.starts_with("successor") => facts.successor != Observation::Gone,
            name if name.starts_with("incumbent") => facts.incumbent != Observation::Gone,
            _ => true,
        })
        .collect()
}

fn is_of_outgoing(event: &str) -> bool {
    event.starts_with("retire") || event.starts_with("outgoing")
}

fn to_service(own: HandoffId) -> Vec<(&'static str, HandoffId, ToService)> {
    let prepare = Prepare { grace_ms: 30, lease_ms: 35 };
    vec![
        ("Prepare", own, ToService::Prepare(prepare.clone())),
        ("Prepare of another handoff", other(own), ToService::Prepare(prepare)),
        ("Seal", own, ToService::Seal(Seal { lease_ms: 5, cut: false })),
        ("Seal of another handoff", other(own), ToService::Seal(Seal { lease_ms: 5, cut: false })),
        ("Begin", own, ToService::Begin(Begin {})),
        ("Commit", own, ToService::Commit(Commit {})),
        ("Commit of another handoff", other(own), ToService::Commit(Commit {})),
        ("Abort", own, ToService::Abort(Abort {})),
        ("Resume", own, ToService::Resume(Resume {})),
        ("State", own, ToService::State(state())),
        ("State of another handoff", other(own), ToService::State(state())),
        ("Grant", own, ToService::Grant(Grant { end_ms: 45 })),
    ]
}

/// An open channel can only be closed. A closed one can only be replaced, and carries nothing until then. A process
/// that is gone does nothing.
fn process_events(machine: &Process) -> Vec<(&'static str, process::Event)> {
    use process::Event;
    if machine.state() == process::ProcessState::Gone {
        return Vec::new();
    }
    let own = machine.handoff();
    let failed = || Err(String::from("why"));
    let mut events = Vec::new();
    if machine.is_connected() {
        let messages = to_service(own).into_iter();
        events.extend(messages.map(|(name, id, message)| (name, Event::Message(id, message))));
        events.push(("closed", Event::Closed));
    } else {
        events.push(("adopted", Event::Adopt(other(own))));
    }
    events.extend([
        ("lease", Event::Lease),
        ("started", Event::Started),
        ("locked", Event::Locked),
        ("not locked", Event::LockFailed(String::from("why"))),
        ("opened", Event::Opened(Ok(()))),
        ("not opened", Event::Opened(failed())),
        ("hand over", Event::HandOver(state())),
        ("drain done", Event::DrainDone(Ok(()))),
        ("drain failed", Event::DrainDone(failed())),
        ("seal done", Event::SealDone(Ok(()))),
        ("seal failed", Event::SealDone(failed())),
        ("resume done", Event::ResumeDone(Ok(()))),
        ("resume failed", Event::ResumeDone(failed())),
    ]);
    events
}

/// Actions without ids. The table shows which handoff is meant.
fn all_named(actions: &[impl Debug]) -> String {
    actions.iter().map(named).collect::<Vec<_>>().join(" ")
}

/// An action without ids. The table shows which handoff is meant.
fn named(action: &impl Debug) -> String {
    let text = format!("{action:?}");
    [(id(1), "id"), (id(2), "id")]
        .iter()
        .fold(text, |text, (id, name)| text.replace(&format!("{id:?}"), name))
}
