//! Takes over the processes of an earlier supervisor: asks them, waits for their answers, and reaches a state in which
//! one process serves. The table of [`recovery`](crate::recovery) decides what to do; this module does it.
//!
//! Until the decision, the incumbent is the process that served before the last handoff, the successor is the new
//! process of that handoff, and the outgoing process was replaced before it.

mod leaving;
mod legacy;

pub use legacy::Legacy;

use alloc::string::String;
use alloc::vec::Vec;

use super::{
    Action, Event, Incumbent, Leaving, LostCommit, Moment, Outgoing, Phase, Refusal, Request, Successor,
    Supervisor, Target,
};
use crate::deadline::{Deadline, Policy};
use crate::ids::HandoffId;
use crate::message::{Adopt, FromService, Mode, Ready, ToService};
use crate::reason::{Reason, Role};
use crate::recovery::{Decision, Facts, LastHandoff, Observation, decide};
use crate::version::VersionRange;
use leaving::EndingStage;

/// The state so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Recovery {
    last_handoff: LastHandoff,
    incumbent: Observation,
    successor: Observation,
    /// The time of the upgrade is over: a successor that does not serve yet gets no more time.
    is_late: bool,
    /// What was done to an incumbent and a successor that leave.
    endings: [EndingStage; 2],
}

impl Recovery {
    fn of(&mut self, role: Role) -> &mut Observation {
        match role {
            Role::Incumbent => &mut self.incumbent,
            Role::Successor => &mut self.successor,
        }
    }

    fn ending(&mut self, role: Role) -> &mut EndingStage {
        match role {
            Role::Incumbent => &mut self.endings[0],
            Role::Successor => &mut self.endings[1],
        }
    }
}

impl Supervisor {
    /// Creates the machine of a supervisor that takes over from an earlier one. Returns it with its first actions.
    pub fn recover(mode: Mode, policy: Policy, at: Moment, left: Legacy) -> (Self, Vec<Action>) {
        let Legacy { wanted, last_handoff: written, handoff, incumbent, successor, .. } = left;
        let ends_at = at.now.saturating_add(left.left_ms.unwrap_or(policy.deadline_ms));
        let mut machine = Self {
            phase: Phase::Recovering,
            wanted,
            recovery: Some(Recovery {
                last_handoff: written,
                incumbent,
                successor,
                is_late: false,
                endings: [EndingStage::No; 2],
            }),
            serving_since: at.now,
            ..Self::new(mode, policy)
        };
        (machine.handoff.id, machine.handoff.ends_at, machine.handoff.died) = (handoff, ends_at, left.died);
        // A later query must find the result.
        machine.answer.is_awaited = left.under_way;
        let mut out = Vec::new();
        machine.arm(at, Deadline::Recover, &mut out);
        for role in [Role::Incumbent, Role::Successor] {
            machine.ask(at, role, &mut out);
        }
        machine.retire_outgoing(at, left.outgoing, &mut out);
        machine.conclude(at, &mut out);
        machine.end_unwanted(at, &mut out);
        machine.check();
        (machine, out)
    }

    /// The state of an earlier supervisor's processes, until recovery has decided.
    pub fn facts(&self) -> Option<Facts> {
        let Recovery { last_handoff: written, incumbent, successor, .. } = self.recovery?;
        Some(Facts { wanted: self.wanted, last_handoff: written, incumbent, successor })
    }

    pub(super) fn adopt(&self) -> ToService {
        ToService::Adopt(Adopt { versions: VersionRange::OURS, lease_ms: self.policy.lease_ms })
    }

    fn ask(&mut self, at: Moment, role: Role, out: &mut Vec<Action>) {
        if self.found(role) == Observation::Asked {
            let adopt = self.adopt();
            out.push(match role {
                Role::Incumbent => Action::ToIncumbent(self.handoff.id, adopt),
                Role::Successor => Action::ToSuccessor(self.handoff.id, adopt),
            });
            self.arm(at, answer_of(role), out);
        }
    }

    fn retire_outgoing(&mut self, at: Moment, outgoing: Observation, out: &mut Vec<Action>) {
        let step = match outgoing {
            Observation::Gone => return,
            Observation::Asked => Leaving::Asked,
            Observation::Serving
            | Observation::Working
            | Observation::Waiting
            | Observation::Leaving
            | Observation::Frozen
            | Observation::Unreachable => Leaving::Terminating { ends: true },
        };
        self.outgoing = Some(Outgoing { step, handoff: self.handoff.id, reports: false });
        self.request_end(at, self.policy.stop_grace_ms, out);
    }

