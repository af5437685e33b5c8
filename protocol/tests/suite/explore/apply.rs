//! The effect of each step on the world.

use handoff_protocol::deadline::Deadline;
use handoff_protocol::message::{FromService, Progress};
use handoff_protocol::reason::{Exit, Role};
use handoff_protocol::supervisor::{Event, Request, Target};

use super::defects::Defect;
use super::invariants;
use super::process::{Membership, ProcessStatus};
use super::steps::{Context, Step, UserRequest};
use super::world::World;

/// Applies a step to the world.
pub fn apply(world: &mut World, cx: &mut Context) {
    match cx.step {
        Step::Ask(ask) => {
            if ask == UserRequest::Stop {
                world.standby = None;
            }
            world.ask(
                match ask {
                    UserRequest::Start => Request::Start,
                    UserRequest::Stop => Request::Stop,
                    UserRequest::Cancel => Request::Cancel,
                    UserRequest::Upgrade => Request::Upgrade {
                        target: Target::Candidate,
                        deadline_ms: None,
                        drain_grace_ms: None,
                    },
                },
                cx,
            )
        }
        Step::SupervisorHears(at) => heard(world, at.into(), cx),
        Step::SupervisorSeesEof(at) => hung_up(world, at.into(), cx),
        Step::SupervisorWaitsFor(at) => waited_for(world, at.into(), cx),
        Step::DeadlinePasses(deadline) => {
            cx.rash = cx.model.has(Defect::ClockFirst)
                && world.is_overdue(deadline)
                && world.is_something_to_hear();
            invariants::note_silent(world, deadline, cx);
            if deadline == Deadline::Probation {
                world.standby = None;
            }
            world.late |= deadline == Deadline::Recover;
            world.arm(deadline, false);
            world.tell(Event::Deadline(deadline), cx);
        }
        Step::FindsStarved(deadline) => world.tell(Event::Starved(deadline), cx),
        Step::DiskAnswers(ok) => disk_answers(world, ok, cx),
        Step::OutgoingIsQuiet => {
            if let Some(outgoing) = world.machine.outgoing() {
                world.tell(Event::OutgoingQuiet(outgoing.handoff), cx);
            }
        }
        Step::DiskHangs => world.disk_hangs = true,
        Step::ProbeAnswers(ok) => probe_answers(world, ok, cx),
        Step::Condemns => condemns(world, cx),
        Step::SpawnFails(at) => {
            world.processes[usize::from(at)] = None;
            world.roles.successor = None;
            world.tell(Event::SpawnFailed(String::new()), cx);
        }
        Step::SaysHello(at) => world.greet(at.into()),
        Step::Hears(at) => world.hear(at.into(), cx),
        Step::SeesClosed(at) => world.notice_closed(at.into(), cx),
        Step::LeaseEnds(at) => world.lease_ends(at.into(), cx),
        Step::Adopts(at) => world.adopts(at.into(), cx),
        Step::TakesLock(at) => world.granted(at.into(), cx),
        Step::LearnsOfLock(at) => world.locked(at.into(), cx),
        Step::GivesUpLock(at) => world.process_mut(at.into()).waits = false,
        Step::CodeReturns(at, ok) => world.code_returns(at.into(), ok, cx),
        Step::HandsOver(at) => world.hands_over(at.into(), cx),
        Step::FindsItselfUnfit(at) => world.unfit(at.into(), cx),
        Step::SaysProgress(at) => progress(world, at.into()),
        Step::Ends(at) | Step::Crashes(at) => world.end(at.into()),
        Step::Freezes(at) => freezes(world, at.into()),
        Step::Thaws(at) => {
            let process = world.process_mut(at.into());
            process.status = ProcessStatus::Runs;
            process.overdue = process.lease;
        }
        Step::LosesChannel(at) => {
            let channel = &mut world.process_mut(at.into()).channel;
            channel.up = false;
            channel.inbox.clear();
        }
        Step::Babbles(at) => babbles(world, at.into(), cx),
        Step::SupervisorGoes(status) => world.lose_supervisor(cx.model, status),
        Step::SupervisorThaws => world.thaw_supervisor(cx),
        Step::SupervisorComes { mute, lasts } => world.come(mute.map(usize::from), lasts, cx),
    }
}

/// If it is frozen forever, its knowledge no longer matters.
fn freezes(world: &mut World, at: usize) {
    let for_ever = world.budget.thaws == 0;
    let process = world.process_mut(at);
    process.status = ProcessStatus::Frozen;
    process.lease &= !for_ever;
    process.overdue = false;
}

