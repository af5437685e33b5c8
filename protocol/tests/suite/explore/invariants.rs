//! The invariants. Each function is one promise, checked when it could be broken.

use handoff_protocol::deadline::Deadline;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{Mode, ToService};
use handoff_protocol::process;
use handoff_protocol::reason::Reason;
use handoff_protocol::supervisor::{DurableFact, Incumbent, Outcome, Phase};

use super::process::{Delivery, Membership, Process, ProcessStatus};
use super::steps::{Context, Step};
use super::world::{Model, SupervisorStatus, World};

pub type Checked = Result<(), &'static str>;

fn hold(holds: bool, invariant: &'static str) -> Checked {
    if holds { Ok(()) } else { Err(invariant) }
}

/// In all states.
pub fn always(world: &World, model: &Model) -> Checked {
    for (at, process) in world.existing() {
        let locked = model.mode == Mode::Overlap || world.lock == Some(at);
        hold(!process.data_open || locked, "who has the data open holds the lock: never two writers")?;
        hold(
            !process.accepts || process.status == ProcessStatus::Dead || process.data_open,
            "a process that accepts has the data open",
        )?;
    }
    // Until it is known which process serves, the destination of connections is undecided.
    let informed = world.supervisor == SupervisorStatus::Runs && world.machine.phase() != Phase::Recovering;
    if informed && model.mode == Mode::Overlap {
        // A dead process that was not reaped still counts: the supervisor cannot know better yet.
        let serves = world.roles.incumbent.is_some_and(|at| world.process(at).serves());
        let there = world.existing().any(|(_, process)| process.slot == world.steering);
        hold(!serves || there, "steering never points at a slot whose process is gone while another serves")?;
        let retires = world.roles.outgoing.is_some_and(|at| world.process(at).slot == world.steering);
        hold(!serves || !retires, "new connections do not go to a leaving process while another serves")?;
        // A process that died or was killed, and was not reaped, still counts.
        let shares = |process: &Process| process.accepts || !process.runs();
        let shared = |slot| world.existing().any(|(_, process)| process.slot == slot && shares(process));
        hold(
            world.share.is_none_or(shared),
            "no share of connections goes to a process that does not serve",
        )?;
    }
    Ok(())
}

/// When nothing more can happen without another failure.
pub fn at_rest(world: &World, model: &Model) -> Checked {
    match world.supervisor {
        SupervisorStatus::Runs => at_rest_under_supervisor(world, model),
        SupervisorStatus::Frozen => {
            orphans_serve(world, model, "without a supervisor one process serves by itself")
        }
        SupervisorStatus::Dead => {
            orphans_serve(world, model, "without a supervisor one process serves by itself")
        }
    }
}

/// When only the ends of leases can still happen: a closed channel alone must be enough.
pub fn before_leases(world: &World, model: &Model) -> Checked {
    match world.supervisor {
        SupervisorStatus::Dead => {
            orphans_serve(world, model, "a closed channel is acted upon at once, not by the lease")
        }
        SupervisorStatus::Runs | SupervisorStatus::Frozen => Ok(()),
    }
}

fn at_rest_under_supervisor(world: &World, model: &Model) -> Checked {
    if world.lost_track {
        return Ok(());
    }
    hold(world.waiting == 0, "every request is reported")?;
    hold(world.timers == 0 && world.writing.is_none(), "at rest no timer is armed and nothing is written")?;
    if !world.machine.is_wanted() {
        hold(world.machine.phase() == Phase::Stopped, "a service that is not wanted is stopped")?;
        return hold(world.count() == 0, "a service that is not wanted leaves no process");
    }
    hold(world.machine.phase() == Phase::Serving, "a service that is wanted serves")?;
    hold(world.count() == 1, "exactly one process is left")?;
    let at = world.roles.incumbent.ok_or("the process that is left is the incumbent")?;
    let process = world.process(at);
    // An idle process is not asked for signs of life: without liveness checks, no one notices its freeze.
    if process.status == ProcessStatus::Frozen && !model.liveness {
        return Ok(());
    }
    hold(process.serves(), "exactly one process serves")?;
    hold(
        model.mode == Mode::Exclusive || world.steering == process.slot && world.share.is_none(),
        "new connections go to the process that serves",
    )?;
    hold(
        model.returns() || world.condemned != Some(process.born_in),
        "who is found not to be well does not serve on",
    )?;
    // With a broken disk, the only serving process continues to serve.
    hold(
        world.disk_failed || world.journal.current() == process.born_in,
        "who serves is the current generation",
    )
}

