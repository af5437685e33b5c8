//! The whole table of each machine, state by state and event by event, as text under `tests/golden/`. A change of
//! behaviour shows there as a change of a line.

mod common;
#[path = "common/table.rs"]
mod table;

use std::fmt::Write;

use handoff_protocol::deadline::{Deadline, Policy};
use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::incumbent::{self, Incumbent};
use handoff_protocol::message::{
    Abort, Adopted, Begin, Commit, Done, Failed, FromService, Hello, Mode, Prepare, Progress, Ready, Resume,
    Seal, Stage, ToService,
};
use handoff_protocol::reason::{Exit, Party};
use handoff_protocol::recovery::{Facts, Found, Written};
use handoff_protocol::state::State;
use handoff_protocol::successor::{self, Successor};
use handoff_protocol::supervisor::{
    Action, Event, Incumbent as Old, Left, Moment, Phase, Request, Successor as Seen, Supervisor, Target,
};
use handoff_protocol::version::VersionRange;

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

/// With a probe: what is different, which is the state in which it is awaited.
#[test]
fn a_probe_is_awaited_as_written() {
    let policy = Policy { probes: true, ..Policy::default() };
    let mut text = String::new();
    for mode in [Mode::Exclusive, Mode::Overlap] {
        let written =
            table(Supervisor::new(mode, policy.clone()), seen, supervisor_events, |machine, event| {
                machine.step(Moment { now: 0, fresh: other(machine.handoff()) }, event)
            });
        let _ = writeln!(text, "{mode:?}\n");
        for state in written.split_inclusive("\n\n").filter(|state| state.starts_with("Probing")) {
            text.push_str(state);
        }
    }
    common::assert_golden("supervisor_probing.txt", &text);
}

