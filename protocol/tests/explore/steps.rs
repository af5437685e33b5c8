//! Everything that can happen next.

use core::fmt;

use handoff_protocol::deadline::Deadline;
use handoff_protocol::message::{FromService, Progress};
use handoff_protocol::reason::{Exit, Party};
use handoff_protocol::supervisor::{Event, Lasting, Request, Target};

use crate::defects::Defect;
use crate::world::{Chair, DEADLINES, Life, Model, Part, Process, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Start,
    Stop,
    Upgrade,
    Cancel,
}

/// One thing that happens. Numbers are processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Ask(Ask),
    SupervisorHears(u8),
    SupervisorSeesEof(u8),
    SupervisorWaitsFor(u8),
    DeadlinePasses(Deadline),
    DiskAnswers(bool),
    SpawnFails(u8),
    SaysHello(u8),
    Hears(u8),
    SeesClosed(u8),
    LeaseEnds(u8),
    TakesLock(u8),
    GivesUpLock(u8),
    CodeReturns(u8, bool),
    FindsItselfUnfit(u8),
    SaysProgress(u8),
    Ends(u8),
    Crashes(u8),
    Freezes(u8),
    LosesChannel(u8),
    Babbles(u8),
    SupervisorGoes(Chair),
}

/// A step, and whether the supervisor goes in the middle of it, after so many of its actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub step: Step,
    pub ends_after: Option<(u8, Chair)>,
}

/// What a step takes from the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Nothing: it will happen unless something else does.
    Free,
    /// A timer: nothing if nothing else can happen.
    Time,
    /// A timer although another one comes first.
    Slow,
    Death,
    Fault,
    Ask,
    Chatter,
}

/// What the effects of one step need to know, and what they leave behind.
pub struct Context<'a> {
    pub model: &'a Model,
    pub step: Step,
    /// The step is a timer that fired although nothing was slow: nothing else could happen.
    pub quiet: bool,
    pub ends_after: Option<(u8, Chair)>,
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

const RETIREE: [Deadline; 3] = [Deadline::RetireDrain, Deadline::RetireSeal, Deadline::RetireExit];

/// All steps that can happen in a world, and what they cost.
pub fn steps(world: &World, model: &Model) -> Vec<(Step, Cost)> {
    let mut all = Vec::new();
    for (at, process) in world.existing() {
        of_process(world, model, at as u8, process, &mut all);
    }
    if world.chair == Chair::Runs {
        of_supervisor(world, &mut all);
    }
    all
}

fn of_process(world: &World, model: &Model, at: u8, process: &Process, all: &mut Vec<(Step, Cost)>) {
    if world.chair == Chair::Runs {
        seen_by_supervisor(world, at, process, all);
    }
    match process.life {
        Life::Runs => {}
        Life::Killed => return all.push((Step::Ends(at), Cost::Free)),
        Life::Frozen if process.waits && world.lock.is_none() => {
            return all.push((Step::TakesLock(at), Cost::Free));
        }
        Life::Frozen | Life::Dead => return,
    }
    let mut add = |possible: bool, step, cost| {
        if possible {
            all.push((step, cost));
        }
    };
    let working = match &process.part {
        Part::Stranger { .. } => false,
        Part::Successor(machine) => machine.is_working(),
        Part::Incumbent(machine) => machine.is_working(),
    };
    add(process.part == (Part::Stranger { greeted: false }), Step::SaysHello(at), Cost::Free);
    add(!process.inbox.is_empty(), Step::Hears(at), Cost::Free);
    add(!(process.closed_seen || process.up && process.down), Step::SeesClosed(at), Cost::Free);
    add(process.waits && world.lock.is_none(), Step::TakesLock(at), Cost::Free);
    add(process.waits && model.has(Defect::GiveUpLock), Step::GivesUpLock(at), Cost::Time);
    add(process.code.is_some(), Step::CodeReturns(at, true), Cost::Free);
    add(process.terminated, Step::Ends(at), Cost::Free);
    add(process.lease, Step::LeaseEnds(at), Cost::Time);
    add(process.code.is_some(), Step::CodeReturns(at, false), Cost::Fault);
    add(is_parked(process), Step::FindsItselfUnfit(at), Cost::Fault);
    add(process.up && process.down, Step::LosesChannel(at), Cost::Fault);
    add(working && process.up && process.down, Step::SaysProgress(at), Cost::Chatter);
    add(true, Step::Crashes(at), Cost::Death);
    add(true, Step::Freezes(at), Cost::Death);
}

