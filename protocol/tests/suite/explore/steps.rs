//! All possible next steps.

use core::fmt;

use handoff_protocol::deadline::Deadline;
use handoff_protocol::process::ProcessState;
use handoff_protocol::supervisor::{Leaving, Outgoing};

use super::defects::Defect;
use super::process::{Membership, Process, ProcessStatus};
use super::world::{DEADLINES, Model, SupervisorStatus, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserRequest {
    Start,
    Stop,
    Upgrade,
    Cancel,
}

/// One event. The numbers are processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Ask(UserRequest),
    SupervisorHears(u8),
    SupervisorSeesEof(u8),
    SupervisorWaitsFor(u8),
    DeadlinePasses(Deadline),
    /// The same, and the silent process is waiting for a processor.
    FindsStarved(Deadline),
    DiskAnswers(bool),
    /// Nothing more is on its way to the outgoing process.
    OutgoingIsQuiet,
    DiskHangs,
    /// The oldest probe is answered.
    ProbeAnswers(bool),
    /// A check finds that the watched process is not well.
    Condemns,
    SpawnFails(u8),
    SaysHello(u8),
    Hears(u8),
    SeesClosed(u8),
    LeaseEnds(u8),
    Adopts(u8),
    TakesLock(u8),
    LearnsOfLock(u8),
    GivesUpLock(u8),
    CodeReturns(u8, bool),
    HandsOver(u8),
    FindsItselfUnfit(u8),
    SaysProgress(u8),
    Ends(u8),
    Crashes(u8),
    Freezes(u8),
    Thaws(u8),
    LosesChannel(u8),
    Babbles(u8),
    SupervisorGoes(SupervisorStatus),
    SupervisorThaws,
    /// Another supervisor starts. It cannot reach the process `mute`. `lasts`: a doubtful record is on the disk.
    SupervisorComes {
        mute: Option<u8>,
        lasts: bool,
    },
}

/// A step, and whether the supervisor ends or freezes in the middle of it, after this number of its actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub step: Step,
    pub ends_after: Option<(u8, SupervisorStatus)>,
}

/// The cost of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Nothing: it happens unless something else does.
    Free,
    /// A timer: nothing if nothing else can happen.
    Time,
    /// A timer that fires although another one comes first.
    Slow,
    Death,
    Fault,
    Ask,
    Chatter,
    State,
    Thaw,
    /// Nothing if everything else is at rest.
    Return,
    /// The same, and a fault.
    FaultyReturn,
}

/// The input for the effects of one step, and their output.
pub struct Context<'a> {
    pub model: &'a Model,
    pub step: Step,
    /// The step is a timer that fired without anything slow: nothing else could happen.
    pub quiet: bool,
    /// The step is a timer that passed while the supervisor was frozen, and a message has arrived in the meantime.
    pub rash: bool,
    pub ends_after: Option<(u8, SupervisorStatus)>,
    /// Actions of the supervisor so far.
    pub done: u8,
    /// A request is being made.
    pub asking: bool,
    pub broken: Option<&'static str>,
    pub trace: Option<Vec<String>>,
}

impl Context<'_> {
    pub fn check(&mut self, result: Result<(), &'static str>) {
        if let Err(invariant) = result {
            self.broken.get_or_insert(invariant);
        }
    }

    pub fn log(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }
}

const OUTGOING: [Deadline; 4] =
    [Deadline::RetireDrain, Deadline::RetireQuiet, Deadline::RetireSeal, Deadline::RetireExit];

/// All possible steps in a world, and their costs.
pub fn steps(world: &World, model: &Model) -> Vec<(Step, Cost)> {
    let mut all = Vec::new();
    for (at, process) in world.existing() {
        of_process(world, model, at as u8, process, &mut all);
    }
    match world.supervisor {
        SupervisorStatus::Runs => of_supervisor(world, model, &mut all),
        SupervisorStatus::Frozen => of_frozen_supervisor(world, model, &mut all),
        SupervisorStatus::Dead if model.returns() => returns(world, &mut all),
        SupervisorStatus::Dead => {}
    }
    all
}

