//! The events of a supervisor, one of each.

use handoff_protocol::deadline::Deadline;
use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::message::{Adopted, Done, Failed, FromService, Hello, Progress, Ready, Release, Stage};
use handoff_protocol::reason::{Exit, Role};
use handoff_protocol::state::State;
use handoff_protocol::supervisor::{
    Event, Incumbent as Old, Phase, Request, Successor as Seen, Supervisor, Target,
};
use handoff_protocol::version::VersionRange;

use super::table::other;

/// Only an existing process causes events. A process that leaves during another handoff changes little: this is shown
/// where nothing else is under way.
pub fn supervisor_events(machine: &Supervisor) -> Vec<(&'static str, Event)> {
    let busy = !matches!(machine.phase(), Phase::Serving | Phase::Backoff | Phase::Stopped | Phase::Stopping);
    if busy && machine.outgoing().is_some() {
        return Vec::new();
    }
    let possible = |name: &str, event: &Event| match event {
        Event::SpawnFailed(_) => machine.successor() == Seen::Starting,
        Event::Probed(_, _) => machine.phase() == Phase::Probing,
        Event::Condemned(_, _) => machine.watched().is_some(),
        Event::Starved(deadline) => machine.silent_at(*deadline).is_some(),
        Event::Durable | Event::NotDurable(_) => {
            matches!(machine.phase(), Phase::Committing | Phase::Reverting)
        }
        _ if name.starts_with("successor") => machine.successor() != Seen::Absent,
        _ if name.starts_with("incumbent") => machine.incumbent() != Old::Absent,
        _ if name.starts_with("retire") || name.starts_with("outgoing") => machine.outgoing().is_some(),
        _ => true,
    };
    all_supervisor_events(machine.handoff())
        .into_iter()
        .filter(|(name, event)| possible(name, event))
        .collect()
}

pub fn upgrade() -> Request {
    Request::Upgrade { target: Target::Candidate, deadline_ms: None, drain_grace_ms: None }
}

pub fn all_supervisor_events(own: HandoffId) -> Vec<(&'static str, Event)> {
    let why = || String::from("why");
    let done = Done {};
    let failed = Failed { reason: why() };
    let hello = Hello { versions: VersionRange::OURS, pid: 1 };
    let stranger = Hello { versions: VersionRange { minimum: 7, current: 9 }, pid: 1 };
    let from_new = |message| Event::FromSuccessor(own, message);
    let from_old = |message| Event::FromIncumbent(own, message);
    let leaving = |message| Event::FromOutgoing(own, message);
    let mut events = vec![
        ("start", Event::Request(Request::Start)),
        ("stop", Event::Request(Request::Stop)),
        ("upgrade", Event::Request(upgrade())),
        ("cancel", Event::Request(Request::Cancel)),
        ("spawn failed", Event::SpawnFailed(why())),
        ("successor: Hello", from_new(FromService::Hello(hello))),
        ("successor: Hello of another version", from_new(FromService::Hello(stranger))),
        ("successor: Prepared", from_new(FromService::Prepared(done.clone()))),
        ("successor: Ready", from_new(FromService::Ready(Ready { healthy: true, reason: String::new() }))),
        ("successor: not healthy", from_new(FromService::Ready(Ready { healthy: false, reason: why() }))),
        ("successor: Progress", from_new(FromService::Progress(Progress { note: String::new() }))),
        ("successor: Release", from_new(FromService::Release(Release { version: why() }))),
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
        ("incumbent: Release", from_old(FromService::Release(Release { version: why() }))),
        ("incumbent: Adopted, serving", from_old(adopted(Stage::Serving))),
        ("incumbent: Adopted, working", from_old(adopted(Stage::Working))),
        ("incumbent: Adopted, waiting", from_old(adopted(Stage::Waiting))),
        ("incumbent: Adopted, leaving", from_old(adopted(Stage::Leaving))),
        ("incumbent: State", from_old(FromService::State(state()))),
        ("incumbent: wrong id", Event::FromIncumbent(other(own), FromService::Drained(done.clone()))),
        ("outgoing: Release", leaving(FromService::Release(Release { version: why() }))),
        ("outgoing: State", leaving(FromService::State(state()))),
        ("outgoing: Drained", leaving(FromService::Drained(done.clone()))),
        ("outgoing: Sealed", leaving(FromService::Sealed(done.clone()))),
        ("outgoing: SealFailed", leaving(FromService::SealFailed(failed))),
        ("outgoing: Resumed", leaving(FromService::Resumed(done))),
        ("outgoing: Adopted, serving", leaving(adopted(Stage::Serving))),
        ("outgoing: Adopted, working", leaving(adopted(Stage::Working))),
        ("outgoing: Adopted, waiting", leaving(adopted(Stage::Waiting))),
        ("outgoing: Adopted, leaving", leaving(adopted(Stage::Leaving))),
        ("successor hung up", Event::HungUp(Role::Successor)),
        ("incumbent hung up", Event::HungUp(Role::Incumbent)),
        ("successor: garbage", Event::Garbage(Role::Successor, why())),
        ("incumbent: garbage", Event::Garbage(Role::Incumbent, why())),
        ("successor gone", Event::SuccessorGone(Exit::Code(1))),
        ("incumbent gone", Event::IncumbentGone(Exit::Code(1))),
        ("outgoing gone", Event::OutgoingGone),
        ("outgoing unheard", Event::OutgoingUnheard),
        ("outgoing quiet", Event::OutgoingQuiet(own)),
        ("probe passed", Event::Probed(own, Ok(()))),
        ("probe failed", Event::Probed(own, Err(why()))),
        ("probe of another handoff passed", Event::Probed(other(own), Ok(()))),
        ("condemned", Event::Condemned(own, why())),
        ("durable", Event::Durable),
        ("not durable", Event::NotDurable(why())),
    ];
    events.extend(STARVED.map(|(name, deadline)| (name, Event::Starved(deadline))));
    events.extend(DEADLINES.map(|(name, deadline)| (name, Event::Deadline(deadline))));
    events
}

pub fn state() -> State {
    State::new(3, &[]).expect("a state")
}

pub fn adopted(stage: Stage) -> FromService {
    let service = "s3".parse().expect("a name");
    let listeners = Vec::new();
    FromService::Adopted(Adopted { version: 1, pid: 1, service, generation: Generation(1), stage, listeners })
}

const STARVED: [(&str, Deadline); 3] = [
    ("silence, starved", Deadline::Silence),
    ("no answer of I, starved", Deadline::AnswerIncumbent),
    ("no answer of S, starved", Deadline::AnswerSuccessor),
];

const DEADLINES: [(&str, Deadline); 20] = [
    ("greet limit", Deadline::Greet),
    ("prepare limit", Deadline::Prepare),
    ("drain limit", Deadline::Drain),
    ("seal limit", Deadline::Seal),
    ("begin limit", Deadline::Begin),
    ("probe limit", Deadline::Probe),
    ("record limit", Deadline::Record),
    ("canary over", Deadline::Canary),
    ("probation over", Deadline::Probation),
    ("silence", Deadline::Silence),
    ("leave limit", Deadline::Leave),
    ("resume limit", Deadline::Resume),
    ("backoff", Deadline::Backoff),
    ("retire drain limit", Deadline::RetireDrain),
    ("retire quiet limit", Deadline::RetireQuiet),
    ("retire seal limit", Deadline::RetireSeal),
    ("retire exit limit", Deadline::RetireExit),
    ("no answer of I", Deadline::AnswerIncumbent),
    ("no answer of S", Deadline::AnswerSuccessor),
    ("recover limit", Deadline::Recover),
];