fn heard(world: &mut World, at: usize, cx: &mut Context) {
    let (id, message) = world.process_mut(at).line_mut().outbox.remove(0);
    let event = match place(world, at) {
        ProcessRole::Incumbent => Event::FromIncumbent(id, message),
        ProcessRole::Successor => Event::FromSuccessor(id, message),
        ProcessRole::Outgoing => Event::FromOutgoing(id, message),
        ProcessRole::None => return,
    };
    world.tell(event, cx);
}

fn hung_up(world: &mut World, at: usize, cx: &mut Context) {
    let line = world.process_mut(at).line_mut();
    line.eof_seen = true;
    line.outbox.clear();
    match place(world, at) {
        ProcessRole::Incumbent => world.tell(Event::HungUp(Role::Incumbent), cx),
        ProcessRole::Successor => world.tell(Event::HungUp(Role::Successor), cx),
        ProcessRole::Outgoing => unheard(world, cx),
        ProcessRole::None => {}
    }
}

/// The supervisor receives data from a process that is not a message, or not a suitable one.
fn babbles(world: &mut World, at: usize, cx: &mut Context) {
    world.babbled = true;
    world.process_mut(at).babbled = true;
    let role = match place(world, at) {
        ProcessRole::Incumbent => Role::Incumbent,
        ProcessRole::Successor => Role::Successor,
        ProcessRole::Outgoing => return unheard(world, cx),
        ProcessRole::None => return,
    };
    world.tell(Event::Garbage(role, String::new()), cx);
}

/// The outgoing process can no longer be reached.
fn unheard(world: &mut World, cx: &mut Context) {
    world.standby = None;
    world.tell(Event::OutgoingUnheard, cx);
}

/// A check finds that the watched process is not well.
fn condemns(world: &mut World, cx: &mut Context) {
    let Some((id, _)) = world.machine.watched() else { return };
    world.condemned = world.watched().map(|process| process.born_in);
    if !cx.model.has(Defect::ForgetVerdict) {
        world.tell(Event::Condemned(id, String::new()), cx);
    }
}

/// The supervisor learns of a death. The rest of the channel is closed with it.
fn waited_for(world: &mut World, at: usize, cx: &mut Context) {
    let place = place(world, at);
    if world.process(at).born_in == world.journal.current() && !world.disk_failed {
        world.journal.exited();
    }
    world.processes[at] = None;
    world.standby = world.standby.filter(|standby| *standby != at);
    match place {
        ProcessRole::Incumbent => {
            world.roles.incumbent = None;
            world.tell(Event::IncumbentGone(Exit::Unknown), cx);
        }
        ProcessRole::Successor => {
            world.roles.successor = None;
            world.tell(Event::SuccessorGone(Exit::Unknown), cx);
        }
        ProcessRole::Outgoing => {
            world.roles.outgoing = None;
            world.tell(Event::OutgoingGone, cx);
        }
        ProcessRole::None => {}
    }
}

fn disk_answers(world: &mut World, ok: bool, cx: &mut Context) {
    let Some((id, fact)) = world.writing.take() else { return };
    match ok {
        true => {
            world.journal.lasts(id, fact);
            world.tell(Event::Durable, cx)
        }
        false => {
            world.disk_failed = true;
            world.journal.doubt = Some((id, fact));
            world.tell(Event::NotDurable(String::new()), cx)
        }
    }
}

fn probe_answers(world: &mut World, ok: bool, cx: &mut Context) {
    let mut id = world.probes.remove(0);
    if world.probed(id).is_some()
        && let Some(at) = world.roles.successor
    {
        world.process_mut(at).probed = ok;
    } else if cx.model.has(Defect::TrustLateProbe) {
        id = world.machine.handoff();
    }
    world.tell(Event::Probed(id, if ok { Ok(()) } else { Err(String::new()) }), cx);
}

fn progress(world: &mut World, at: usize) {
    let id = match &world.process(at).membership {
        Membership::Stranger { .. } => return,
        Membership::Welcomed(machine) => machine.handoff(),
    };
    world.say(at, id, FromService::Progress(Progress { note: String::new() }));
}

#[derive(Clone, Copy)]
enum ProcessRole {
    Incumbent,
    Successor,
    Outgoing,
    None,
}

fn place(world: &World, at: usize) -> ProcessRole {
    match Some(at) {
        it if it == world.roles.incumbent => ProcessRole::Incumbent,
        it if it == world.roles.successor => ProcessRole::Successor,
        it if it == world.roles.outgoing => ProcessRole::Outgoing,
        _ => ProcessRole::None,
    }
}