/// One death, or one endless freeze, of the supervisor alone. If more fails, or a process cannot resume, there may be
/// no process that could start another one: then only safety is promised. The same holds if no process served and
/// none had received `Begin` when the supervisor went (a cold start): the next supervisor recovers that.
fn orphans_serve(world: &World, model: &Model, promise: &'static str) -> Checked {
    let alone = model.budget.deaths - world.budget.deaths == 1;
    if !alone || !world.orphans || world.lost_another {
        return Ok(());
    }
    let serving = world.existing().filter(|(_, process)| process.serves()).count();
    match model.mode {
        Mode::Exclusive => hold(serving == 1, promise),
        // Stateless processes may serve side by side until a supervisor is back. Connections must reach one of them.
        Mode::Overlap => {
            let reached =
                |slot| world.existing().any(|(_, process)| process.serves() && process.slot == slot);
            hold(reached(world.steering) && world.share.is_none_or(reached), promise)
        }
    }
}

/// With a failing disk, a service that is down is started all the same. The next supervisor cannot know of that
/// process. From then on, only the absence of two writers is promised.
pub fn may_lose_track(world: &World) -> Checked {
    hold(world.unknown || !world.lost_track, "another supervisor knows every process")
}

pub fn may_release(world: &World, at: usize) -> Checked {
    hold(world.process(at).sealed, "the lock is released only after a seal that succeeded")
}

pub fn may_say_sealed(world: &World, at: usize) -> Checked {
    hold(world.lock != Some(at), "Sealed is said only after the lock was released")
}

pub fn may_write(
    world: &World,
    mode: Mode,
    to: Option<usize>,
    id: HandoffId,
    delivery: &Delivery,
) -> Checked {
    let Delivery::Message(message) = delivery else {
        return hold(to.is_some(), "a message goes to a process that exists");
    };
    match message {
        ToService::Begin(_) => may_begin(world, mode, id),
        ToService::State(_) => may_hand_on(world, mode, to),
        ToService::Commit(_) => may_commit(world, to, id),
        ToService::Resume(_) => may_resume(world),
        _ => hold(to.is_some(), "a message goes to a process that exists"),
    }
}

/// A limit passed although the process lives: from now on, the supervisor cannot know better.
pub fn note_silent(world: &mut World, deadline: Deadline, cx: &Context) {
    let suspects = match deadline {
        Deadline::AnswerIncumbent => [world.roles.incumbent, None],
        Deadline::AnswerSuccessor => [world.roles.successor, None],
        // The time of the incumbent follows that of the successor.
        Deadline::Recover => [world.roles.successor, world.roles.incumbent.filter(|_| world.late)],
        _ => return,
    };
    if is_late(world, cx) {
        for at in suspects.into_iter().flatten() {
            world.process_mut(at).mute = true;
        }
    }
}

fn may_begin(world: &World, mode: Mode, id: HandoffId) -> Checked {
    let clear = world.roles.incumbent.is_none_or(|at| {
        let incumbent = world.process(at);
        incumbent.status == ProcessStatus::Dead || incumbent.said_sealed == Some(id)
    });
    hold(mode == Mode::Overlap || clear, "a successor begins only when the incumbent is sealed or gone")?;
    let handed =
        world.roles.incumbent.and_then(|at| world.process(at).handed).filter(|(in_id, _)| *in_id == id);
    let given = world.roles.successor.and_then(|at| world.process(at).given);
    hold(
        handed.is_none() || handed == given,
        "what was handed over before the seal is there before the successor begins",
    )
}

/// In exclusive mode before it begins, in overlap mode when it is committed.
fn may_hand_on(world: &World, mode: Mode, to: Option<usize>) -> Checked {
    let follows = match mode {
        Mode::Exclusive => to == world.roles.successor && !to.is_some_and(|at| world.process(at).begun),
        Mode::Overlap => to == world.roles.incumbent && world.roles.outgoing.is_some(),
    };
    hold(to.is_some() && follows, "what is handed over goes to the process that follows")
}

pub fn may_hand_over(world: &World, at: usize, id: HandoffId) -> Checked {
    hold(world.process(at).said_sealed != Some(id), "nothing is handed over after Sealed")
}

/// The end of a service that is stopped is not a commit. If no other process serves, a broken disk must not end the
/// one that does: it gets `Commit`, and no process is sent away for it.
fn may_commit(world: &World, to: Option<usize>, id: HandoffId) -> Checked {
    let takes_itself = to.filter(|_| to == world.roles.incumbent).is_some_and(|at| {
        let Process { membership: part, calls, channel, .. } = world.process(at);
        part.is_incumbent() && calls.is_empty() && channel.is_open()
    });
    hold(!takes_itself, "who takes itself for the incumbent is not told that it is committed")?;
    let stops = !world.machine.is_wanted();
    let alone = world.disk_failed && to == world.roles.incumbent;
    // A process that is taken back leaves, regardless of the record of that.
    let leaving = to == world.roles.outgoing
        && to
            .map(|at| world.process(at).born_in)
            .is_some_and(|id| id != world.journal.current() || world.sent_back == Some(id));
    hold(
        stops || alone || world.journal.current() == id || leaving,
        "a commit is reported only after it is durable",
    )
}