fn of_process(world: &World, model: &Model, at: u8, process: &Process, all: &mut Vec<(Step, Cost)>) {
    if world.supervisor == SupervisorStatus::Runs {
        seen_by_supervisor(world, at, process, all);
    }
    match process.status {
        ProcessStatus::Runs => {}
        ProcessStatus::Killed => return all.push((Step::Ends(at), Cost::Free)),
        ProcessStatus::Frozen => return of_frozen(world, at, process, all),
        ProcessStatus::Dead => return,
    }
    let mut add = |possible: bool, step, cost| {
        if possible {
            all.push((step, cost));
        }
    };
    let Process { channel, .. } = process;
    add(process.membership == (Membership::Stranger { greeted: false }), Step::SaysHello(at), Cost::Free);
    add(!channel.inbox.is_empty(), Step::Hears(at), Cost::Free);
    add(!channel.closed_seen && !channel.is_open(), Step::SeesClosed(at), Cost::Free);
    let called = process.calls.first().is_some_and(|call| !call.inbox.is_empty());
    let greeted = !matches!(process.membership, Membership::Stranger { .. });
    let closed = channel.closed_seen || model.has(Defect::AdoptBeforeClosed) && greeted;
    add(closed && called, Step::Adopts(at), Cost::Free);
    add(process.granted, Step::LearnsOfLock(at), Cost::Free);
    let holder = world.lock.map(|holder| world.process(holder).status);
    let broken = model.has(Defect::BreakLock) && holder == Some(ProcessStatus::Frozen);
    add(process.waits && (holder.is_none() || broken), Step::TakesLock(at), Cost::Free);
    add(process.waits && model.has(Defect::GiveUpLock), Step::GivesUpLock(at), Cost::Time);
    add(process.code.is_some(), Step::CodeReturns(at, true), Cost::Free);
    add(process.terminated, Step::Ends(at), Cost::Free);
    let lease = if process.overdue { Cost::Free } else { Cost::Time };
    add(process.lease, Step::LeaseEnds(at), lease);
    add(process.code.is_some(), Step::CodeReturns(at, false), Cost::Fault);
    add(drains_or_seals(process), Step::HandsOver(at), Cost::State);
    add(is_parked(process), Step::FindsItselfUnfit(at), Cost::Fault);
    add(process.calls.is_empty() && channel.is_open(), Step::LosesChannel(at), Cost::Fault);
    add(process.is_at_work(), Step::SaysProgress(at), Cost::Chatter);
    add(true, Step::Crashes(at), Cost::Death);
    add(true, Step::Freezes(at), Cost::Death);
}

fn of_frozen(world: &World, at: u8, process: &Process, all: &mut Vec<(Step, Cost)>) {
    if process.waits && world.lock.is_none() {
        all.push((Step::TakesLock(at), Cost::Free));
    }
    if world.budget.thaws > 0 {
        all.push((Step::Thaws(at), Cost::Thaw));
    }
}

fn of_frozen_supervisor(world: &World, model: &Model, all: &mut Vec<(Step, Cost)>) {
    if world.budget.thaws > 0 {
        all.push((Step::SupervisorThaws, Cost::Thaw));
    }
    if model.returns() {
        all.push((Step::SupervisorGoes(SupervisorStatus::Dead), Cost::Death));
    }
}

/// Another supervisor reaches all processes, or all but one.
fn returns(world: &World, all: &mut Vec<(Step, Cost)>) {
    let doubts: &[bool] = if world.journal.doubt.is_some() { &[false, true] } else { &[false] };
    for lasts in doubts.iter().copied() {
        all.push((Step::SupervisorComes { mute: None, lasts }, Cost::Return));
        for (at, process) in world.existing() {
            // Before its `Hello`, it cannot be reached yet.
            let early = process.membership == (Membership::Stranger { greeted: false });
            let cost = if early { Cost::Return } else { Cost::FaultyReturn };
            all.push((Step::SupervisorComes { mute: Some(at as u8), lasts }, cost));
        }
    }
}

fn seen_by_supervisor(world: &World, at: u8, process: &Process, all: &mut Vec<(Step, Cost)>) {
    let line = process.line();
    if !line.outbox.is_empty() {
        all.push((Step::SupervisorHears(at), Cost::Free));
    }
    if line.ends() {
        all.push((Step::SupervisorSeesEof(at), Cost::Free));
    }
    if process.status == ProcessStatus::Dead {
        all.push((Step::SupervisorWaitsFor(at), Cost::Free));
    }
    let heard = process.runs() && process.calls.is_empty() && line.is_open() && line.outbox.is_empty();
    let counts = world.roles.outgoing != Some(at.into()) || world.machine.is_on_probation();
    if heard && !process.babbled && counts {
        all.push((Step::Babbles(at), Cost::Fault));
    }
    let starts = process.channel.is_open() && process.membership == (Membership::Stranger { greeted: false });
    if world.roles.successor == Some(at.into()) && starts {
        all.push((Step::SpawnFails(at), Cost::Fault));
    }
}

/// Its own code runs, or has just returned and left a task that hands over.
fn drains_or_seals(process: &Process) -> bool {
    matches!(
        process.membership.state(),
        Some(
            ProcessState::Draining { .. }
                | ProcessState::Sealing { .. }
                | ProcessState::Sealed
                | ProcessState::Serving
        )
    )
}

fn is_parked(process: &Process) -> bool {
    process.membership.state() == Some(ProcessState::Parked)
}