#[test]
fn the_limit_of_a_probe_is_cut_to_what_is_left_of_the_upgrade() {
    let policy = Policy { probes: true, ..Policy::default() };
    let ready = FromService::Ready(Ready { healthy: true, reason: String::new() });
    for (now, limit_ms) in [(4_000, 30_000), (290_000, 10_000), (400_000, 0)] {
        let mut machine = Supervisor::new(Mode::Overlap, policy.clone());
        let at = |now| Moment { now, fresh: id(1) };
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

fn seen(machine: &Supervisor) -> String {
    let leaving = machine.retiree().map_or(String::from("none"), |retiree| format!("{:?}", retiree.step));
    let wanted = if machine.is_wanted() { "" } else { ", not wanted" };
    if let Some(Facts { written, incumbent, successor, .. }) = machine.facts() {
        return format!(
            "Recovering {written:?}, incumbent {incumbent:?}, successor {successor:?}, retiree {leaving}{wanted}"
        );
    }
    format!(
        "{:?}, incumbent {:?}, successor {:?}, retiree {leaving}{wanted}",
        machine.phase(),
        machine.incumbent(),
        machine.successor(),
    )
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

/// Only a process that exists does anything. A process that leaves while another handoff is under way changes little:
/// that is shown where nothing else is under way.
fn supervisor_events(machine: &Supervisor) -> Vec<(&'static str, Event)> {
    let busy = !matches!(machine.phase(), Phase::Serving | Phase::Backoff | Phase::Stopped | Phase::Stopping);
    if busy && machine.retiree().is_some() {
        return Vec::new();
    }
    let possible = |name: &str, event: &Event| match event {
        Event::SpawnFailed(_) => machine.successor() == Seen::Starting,
        Event::Probed(_, _) => machine.phase() == Phase::Probing,
        Event::Durable | Event::NotDurable(_) => {
            matches!(machine.phase(), Phase::Committing | Phase::Reverting)
        }
        _ if name.starts_with("successor") => machine.successor() != Seen::Absent,
        _ if name.starts_with("incumbent") => machine.incumbent() != Old::Absent,
        _ if name.starts_with("retire") => machine.retiree().is_some(),
        _ => true,
    };
    all_supervisor_events(machine.handoff())
        .into_iter()
        .filter(|(name, event)| possible(name, event))
        .collect()
}

fn all_supervisor_events(own: HandoffId) -> Vec<(&'static str, Event)> {
    let upgrade = Request::Upgrade { target: Target::Candidate, deadline_ms: None, drain_grace_ms: None };
    let why = || String::from("why");
    let done = Done {};
    let failed = Failed { reason: why() };
    let hello = Hello { versions: VersionRange::OURS, pid: 1 };
    let stranger = Hello { versions: VersionRange { minimum: 7, current: 9 }, pid: 1 };
    let from_new = |message| Event::FromSuccessor(own, message);
    let from_old = |message| Event::FromIncumbent(own, message);
    let leaving = |message| Event::FromRetiree(own, message);
    let mut events = vec![
        ("start", Event::Request(Request::Start)),
        ("stop", Event::Request(Request::Stop)),
        ("upgrade", Event::Request(upgrade)),
        ("cancel", Event::Request(Request::Cancel)),
        ("spawn failed", Event::SpawnFailed(why())),
        ("successor: Hello", from_new(FromService::Hello(hello))),
        ("successor: Hello of another version", from_new(FromService::Hello(stranger))),
        ("successor: Prepared", from_new(FromService::Prepared(done.clone()))),
        ("successor: Ready", from_new(FromService::Ready(Ready { healthy: true, reason: String::new() }))),
        ("successor: not healthy", from_new(FromService::Ready(Ready { healthy: false, reason: why() }))),
        ("successor: Progress", from_new(FromService::Progress(Progress { note: String::new() }))),
        ("successor: wrong id", Event::FromSuccessor(other(own), FromService::Prepared(done.clone()))),
        ("successor: State", from_new(FromService::State(state()))),
        ("successor: Sealed", from_new(FromService::Sealed(done.clone()))),
        ("successor: Resumed", from_new(FromService::Resumed(done.clone()))),
        ("successor: ResumeFailed", from_new(FromService::ResumeFailed(failed.clone()))),
        ("successor: Adopted, serving", from_new(adopted(Stage::Serving))),
        ("successor: Adopted, working", from_new(adopted(Stage::Working))),
        ("successor: Adopted, waiting", from_new(adopted(Stage::Waiting))),
        ("successor: Adopted, leaving", from_new(adopted(Stage::Leaving))),
        ("incumbent: Drained", from_old(FromService::Drained(done.clone()))),
        ("incumbent: Sealed", from_old(FromService::Sealed(done.clone()))),
        ("incumbent: SealFailed", from_old(FromService::SealFailed(failed.clone()))),
        ("incumbent: Resumed", from_old(FromService::Resumed(done.clone()))),
        ("incumbent: ResumeFailed", from_old(FromService::ResumeFailed(failed.clone()))),
        ("incumbent: Progress", from_old(FromService::Progress(Progress { note: String::new() }))),
        ("incumbent: Adopted, serving", from_old(adopted(Stage::Serving))),
        ("incumbent: Adopted, working", from_old(adopted(Stage::Working))),
        ("incumbent: Adopted, waiting", from_old(adopted(Stage::Waiting))),
        ("incumbent: Adopted, leaving", from_old(adopted(Stage::Leaving))),
        ("incumbent: State", from_old(FromService::State(state()))),
        ("incumbent: wrong id", Event::FromIncumbent(other(own), FromService::Drained(done.clone()))),
        ("retiree: State", leaving(FromService::State(state()))),
        ("retiree: Drained", leaving(FromService::Drained(done.clone()))),
        ("retiree: Sealed", leaving(FromService::Sealed(done.clone()))),
        ("retiree: SealFailed", leaving(FromService::SealFailed(failed))),
        ("retiree: Resumed", leaving(FromService::Resumed(done))),
        ("retiree: Adopted, serving", leaving(adopted(Stage::Serving))),
        ("retiree: Adopted, working", leaving(adopted(Stage::Working))),
        ("retiree: Adopted, waiting", leaving(adopted(Stage::Waiting))),
        ("retiree: Adopted, leaving", leaving(adopted(Stage::Leaving))),
        ("successor hung up", Event::HungUp(Party::Successor)),
        ("incumbent hung up", Event::HungUp(Party::Incumbent)),
        ("successor: garbage", Event::Garbage(Party::Successor, why())),
        ("incumbent: garbage", Event::Garbage(Party::Incumbent, why())),
        ("successor gone", Event::SuccessorGone(Exit::Code(1))),
        ("incumbent gone", Event::IncumbentGone(Exit::Code(1))),
        ("retiree gone", Event::RetireeGone),
        ("probe passed", Event::Probed(own, Ok(()))),
        ("probe failed", Event::Probed(own, Err(why()))),
        ("probe of another handoff passed", Event::Probed(other(own), Ok(()))),
        ("durable", Event::Durable),
        ("not durable", Event::NotDurable(why())),
    ];
    events.extend(DEADLINES.map(|(name, deadline)| (name, Event::Deadline(deadline))));
    events
}

fn state() -> State {
    State::new(3, &[]).expect("a state")
}

fn adopted(stage: Stage) -> FromService {
    let service = "s3".parse().expect("a name");
    let listeners = Vec::new();
    FromService::Adopted(Adopted { version: 1, pid: 1, service, generation: Generation(1), stage, listeners })
}

const DEADLINES: [(&str, Deadline); 16] = [
    ("greet limit", Deadline::Greet),
    ("prepare limit", Deadline::Prepare),
    ("drain limit", Deadline::Drain),
    ("seal limit", Deadline::Seal),
    ("begin limit", Deadline::Begin),
    ("probe limit", Deadline::Probe),
    ("silence", Deadline::Silence),
    ("leave limit", Deadline::Leave),
    ("resume limit", Deadline::Resume),
    ("backoff", Deadline::Backoff),
    ("retire drain limit", Deadline::RetireDrain),
    ("retire seal limit", Deadline::RetireSeal),
    ("retire exit limit", Deadline::RetireExit),
    ("no answer of the incumbent", Deadline::AnswerIncumbent),
    ("no answer of the successor", Deadline::AnswerSuccessor),
    ("recover limit", Deadline::Recover),
];