fn seen_by_supervisor(world: &World, at: u8, process: &Process, all: &mut Vec<(Step, Cost)>) {
    if !process.outbox.is_empty() {
        all.push((Step::SupervisorHears(at), Cost::Free));
    }
    let readable = process.outbox.is_empty() || process.reset;
    if !process.up && process.down && !process.eof_seen && readable {
        all.push((Step::SupervisorSeesEof(at), Cost::Free));
    }
    if process.life == Life::Dead {
        all.push((Step::SupervisorWaitsFor(at), Cost::Free));
    }
    let heard = process.runs() && process.up && process.down && process.outbox.is_empty();
    if heard && !process.babbled && world.roles.retiree != Some(at.into()) {
        all.push((Step::Babbles(at), Cost::Fault));
    }
    if world.roles.successor == Some(at.into()) && process.part == (Part::Stranger { greeted: false }) {
        all.push((Step::SpawnFails(at), Cost::Fault));
    }
}

fn is_parked(process: &Process) -> bool {
    use handoff_protocol::successor::State;
    matches!(&process.part, Part::Successor(machine) if machine.state() == State::Parked)
}

fn of_supervisor(world: &World, all: &mut Vec<(Step, Cost)>) {
    if world.writing.is_some() {
        if !world.disk_failed {
            all.push((Step::DiskAnswers(true), Cost::Free));
        }
        let cost = if world.disk_failed { Cost::Free } else { Cost::Fault };
        all.push((Step::DiskAnswers(false), cost));
    }
    // The limits of a process that leaves are shorter than those of one that waits for its lock.
    let leaving = RETIREE.iter().any(|deadline| world.is_armed(*deadline));
    for deadline in DEADLINES {
        if world.is_armed(deadline) {
            let first = !leaving || RETIREE.contains(&deadline);
            all.push((Step::DeadlinePasses(deadline), if first { Cost::Time } else { Cost::Slow }));
        }
    }
    for ask in [Ask::Start, Ask::Stop, Ask::Upgrade, Ask::Cancel] {
        all.push((Step::Ask(ask), Cost::Ask));
    }
    for chair in [Chair::Dead, Chair::Frozen] {
        all.push((Step::SupervisorGoes(chair), Cost::Death));
    }
}

/// Takes a step out of the budget, if that allows it. `still` says that nothing is free.
pub fn pay(world: &mut World, cost: Cost, still: bool) -> bool {
    let budget = &mut world.budget;
    let account = match cost {
        Cost::Free => return true,
        Cost::Time if still => return true,
        Cost::Time | Cost::Slow => &mut budget.slow,
        Cost::Death => &mut budget.deaths,
        Cost::Fault => &mut budget.faults,
        Cost::Ask => &mut budget.asks,
        Cost::Chatter => &mut budget.chatter,
    };
    let enough = *account > 0;
    *account = account.saturating_sub(1);
    enough
}

/// What the world is after a step.
pub fn apply(world: &mut World, cx: &mut Context) {
    match cx.step {
        Step::Ask(ask) => world.ask(
            match ask {
                Ask::Start => Request::Start,
                Ask::Stop => Request::Stop,
                Ask::Cancel => Request::Cancel,
                Ask::Upgrade => {
                    Request::Upgrade { target: Target::Candidate, deadline_ms: None, drain_grace_ms: None }
                }
            },
            cx,
        ),
        Step::SupervisorHears(at) => heard(world, at.into(), cx),
        Step::SupervisorSeesEof(at) => hung_up(world, at.into(), cx),
        Step::SupervisorWaitsFor(at) => waited_for(world, at.into(), cx),
        Step::DeadlinePasses(deadline) => {
            world.arm(deadline, false);
            world.tell(Event::Deadline(deadline), cx);
        }
        Step::DiskAnswers(ok) => disk_answers(world, ok, cx),
        Step::SpawnFails(at) => {
            world.processes[usize::from(at)] = None;
            world.roles.successor = None;
            world.tell(Event::SpawnFailed(String::new()), cx);
        }
        Step::SaysHello(at) => world.greet(at.into()),
        Step::Hears(at) => world.hear(at.into(), cx),
        Step::SeesClosed(at) => world.notice_closed(at.into(), cx),
        Step::LeaseEnds(at) => world.lease_ends(at.into(), cx),
        Step::TakesLock(at) => world.granted(at.into(), cx),
        Step::GivesUpLock(at) => world.process_mut(at.into()).waits = false,
        Step::CodeReturns(at, ok) => world.code_returns(at.into(), ok, cx),
        Step::FindsItselfUnfit(at) => world.unfit(at.into(), cx),
        Step::SaysProgress(at) => progress(world, at.into()),
        Step::Ends(at) | Step::Crashes(at) => world.end(at.into()),
        Step::Freezes(at) => {
            let process = world.process_mut(at.into());
            process.life = Life::Frozen;
            process.lease = false;
        }
        Step::LosesChannel(at) => {
            let process = world.process_mut(at.into());
            process.up = false;
            process.inbox.clear();
        }
        Step::Babbles(at) => babbles(world, at.into(), cx),
        Step::SupervisorGoes(chair) => world.lose_supervisor(cx.model, chair),
    }
}