fn of_supervisor(world: &World, model: &Model, all: &mut Vec<(Step, Cost)>) {
    if world.writing.is_some() && !world.disk_hangs {
        if !world.disk_failed {
            all.push((Step::DiskAnswers(true), Cost::Free));
            all.push((Step::DiskHangs, Cost::Fault));
        }
        let cost = if world.disk_failed { Cost::Free } else { Cost::Fault };
        all.push((Step::DiskAnswers(false), cost));
    }
    if let Some(Outgoing { step: Leaving::Quieting { .. }, .. }) = world.machine.outgoing() {
        all.push((Step::OutgoingIsQuiet, Cost::Free));
    }
    probe_answers(world, all);
    if let Some(process) = world.watched() {
        // A stopped process is seen without a probe. With one, a process that does not serve fails it.
        let stopped = process.status == ProcessStatus::Frozen && !model.has(Defect::ForgetFrozen);
        let fails = stopped || model.probes && !process.serves();
        all.push((Step::Condemns, if fails { Cost::Free } else { Cost::Fault }));
    }
    let first = first_deadlines(world);
    let first_heard = !model.has(Defect::ClockFirst) && world.is_something_to_hear();
    for deadline in DEADLINES.into_iter().filter(|deadline| world.is_armed(*deadline)) {
        let cost = match world.is_overdue(deadline) {
            // Messages that arrived while the supervisor was frozen are read first.
            true if !first_heard => Cost::Free,
            true => Cost::Slow,
            false if first.contains(&deadline) => Cost::Time,
            false => Cost::Slow,
        };
        all.push((Step::DeadlinePasses(deadline), cost));
        if world.machine.silent_at(deadline).is_some_and(|role| world.is_busy(role)) {
            all.push((Step::FindsStarved(deadline), Cost::Chatter));
        }
    }
    for ask in [UserRequest::Start, UserRequest::Stop, UserRequest::Upgrade, UserRequest::Cancel] {
        all.push((Step::Ask(ask), Cost::Ask));
    }
    for status in [SupervisorStatus::Dead, SupervisorStatus::Frozen] {
        all.push((Step::SupervisorGoes(status), Cost::Death));
    }
}

/// A late probe is answered by the process that serves by then, with any result.
fn probe_answers(world: &World, all: &mut Vec<(Step, Cost)>) {
    let Some(id) = world.probes.first() else { return };
    match world.probed(*id) {
        Some(process) if process.serves() => {
            all.push((Step::ProbeAnswers(true), Cost::Free));
            all.push((Step::ProbeAnswers(false), Cost::Fault));
        }
        // There is no answer: the end of the process, or the limit of the probe, decides.
        Some(_) => {}
        None => all.push((Step::ProbeAnswers(true), Cost::Free)),
    }
}

/// The deadlines of which one passes next if nothing else happens. The limits of a leaving process are shorter than
/// those of one that waits for its lock, and a working process gives signs of life.
fn first_deadlines(world: &World) -> Vec<Deadline> {
    // The supervisor would try to start another process forever.
    let armed =
        |deadline: &Deadline| !world.lost_track && world.is_armed(*deadline) && !world.is_put_off(*deadline);
    for first in [&OUTGOING[..], &[Deadline::AnswerIncumbent, Deadline::AnswerSuccessor]] {
        if first.iter().any(armed) {
            return first.iter().copied().filter(|deadline| armed(deadline)).collect();
        }
    }
    DEADLINES.into_iter().filter(armed).collect()
}

/// What can happen without failures.
#[derive(Clone, Copy, Debug)]
pub struct Quiescence {
    /// Only timers.
    pub still: bool,
    /// Not even timers.
    pub rests: bool,
}

/// Takes the cost of a step from the budget, if that allows it.
pub fn pay(world: &mut World, cost: Cost, quiescence: Quiescence) -> bool {
    let budget = &mut world.budget;
    let account = match cost {
        Cost::Free => return true,
        Cost::Time if quiescence.still => return true,
        Cost::Time | Cost::Slow => &mut budget.slow,
        Cost::Return if quiescence.rests => return true,
        Cost::Return => &mut budget.returns,
        Cost::FaultyReturn => {
            return pay(world, Cost::Return, quiescence) && pay(world, Cost::Fault, quiescence);
        }
        Cost::Thaw => &mut budget.thaws,
        Cost::Death => &mut budget.deaths,
        Cost::Fault => &mut budget.faults,
        Cost::Ask => &mut budget.asks,
        Cost::Chatter => &mut budget.chatter,
        Cost::State => &mut budget.states,
    };
    let enough = *account > 0;
    *account = account.saturating_sub(1);
    enough
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ends_after {
            None => write!(f, "{:?}", self.step),
            Some((after, status)) => {
                write!(f, "{:?}; after {after} actions the supervisor is {status:?}", self.step)
            }
        }
    }
}