fn may_resume(world: &World) -> Checked {
    let begun = world.roles.successor.is_some_and(|at| world.process(at).begun);
    let lingers = world.existing().any(|(at, process)| {
        process.begun && process.status == ProcessStatus::Killed && Some(at) != world.roles.incumbent
    });
    hold(
        !begun && !lingers,
        "a successor that has received Begin is gone before the incumbent is asked to resume",
    )
}

/// During a recovery, only a process that is silent, cannot be asked, or does not go is killed.
fn may_kill_left(world: &World, cx: &Context, at: usize) -> Checked {
    let left = world.machine.phase() == Phase::Recovering;
    let serves = world.process(at).serves() && world.process(at).is_healthy();
    hold(
        !left || !serves || is_late(world, cx),
        "a process that serves is not killed for being left by another supervisor",
    )
}

pub fn may_kill_incumbent(world: &World, cx: &Context) -> Checked {
    let Some(at) = world.roles.incumbent else { return Ok(()) };
    may_kill_left(world, cx, at)?;
    let process = world.process(at);
    let condemned = cx.step == Step::Condemns && world.condemned == Some(process.born_in);
    hold(condemned || is_late(world, cx) || !process.is_healthy(), "a healthy incumbent is not killed")
}

/// A successor that has begun may also be killed to let the incumbent back in, but not without an incumbent.
pub fn may_kill_successor(world: &World, cx: &Context) -> Checked {
    let Some(at) = world.roles.successor else { return Ok(()) };
    may_kill_left(world, cx, at)?;
    let broke = cx.step == Step::SupervisorHears(at as u8) && world.process(at).is_healthy();
    hold(!broke, "no process breaks the protocol")?;
    let asked = matches!(cx.step, Step::Ask(_));
    let replaceable = world.roles.incumbent.is_some() && !matches!(cx.step, Step::DeadlinePasses(_));
    hold(
        asked || replaceable || is_late(world, cx) || world.lost_track || !world.process(at).is_healthy(),
        "a healthy process is never killed to make room for a dead one",
    )
}

/// A process that leaves in order, or has its data open, may have something to end. Its time for that starts with its stop
/// signal. Exempt is one that is taken for frozen: it is silent, or the watch over the serving process finds it unwell.
pub fn had_its_time(world: &World, cx: &Context, at: Option<usize>) -> Checked {
    let Some(process) = at.map(|at| world.process(at)) else { return Ok(()) };
    let leaves = match &process.membership {
        Membership::Stranger { .. } => false,
        Membership::Welcomed(machine) => {
            matches!(machine.state(), process::ProcessState::Leaving | process::ProcessState::Dismissed)
        }
    };
    let frozen = match cx.step {
        Step::DeadlinePasses(deadline) => deadline == Deadline::Silence,
        Step::Condemns => at == world.roles.incumbent,
        Step::SupervisorThaws => true,
        _ => false,
    };
    let works = process.data_open && !frozen;
    hold(
        !leaves && !works || process.terminated || !process.is_healthy(),
        "a process that leaves in order, or has its data open, is killed only when the time after its stop signal is over",
    )
}

pub fn may_force_outgoing(world: &World, cx: &Context) -> Checked {
    let Some(at) = world.roles.outgoing else { return Ok(()) };
    hold(is_late(world, cx) || !world.process(at).is_healthy(), "a healthy process that leaves is not forced")
}

/// A deadline passed although something could still happen, because a process is too slow. If a process is frozen,
/// time passes for the others too.
fn is_late(world: &World, cx: &Context) -> bool {
    let frozen = world.existing().any(|(_, process)| process.status == ProcessStatus::Frozen);
    match cx.step {
        Step::DeadlinePasses(_) => !(cx.quiet || cx.rash) || frozen,
        // Its actions were decided before it froze.
        Step::SupervisorThaws => true,
        _ => false,
    }
}

pub fn may_hang_up(world: &World, at: usize) -> Checked {
    let process = world.process(at);
    hold(process.babbled || !process.line().up, "no process breaks the protocol")
}

