//! The whole table of each machine, state by state and event by event, as text under `tests/golden/`. A change of
//! behaviour shows there as a change of a line.

mod common;
#[path = "common/events.rs"]
mod events;
#[path = "common/table.rs"]
mod table;

use std::fmt::Write;

use handoff_protocol::deadline::Policy;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::incumbent::{self, Incumbent};
use handoff_protocol::message::{Abort, Begin, Commit, Mode, Prepare, Resume, Seal, ToService};
use handoff_protocol::recovery::{Found, Written};
use handoff_protocol::successor::{self, Successor};
use handoff_protocol::supervisor::{Event, Left, Moment, Supervisor};

use events::{all_supervisor_events, seen, state, supervisor_events};
use table::{id, named, other, table, table_from};

#[test]
fn the_incumbent_behaves_as_written() {
    for (mode, name) in
        [(Mode::Exclusive, "incumbent_exclusive.txt"), (Mode::Overlap, "incumbent_overlap.txt")]
    {
        let written = table(
            Incumbent::new(mode, id(1)),
            |machine| format!("{:?}, connected {}", machine.state(), is_connected(machine)),
            incumbent_events,
            |machine, event| machine.step(event),
        );
        common::assert_golden(name, &written);
    }
}

#[test]
fn the_successor_behaves_as_written() {
    for (mode, name) in
        [(Mode::Exclusive, "successor_exclusive.txt"), (Mode::Overlap, "successor_overlap.txt")]
    {
        let written = table(
            Successor::new(mode, id(1)),
            |machine| format!("{:?}, connected {}", machine.state(), machine.is_connected()),
            successor_events,
            |machine, event| machine.step(event),
        );
        common::assert_golden(name, &written);
    }
}

#[test]
fn the_supervisor_behaves_as_written() {
    for (mode, name) in
        [(Mode::Exclusive, "supervisor_exclusive.txt"), (Mode::Overlap, "supervisor_overlap.txt")]
    {
        let written =
            table(Supervisor::new(mode, Policy::default()), seen, supervisor_events, |machine, event| {
                machine.step(Moment { now: 0, fresh: other(machine.handoff()) }, event)
            });
        common::assert_golden(name, &written);
    }
}

/// How a supervisor begins with each thing that an earlier one can have left, and what each event does until it is known
/// what to do about it.
#[test]
fn another_supervisor_begins_as_written() {
    for (mode, name) in [(Mode::Exclusive, "recovery_exclusive.txt"), (Mode::Overlap, "recovery_overlap.txt")]
    {
        let mut text = String::new();
        let mut begun = Vec::new();
        for left in all_left() {
            let (machine, actions) =
                Supervisor::recover(mode, Policy::default(), Moment { now: 0, fresh: id(2) }, left);
            let Left { written, incumbent, successor, retiree, .. } = left;
            let wanted = if left.wanted { "" } else { ", not wanted" };
            let under_way = if left.under_way { ", under way" } else { "" };
            let parts: Vec<String> = actions.iter().map(named).collect();
            let _ = writeln!(
                text,
                "left {written:?}, incumbent {incumbent:?}, successor {successor:?}, retiree {retiree:?}{under_way}{wanted} \
                 -> [{}] {}",
                seen(&machine),
                parts.join(" ")
            );
            begun.push(machine);
        }
        text.push('\n');
        text.push_str(&table_from(begun, seen, recovery_events, |machine, event| {
            machine.step(Moment { now: 0, fresh: id(2) }, event)
        }));
        common::assert_golden(name, &text);
    }
}

/// A retiree changes nothing for the others, and neither does the wish that the service runs until they are known.
fn all_left() -> Vec<Left> {
    let found = [Found::Gone, Found::Asked, Found::Mute];
    let nobody = Left {
        wanted: true,
        written: Written::Uncommitted,
        handoff: id(1),
        under_way: false,
        incumbent: Found::Gone,
        successor: Found::Gone,
        retiree: Found::Gone,
    };
    let mut all = Vec::new();
    for incumbent in found {
        for successor in found {
            all.push(Left { under_way: true, incumbent, successor, ..nobody });
            all.push(Left { written: Written::Committed, incumbent, successor, ..nobody });
        }
        all.push(Left { incumbent, ..nobody });
        all.push(Left { wanted: false, incumbent, ..nobody });
        all.push(Left { retiree: incumbent, ..nobody });
    }
    all.push(Left { incumbent: Found::Asked, retiree: Found::Asked, ..nobody });
    all
}

/// What follows when it is known is in the other tables. Of what nobody says to another supervisor one example is enough.
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
    let leaving = machine.retiree().is_some();
    all_supervisor_events(machine.handoff())
        .into_iter()
        .filter(|(name, _)| match *name {
            name if LIKE_OTHERS.contains(&name) => false,
            name if leaving || name.starts_with("retire") => leaving && name.starts_with("retire"),
            name if name.starts_with("successor") => facts.successor != Found::Gone,
            name if name.starts_with("incumbent") => facts.incumbent != Found::Gone,
            _ => true,
        })
        .collect()
}

/// The machine does not tell whether it is connected; whether it still answers does.
fn is_connected(machine: &Incumbent) -> bool {
    format!("{machine:?}").contains("connected: true")
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
    ]
}

/// A channel that is there can only be closed; one that is closed can only be replaced.
fn channel<E>(
    own: HandoffId,
    connected: bool,
    closed: E,
    adopt: impl Fn(HandoffId) -> E,
) -> (&'static str, E) {
    if connected { ("closed", closed) } else { ("adopted", adopt(other(own))) }
}

/// Whose channel is closed hears nothing until it is adopted; who is gone does nothing more.
fn incumbent_events(machine: &Incumbent) -> Vec<(&'static str, incumbent::Event)> {
    use incumbent::Event;
    if machine.state() == incumbent::State::Gone {
        return Vec::new();
    }
    let failed = || Err(String::from("why"));
    let heard = if is_connected(machine) { to_service(machine.handoff()) } else { Vec::new() };
    let messages = heard.into_iter().map(|(name, id, message)| (name, Event::Message(id, message)));
    messages
        .chain([channel(machine.handoff(), is_connected(machine), Event::Closed, Event::Adopt)])
        .chain([
            ("lease", Event::Lease),
            ("hand over", Event::HandOver(state())),
            ("drain done", Event::DrainDone(Ok(()))),
            ("drain failed", Event::DrainDone(failed())),
            ("seal done", Event::SealDone(Ok(()))),
            ("seal failed", Event::SealDone(failed())),
            ("locked", Event::Locked),
            ("resume done", Event::ResumeDone(Ok(()))),
            ("resume failed", Event::ResumeDone(failed())),
        ])
        .collect()
}

/// A successor that became the incumbent goes on as another machine.
fn successor_events(machine: &Successor) -> Vec<(&'static str, successor::Event)> {
    use successor::Event;
    if matches!(machine.state(), successor::State::Gone | successor::State::Incumbent) {
        return Vec::new();
    }
    let heard = if machine.is_connected() { to_service(machine.handoff()) } else { Vec::new() };
    let messages = heard.into_iter().map(|(name, id, message)| (name, Event::Message(id, message)));
    messages
        .chain([channel(machine.handoff(), machine.is_connected(), Event::Closed, Event::Adopt)])
        .chain([
            ("lease", Event::Lease),
            ("started", Event::Started),
            ("locked", Event::Locked),
            ("opened", Event::Opened(Ok(()))),
            ("not opened", Event::Opened(Err(String::from("why")))),
            ("seal done", Event::SealDone),
        ])
        .collect()
}