    fn found(&self, role: Role) -> Observation {
        self.recovery.map_or(Observation::Gone, |mut recovery| *recovery.of(role))
    }

    /// Processes one event before the decision.
    pub(super) fn recovering(&mut self, at: Moment, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Request(Request::Cancel) => out.push(Action::Refuse(Refusal::NothingToCancel)),
            Event::Request(Request::Start | Request::Stop | Request::Upgrade { .. }) => {
                out.push(Action::Refuse(Refusal::Busy(Phase::Recovering)))
            }
            Event::FromIncumbent(id, message) => self.answered(at, Role::Incumbent, id, &message, out),
            Event::FromSuccessor(id, message) => self.answered(at, Role::Successor, id, &message, out),
            Event::FromOutgoing(id, message) => self.on_outgoing(at, id, &message, out),
            Event::HungUp(role) | Event::Garbage(role, _) => self.unheard(at, role, out),
            Event::IncumbentGone(exit) => {
                if matches!(self.found(Role::Incumbent), Observation::Asked | Observation::Serving) {
                    self.handoff.died = Some(exit);
                }
                self.learn(at, Role::Incumbent, Observation::Gone, out)
            }
            Event::SuccessorGone(_) => self.learn(at, Role::Successor, Observation::Gone, out),
            Event::OutgoingGone => self.outgoing_gone(out),
            Event::OutgoingQuiet(id) => self.outgoing_quiet(at, id, out),
            Event::Deadline(deadline) => self.late(at, deadline, out),
            Event::SpawnFailed(_)
            | Event::Probed(_, _)
            | Event::Condemned(_, _)
            | Event::OutgoingUnheard
            | Event::Starved(_)
            | Event::Durable
            | Event::NotDurable(_) => {}
        }
    }

    fn answered(
        &mut self,
        at: Moment,
        role: Role,
        id: HandoffId,
        message: &FromService,
        out: &mut Vec<Action>,
    ) {
        let known = self.found(role);
        // Its own limit runs: nothing that it says extends it.
        if known == Observation::Leaving {
            return;
        }
        let found = match (known, message) {
            _ if id != self.handoff.id => Observation::Unreachable,
            (Observation::Asked, FromService::Adopted(adopted)) => adopted.stage.into(),
            (Observation::Working | Observation::Waiting, FromService::Resumed(_)) => Observation::Serving,
            (_, FromService::ResumeFailed(_)) => Observation::Leaving,
            (Observation::Working | Observation::Waiting, FromService::Ready(ready))
                if role == Role::Successor =>
            {
                self.observation_after_ready(ready)
            }
            (_, FromService::Progress(_) | FromService::Release(_)) => known,
            (_, _) => Observation::Unreachable,
        };
        // A successor that still needs `Commit` sends `Ready`.
        let serves_now = found == Observation::Serving && known != found;
        self.handoff.skips_commit |=
            role == Role::Successor && serves_now && !matches!(message, FromService::Ready(_));
        match found {
            Observation::Unreachable => self.unheard(at, role, out),
            found => self.learn(at, role, found, out),
        }
    }

    fn observation_after_ready(&mut self, ready: &Ready) -> Observation {
        if ready.healthy {
            return Observation::Serving;
        }
        self.answer.fail(Reason::Unhealthy(ready.reason.clone()));
        Observation::Leaving
    }

    /// Marks a process as unreachable. A frozen one stays frozen.
    fn unheard(&mut self, at: Moment, role: Role, out: &mut Vec<Action>) {
        match self.found(role) {
            Observation::Gone | Observation::Leaving | Observation::Frozen => {}
            Observation::Asked
            | Observation::Serving
            | Observation::Working
            | Observation::Waiting
            | Observation::Unreachable => {
                if role == Role::Incumbent {
                    out.push(Action::HangUpIncumbent);
                }
                self.learn(at, role, Observation::Unreachable, out);
            }
        }
    }

    fn late(&mut self, at: Moment, deadline: Deadline, out: &mut Vec<Action>) {
        match deadline {
            Deadline::AnswerIncumbent => self.silent(at, Role::Incumbent, out),
            Deadline::AnswerSuccessor => self.silent(at, Role::Successor, out),
            Deadline::Recover if self.is_late() => {
                self.end_late(at, Role::Successor, out);
                self.end_late(at, Role::Incumbent, out);
            }
            Deadline::Recover => self.end_of_time(at, out),
            deadline => self.retire_late(at, deadline, out),
        }
    }

    fn is_late(&self) -> bool {
        self.recovery.is_some_and(|recovery| recovery.is_late)
    }

    /// The time of the upgrade is over. A successor that does not serve gives way, and once it has ended, the incumbent
    /// has the usual time of a rollback to serve again. Processes that have not answered are still waited for: their
    /// answers have their own limit.
    fn end_of_time(&mut self, at: Moment, out: &mut Vec<Action>) {
        let Some(recovery) = &mut self.recovery else { return };
        recovery.is_late = true;
        let limit_ms = self.resume_limit_ms().saturating_add(self.exit_limit_ms(true));
        out.push(Action::Arm(Deadline::Recover, limit_ms));
        let found = self.found(Role::Successor);
        if is_too_late(found) {
            self.learn(at, Role::Successor, found, out);
        }
    }

    fn silent(&mut self, at: Moment, role: Role, out: &mut Vec<Action>) {
        match self.found(role) {
            Observation::Asked | Observation::Working | Observation::Waiting => {
                self.learn(at, role, Observation::Frozen, out)
            }
            Observation::Leaving => self.leaves_late(role, out),
            Observation::Gone | Observation::Serving | Observation::Frozen | Observation::Unreachable => {}
        }
    }

    fn learn(&mut self, at: Moment, role: Role, found: Observation, out: &mut Vec<Action>) {
        if self.is_late() && role == Role::Successor && is_too_late(found) {
            self.blame(Reason::NotReady, out);
            return self.terminate_left(at, role, out);
        }
        let Some(recovery) = &mut self.recovery else { return };
        *recovery.of(role) = found;
        let is_urged = *recovery.ending(role) != EndingStage::No;
        match found {
            Observation::Asked | Observation::Working | Observation::Waiting => {
                self.arm(at, answer_of(role), out)
            }
            Observation::Leaving => out.push(Action::Arm(answer_of(role), self.exit_limit_ms(is_urged))),
            Observation::Gone | Observation::Serving | Observation::Frozen | Observation::Unreachable => {
                out.push(Action::Disarm(answer_of(role)))
            }
        }
        self.conclude(at, out);
    }

    /// Performs the decision of the table.
    fn conclude(&mut self, at: Moment, out: &mut Vec<Action>) {
        let Some(facts) = self.facts() else { return };
        let Facts { last_handoff: written, incumbent, successor, .. } = facts;
        let decision = decide(facts).decision;
        match decision {
            Decision::Wait => return,
            Decision::KillSuccessor => return self.kill_left(at, Role::Successor, out),
            Decision::KillIncumbent => return self.kill_left(at, Role::Incumbent, out),
            Decision::Adopt
            | Decision::Advance
            | Decision::Forward
            | Decision::Back
            | Decision::Revert
            | Decision::Start
            | Decision::Rest => {}
        }
        self.disarm_phase(out);
        let urged =
            self.recovery.take().map_or(EndingStage::No, |mut recovery| *recovery.ending(Role::Successor));
        self.incumbent = incumbent_as(incumbent);
        out.push(Action::Recovered(decision));
        match decision {
            Decision::Advance => self.advance_left(at, out),
            Decision::Forward => self.finish_left(at, facts, out),
            Decision::Adopt | Decision::Back | Decision::Revert | Decision::Start | Decision::Rest => {
                self.explain_left(written, decision, out);
                if decision == Decision::Revert {
                    self.handoff.lost_commit = LostCommit::RevertIfServed;
                }
                self.roll_back(at, successor, urged, out);
            }
            Decision::Wait | Decision::KillSuccessor | Decision::KillIncumbent => {}
        }
    }

    /// The result of the interrupted request: a rollback, unless it was committed and only its process is lost.
    fn explain_left(&mut self, written: LastHandoff, decision: Decision, out: &mut Vec<Action>) {
        match written {
            _ if !self.answer.is_awaited => {}
            LastHandoff::Committed if decision != Decision::Revert => self.answer.uphold_commit(),
            LastHandoff::Committed | LastHandoff::Uncommitted => {
                self.handoff.target = Target::Candidate;
                if self.answer.reason().is_none() {
                    self.blame(Reason::SupervisorLost, out);
                }
            }
        }
    }

    /// The successor continues as if it had just sent `Ready`: it is probed, repeats its canary from the first step,
    /// since its shares were withdrawn, and is committed after that.
    fn advance_left(&mut self, at: Moment, out: &mut Vec<Action>) {
        // Without a request it is a start.
        if self.answer.is_awaited {
            self.handoff.target = Target::Candidate;
        }
        self.handoff.probation_ms = self.policy.probation_ms;
        // The earlier supervisor may have steered already.
        match self.incumbent {
            Incumbent::Absent => self.steer_forward(out),
            Incumbent::Active | Incumbent::Quiesced | Incumbent::Unreachable => self.steer_back(out),
        }
        self.ready(at, out);
    }

    /// The commit is durable. How much of its probation the process has passed is unknown, so it repeats the whole
    /// probation.
    fn finish_left(&mut self, at: Moment, left: Facts, out: &mut Vec<Action>) {
        self.handoff.skips_commit = true;
        if self.answer.is_awaited {
            self.handoff.target = Target::Candidate;
        }
        if self.wanted && matches!(left.incumbent, Observation::Serving | Observation::Waiting) {
            self.handoff.probation_ms = self.policy.probation_ms;
        }
        self.steer_forward(out);
        self.committed(at, out);
        if let (Observation::Leaving, Some(outgoing)) = (left.incumbent, &mut self.outgoing) {
            outgoing.step = Leaving::Exiting { serves: true };
            out.push(Action::Arm(Deadline::RetireExit, self.exit_limit_ms(true)));
        }
        if left.successor == Observation::Unreachable {
            self.unheard_left(at, out);
        }
    }

    /// A committed process that is unreachable fails its probation.
    fn unheard_left(&mut self, at: Moment, out: &mut Vec<Action>) {
        self.incumbent = Incumbent::Unreachable;
        self.take_back(at, Reason::Probation(String::from("the next supervisor cannot reach it")), out);
    }

    pub(super) fn steer_forward(&self, out: &mut Vec<Action>) {
        if self.mode == Mode::Overlap {
            out.push(Action::SteerToSuccessor);
        }
    }

    /// The incumbent serves, or no process does.
    fn roll_back(&mut self, at: Moment, successor: Observation, urged: EndingStage, out: &mut Vec<Action>) {
        self.handoff.skips_commit = false;
        if self.incumbent != Incumbent::Absent && self.mode == Mode::Overlap {
            out.push(Action::SteerToIncumbent);
        }
        match successor {
            Observation::Gone => self.reaped(at, out),
            Observation::Waiting => {
                self.successor = Successor::Begun;
                self.dismiss(at, out);
            }
            // It is already leaving.
            Observation::Asked
            | Observation::Serving
            | Observation::Working
            | Observation::Leaving
            | Observation::Frozen
            | Observation::Unreachable => {
                self.successor = match urged {
                    EndingStage::No => Successor::Dismissed,
                    EndingStage::Terminated => Successor::Terminating,
                    EndingStage::Killed => Successor::Begun,
                };
                self.enter(at, Phase::Reaping, Deadline::Leave, out);
            }
        }
    }
}

/// Whether a successor in this state has used up its time without serving.
fn is_too_late(found: Observation) -> bool {
    matches!(found, Observation::Working | Observation::Waiting)
}

fn incumbent_as(found: Observation) -> Incumbent {
    match found {
        Observation::Gone => Incumbent::Absent,
        Observation::Serving => Incumbent::Active,
        Observation::Unreachable => Incumbent::Unreachable,
        Observation::Asked
        | Observation::Working
        | Observation::Waiting
        | Observation::Leaving
        | Observation::Frozen => Incumbent::Quiesced,
    }
}

fn answer_of(role: Role) -> Deadline {
    match role {
        Role::Incumbent => Deadline::AnswerIncumbent,
        Role::Successor => Deadline::AnswerSuccessor,
    }
}