pub fn may_record(world: &World, model: &Model, fact: DurableFact) -> Checked {
    hold(world.writing.is_none(), "one record is written at a time")?;
    let passed = world.roles.successor.is_none_or(|at| world.process(at).probed);
    hold(
        !model.probes || fact == DurableFact::Revert || passed,
        "with a probe, a commit is recorded only after the probe has passed",
    )?;
    let steps = model.policy().canary.len();
    let shared = world.roles.successor.is_none_or(|at| usize::from(world.process(at).shares) >= steps);
    // Without an incumbent, no process could have the other share.
    let alone = !matches!(world.machine.incumbent(), Incumbent::Active | Incumbent::Unreachable);
    hold(
        fact == DurableFact::Revert || shared || alone,
        "with a canary, a commit is recorded only after its last step",
    )
}

/// New clients wait for the successor if no other process serves.
pub fn may_steer(world: &World, model: &Model) -> Checked {
    let passed = world.roles.successor.is_none_or(|at| world.process(at).probed);
    hold(
        !model.probes || passed || world.roles.incumbent.is_none(),
        "with a probe, connections are steered away from an incumbent only after the probe has passed",
    )
}

pub fn may_spawn(world: &World) -> Checked {
    let lingers = |(at, process): (usize, &Process)| {
        process.status == ProcessStatus::Killed && !world.roles.contain(at) && !world.unknown
    };
    hold(!world.existing().any(lingers), "no process is started before a killed one is gone")?;
    hold(
        world.standby.is_none_or(|at| !world.process(at).is_healthy()),
        "no process is started while another one stands by",
    )?;
    hold(world.roles.successor.is_none(), "a successor is started only when there is none")
}

pub fn may_promote(world: &World) -> Checked {
    hold(world.roles.successor.is_some(), "only a successor is promoted, never an outgoing process")?;
    may_retire(world)
}

pub fn may_retire(world: &World) -> Checked {
    hold(
        world.roles.incumbent.is_none() || world.roles.outgoing.is_none(),
        "at most one process leaves at a time",
    )
}

/// A process that is lost, leaves already or cannot be reached is no standby. No process stands by for one that cannot
/// be reached, or in a service that is to stop.
pub fn must_stand_by(world: &World, model: &Model, replaced: Option<usize>) -> Checked {
    let healthy = |at: usize| world.process(at).is_healthy() && world.process(at).is_entitled();
    let reached = world.roles.incumbent.is_some_and(|at| {
        let process = world.process(at);
        process.line().up && !process.mute && !process.babbled
    });
    let expected =
        model.trial.has_probation() && replaced.is_some_and(healthy) && reached && world.machine.is_wanted();
    hold(!expected || world.machine.is_on_probation(), "with a probation a replaced process stands by")
}

/// Whether a process may get a message, or may be ended.
pub fn may_dismiss(world: &World, whom: Option<usize>) -> Checked {
    hold(whom.is_none() || whom != world.standby, "who stands by is kept until the probation is over")
}

pub fn may_reinstate(world: &World) -> Checked {
    hold(
        world.roles.outgoing.is_some() && world.roles.successor.is_none(),
        "only a process that stands by is taken back",
    )
}

fn none_is_left(world: &World) -> bool {
    world.lost_track || world.count() == 0
}

pub fn may_rest(world: &World, model: &Model) -> Checked {
    hold(model.rests, "a service stays down only if its policy says so")?;
    let leaves = world.roles.outgoing.map_or(0, |_| 1);
    hold(world.lost_track || world.count() <= leaves, "a service that stays down has no process")
}

pub fn may_close(world: &World) -> Checked {
    hold(none_is_left(world) && !world.machine.is_wanted(), "listeners close only when all is stopped")
}

pub fn may_report(world: &World, outcome: &Outcome) -> Checked {
    hold(world.waiting > 0, "a request is reported at most once")?;
    if let Outcome::RolledBack(Reason::Broke { .. }) | Outcome::Failed(Reason::Broke { .. }) = outcome {
        hold(world.babbled, "no process breaks the protocol")?;
    }
    match outcome {
        // A dead process that was not reaped still counts, and so does one that cannot be asked: the supervisor
        // cannot know better at that moment.
        Outcome::Started | Outcome::Committed | Outcome::RolledBack(_) => {
            let serves = world.roles.incumbent.is_some_and(|at| {
                let process = world.process(at);
                let asked = process.line().up && !process.mute && !process.babbled;
                (process.accepts || !asked) && matches!(process.membership, Membership::Welcomed(_))
            });
            hold(serves, "an end is reported as good only when a process serves")
        }
        Outcome::Failed(_) => Ok(()),
        Outcome::Stopped => hold(none_is_left(world), "stopped is reported when nothing runs"),
    }
}
