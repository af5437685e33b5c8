//! The trial of `handoff`: a program that speaks the protocol sends `Hello` before anything else.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use handoff_protocol::ids::ID_VARIABLE;
use handoff_protocol::message::FromService;
use handoff_protocol::version::UNAGREED;

use super::super::program::{Program, ProgramState, StartOptions};
use super::super::runner::early_end;
use super::{TrialReport, TrialRequest, TrialResources, channel_pair};
use crate::sys::channel::Channel;
use crate::sys::inherit::{CHANNEL_VARIABLE, KIND_VARIABLE, STREAM};
use crate::sys::readable::is_readable_by;
use crate::sys::traced::OUT_OF_THE_WAY;
use crate::sys::wire::recv_message;

/// A program that closes its channel is about to end.
const END_WITHIN: Duration = Duration::from_millis(500);

/// The error says why the trial failed.
pub(super) fn attempt(request: &TrialRequest, stage: &TrialResources) -> Result<TrialReport, String> {
    let program = &stage.program;
    let system = |error: std::io::Error| error.to_string();
    // A stream carries no descriptors, so they are inherited.
    let listeners = if request.stream { Some(stage.open(&request.plan, false)?) } else { None };
    let given = listeners
        .as_ref()
        .map(|listeners| listeners.duplicates())
        .transpose()
        .map_err(system)?
        .unwrap_or_default();
    let (channel, theirs) = channel_pair(request.stream).map_err(system)?;
    let started_at = Instant::now();
    let said = match program.start(start(request, given, theirs)) {
        Ok(_) => hello(&channel, program, request.limit),
        Err(error) => Err(error.to_string()),
    };
    let after = Duration::from_millis(started_at.elapsed().as_millis() as u64);
    let (works, why) = match said {
        Ok(versions) => {
            (true, format!("it says Hello, {after:?} after its start, and speaks version {versions}"))
        }
        Err(why) => (false, why),
    };
    let ended = !works && program.wait(Some(Duration::ZERO), ProgramState::ended).is_some();
    Ok(TrialReport { works, why, ended, ..TrialReport::default() })
}

fn start(request: &TrialRequest, listeners: Vec<(String, OwnedFd)>, theirs: OwnedFd) -> StartOptions {
    let id = uuid::Uuid::now_v7();
    let mut env = vec![
        (CHANNEL_VARIABLE.into(), OUT_OF_THE_WAY.to_string().into()),
        (ID_VARIABLE.into(), id.to_string().into()),
    ];
    if request.stream {
        env.push((KIND_VARIABLE.into(), STREAM.into()));
    }
    StartOptions {
        listeners,
        inherited: vec![theirs],
        env,
        seccomp: false,
        is_held: false,
        sockets: BTreeSet::new(),
    }
}

/// Returns the versions that it supports.
fn hello(channel: &Channel, program: &Program, limit: Duration) -> Result<String, String> {
    let is_there = is_readable_by(channel, Instant::now() + limit).map_err(|error| error.to_string())?;
    if !is_there {
        return Err(format!("it has not said Hello within {limit:?}: it does not speak the protocol"));
    }
    match recv_message::<FromService>(channel, UNAGREED) {
        Ok(Some((_, FromService::Hello(hello), _))) => {
            let range = hello.versions;
            Ok(match range.minimum == range.current {
                true => range.current.to_string(),
                false => format!("{} to {}", range.minimum, range.current),
            })
        }
        Ok(Some((_, message, _))) => Err(format!("its first message is {}, not Hello", message.name())),
        Ok(None) => {
            let ended = program.wait(Some(END_WITHIN), |known| (!known.lives()).then(|| early_end(known)));
            let closed =
                || "it has closed the channel without a Hello: it does not speak the protocol".to_owned();
            Err(ended.map_or_else(closed, |ended| format!("it has not said Hello: {ended}")))
        }
        Err(error) => Err(format!("its message on the channel is not part of the protocol: {error}")),
    }
}