fn heard(world: &mut World, at: usize, cx: &mut Context) {
    let (id, message) = world.process_mut(at).outbox.remove(0);
    let event = match role(world, at) {
        Role::Incumbent => Event::FromIncumbent(id, message),
        Role::Successor => Event::FromSuccessor(id, message),
        Role::Retiree => Event::FromRetiree(id, message),
        Role::None => return,
    };
    world.tell(event, cx);
}

fn hung_up(world: &mut World, at: usize, cx: &mut Context) {
    let process = world.process_mut(at);
    process.eof_seen = true;
    process.outbox.clear();
    match role(world, at) {
        Role::Incumbent => world.tell(Event::HungUp(Party::Incumbent), cx),
        Role::Successor => world.tell(Event::HungUp(Party::Successor), cx),
        Role::Retiree | Role::None => {}
    }
}

/// The supervisor hears something from a process that is not a message, or not one that fits.
fn babbles(world: &mut World, at: usize, cx: &mut Context) {
    world.babbled = true;
    world.process_mut(at).babbled = true;
    let party = match role(world, at) {
        Role::Incumbent => Party::Incumbent,
        Role::Successor => Party::Successor,
        Role::Retiree | Role::None => return,
    };
    world.tell(Event::Garbage(party, String::new()), cx);
}

/// The supervisor learns of a death. What is left of the channel is closed with it.
fn waited_for(world: &mut World, at: usize, cx: &mut Context) {
    let role = role(world, at);
    world.processes[at] = None;
    match role {
        Role::Incumbent => {
            world.roles.incumbent = None;
            world.tell(Event::IncumbentGone(Exit::Unknown), cx);
        }
        Role::Successor => {
            world.roles.successor = None;
            world.tell(Event::SuccessorGone(Exit::Unknown), cx);
        }
        Role::Retiree => {
            world.roles.retiree = None;
            world.tell(Event::RetireeGone, cx);
        }
        Role::None => {}
    }
}

fn disk_answers(world: &mut World, ok: bool, cx: &mut Context) {
    let Some((id, lasting)) = world.writing.take() else { return };
    world.disk_failed |= !ok;
    match (ok, lasting) {
        (true, Lasting::Commit) => (world.previous, world.current) = (world.current, id),
        (true, Lasting::Revert) => (world.previous, world.current) = (world.current, world.previous),
        (false, _) => return world.tell(Event::NotDurable(String::new()), cx),
    }
    world.tell(Event::Durable, cx);
}

fn progress(world: &mut World, at: usize) {
    let id = match &world.process(at).part {
        Part::Stranger { .. } => return,
        Part::Successor(machine) => machine.handoff(),
        Part::Incumbent(machine) => machine.handoff(),
    };
    world.say(at, id, FromService::Progress(Progress { note: String::new() }));
}

#[derive(Clone, Copy)]
enum Role {
    Incumbent,
    Successor,
    Retiree,
    None,
}

fn role(world: &World, at: usize) -> Role {
    match Some(at) {
        it if it == world.roles.incumbent => Role::Incumbent,
        it if it == world.roles.successor => Role::Successor,
        it if it == world.roles.retiree => Role::Retiree,
        _ => Role::None,
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ends_after {
            None => write!(f, "{:?}", self.step),
            Some((after, chair)) => {
                write!(f, "{:?}; after {after} actions the supervisor is {chair:?}", self.step)
            }
        }
    }
}
