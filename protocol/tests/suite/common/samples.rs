//! One sample of each message and of each fact.

use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::message::{
    Abort, Adopt, Adopted, Begin, Commit, Done, Failed, FromService, Grant, Hello, Mode, Prepare, Progress,
    Ready, Release, Resume, Seal, Stage, ToService, Welcome,
};
use handoff_protocol::reason::Exit;
use handoff_protocol::record::{Attempt, Binary, Current, Fact, MonotonicTime, Process, Standing};
use handoff_protocol::restart::Rest;
use handoff_protocol::state::State;
use handoff_protocol::version::VersionRange;

/// 00 11 22 … ff.
pub fn id() -> HandoffId {
    HandoffId::from_bytes(core::array::from_fn(|at| at as u8 * 0x11))
}

pub fn from_service() -> Vec<FromService> {
    vec![
        FromService::Hello(Hello { versions: VersionRange { minimum: 1, current: 1 }, pid: 4711 }),
        FromService::Prepared(Done {}),
        FromService::Drained(Done {}),
        FromService::Sealed(Done {}),
        FromService::SealFailed(Failed { reason: "disk full".into() }),
        FromService::Ready(Ready { healthy: true, reason: String::new() }),
        FromService::Resumed(Done {}),
        FromService::ResumeFailed(Failed { reason: "no such bucket".into() }),
        FromService::Progress(Progress { note: "3 uploads".into() }),
        FromService::Adopted(Adopted {
            version: 1,
            pid: 4711,
            service: "s3".parse().expect("a name"),
            generation: Generation(7),
            stage: Stage::Waiting,
            listeners: vec!["http".parse().expect("a name"), "admin".parse().expect("a name")],
        }),
        FromService::State(State::new(3, b"two sessions").expect("a state")),
        FromService::Release(Release { version: "1.2.3".into() }),
    ]
}

pub fn to_service() -> Vec<ToService> {
    vec![
        ToService::Welcome(Welcome {
            version: 1,
            service: "s3".parse().expect("a name"),
            generation: Generation(7),
            mode: Mode::Exclusive,
            listeners: vec!["http".parse().expect("a name"), "admin".parse().expect("a name")],
            lease_ms: 5_000,
        }),
        ToService::Prepare(Prepare { grace_ms: 30_000, lease_ms: 35_000 }),
        ToService::Seal(Seal { lease_ms: 5_000, cut: false }),
        ToService::Begin(Begin {}),
        ToService::Commit(Commit {}),
        ToService::Abort(Abort {}),
        ToService::Resume(Resume {}),
        ToService::Adopt(Adopt { versions: VersionRange { minimum: 1, current: 1 }, lease_ms: 5_000 }),
        ToService::State(State::new(3, &[0xa5; 40_000]).expect("a state")),
        ToService::Grant(Grant { end_ms: 45_000 }),
    ]
}

pub fn facts() -> Vec<(&'static str, Fact)> {
    let handoff = id();
    let binary = Binary { path: "/srv/s3-2".into(), sha256: core::array::from_fn(|at| at as u8) };
    let process = Process { pid: 4711, start_ticks: 123_456, boot_id: [0xb0; 16] };
    vec![
        ("wanted", Fact::Wanted { up: true }),
        ("intent", Fact::Intent { handoff, generation: Generation(7), binary }),
        ("spawned", Fact::Spawned { handoff, process }),
        ("begun", Fact::Begun { handoff }),
        ("committed", Fact::Committed { handoff }),
        ("rolled_back", Fact::RolledBack { handoff, reason: "it was cancelled".into() }),
        ("reverted", Fact::Reverted { handoff }),
        ("exited", Fact::Exited { generation: Generation(7), exit: Exit::Signal(9) }),
        ("snapshot", Fact::Snapshot(Box::new(standing()))),
    ]
}

/// The facts that only journals of format 2 have.
pub fn newer_facts() -> Vec<(&'static str, Fact)> {
    let ends = MonotonicTime { boot_id: [0xb0; 16], ms: 3_600_000 };
    vec![("deadline", Fact::Deadline { handoff: id(), ends }), ("order", Fact::Order { reverted: true })]
}

/// The facts that only journals of format 3 have.
pub fn newest_facts() -> Vec<(&'static str, Fact)> {
    let exited = Fact::Rest { rest: Rest::Exited, exit: Some(Exit::Code(3)) };
    vec![("exited_for_good", exited), ("failed_for_good", Fact::Rest { rest: Rest::Failed, exit: None })]
}

/// A standing with all parts that a snapshot can have.
fn standing() -> Standing {
    let binary = |n: u8| Binary { path: format!("/srv/s3-{n}"), sha256: [n; 32] };
    let process = |pid| Process { pid, start_ticks: 123_456, boot_id: [0xb0; 16] };
    let current = |n: u8, process| Current {
        handoff: HandoffId::from_bytes([n; 16]),
        generation: Generation(n.into()),
        binary: binary(n),
        process,
        started_unix_ms: 1_700_000_000_000,
        since_unix_ms: 1_700_000_000_000 + u64::from(n),
    };
    let attempt = Attempt {
        handoff: id(),
        generation: Generation(8),
        binary: binary(8),
        process: Some(process(4712)),
        started_unix_ms: 1_700_000_000_000,
        begun: true,
        ends: None,
    };
    Standing {
        wanted: true,
        current: Some(current(7, Some(process(4711)))),
        previous: Some(current(6, None)),
        leaving: Some(current(5, Some(process(4710)))),
        attempt: Some(attempt),
        restarts: 3,
        reverted: false,
        rest: None,
    }
}
