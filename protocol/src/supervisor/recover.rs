//! What an earlier supervisor has left: asked, awaited, and brought to a state in which one process serves. What to do is
//! in the table of [`recovery`](crate::recovery); this is how.
//!
//! While it is being found out, the process that served before the last handoff is the incumbent, the one that was to
//! follow it the successor, and one that was replaced before that the retiree.

use alloc::vec::Vec;

use super::{
    Action, Event, Incumbent, Leaving, Moment, Phase, Refusal, Request, Retiree, Successor, Supervisor,
    Target, Undoing,
};
use crate::deadline::{Deadline, Policy};
use crate::ids::HandoffId;
use crate::message::{Adopt, FromService, Mode, Ready, ToService};
use crate::reason::{Party, Reason};
use crate::recovery::{Decision, Facts, Found, Written, decide};
use crate::version::VersionRange;

/// What is there when a supervisor starts. Of each process it is known whether it is [`Found::Gone`], can be
/// [`Found::Asked`], or is [`Found::Mute`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Left {
    /// Whether the service is to run.
    pub wanted: bool,
    /// What the journal says of the last handoff.
    pub written: Written,
    /// The handoff that was under way, or else an id that was never used. Everybody belongs to it from now on.
    pub handoff: HandoffId,
    /// Whether its end is to be told: somebody had asked for it.
    pub under_way: bool,
    /// The process that served before it.
    pub incumbent: Found,
    /// The process that was to follow.
    pub successor: Found,
    /// A process that was replaced before that.
    pub retiree: Found,
}

/// What is known so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Recovery {
    written: Written,
    incumbent: Found,
    successor: Found,
}

impl Recovery {
    fn of(&mut self, party: Party) -> &mut Found {
        match party {
            Party::Incumbent => &mut self.incumbent,
            Party::Successor => &mut self.successor,
        }
    }
}

impl Supervisor {
    /// A supervisor that begins with what an earlier one has left, and the first things that it does.
    pub fn recover(mode: Mode, policy: Policy, at: Moment, left: Left) -> (Self, Vec<Action>) {
        let Left { wanted, written, handoff, incumbent, successor, .. } = left;
        let mut machine = Self {
            phase: Phase::Recovering,
            wanted,
            handoff,
            // Whoever looks afterwards is told how it ended.
            asked: left.under_way,
            recovery: Some(Recovery { written, incumbent, successor }),
            serving_since: at.now,
            ..Self::new(mode, policy)
        };
        let mut out = Vec::new();
        machine.arm(at, Deadline::Recover, &mut out);
        for party in [Party::Incumbent, Party::Successor] {
            machine.ask(at, party, &mut out);
        }
        machine.send_away(left.retiree, &mut out);
        machine.conclude(at, &mut out);
        machine.end_unwanted(at, &mut out);
        (machine, out)
    }

    /// What is known of the processes of an earlier supervisor, until it is known what to do about them.
    pub fn facts(&self) -> Option<Facts> {
        let Recovery { written, incumbent, successor } = self.recovery?;
        Some(Facts { wanted: self.wanted, written, incumbent, successor })
    }

    pub(super) fn adopt(&self) -> ToService {
        ToService::Adopt(Adopt { versions: VersionRange::OURS, lease_ms: self.policy.lease_ms })
    }

    fn ask(&mut self, at: Moment, party: Party, out: &mut Vec<Action>) {
        if self.found(party) == Found::Asked {
            let adopt = self.adopt();
            out.push(match party {
                Party::Incumbent => Action::ToIncumbent(self.handoff, adopt),
                Party::Successor => Action::ToSuccessor(self.handoff, adopt),
            });
            self.arm(at, answer_of(party), out);
        }
    }

    fn send_away(&mut self, retiree: Found, out: &mut Vec<Action>) {
        let step = match retiree {
            Found::Gone => return,
            Found::Asked => Leaving::Asked,
            Found::Serving
            | Found::Working
            | Found::Waiting
            | Found::Leaving
            | Found::Frozen
            | Found::Mute => Leaving::Terminating,
        };
        self.retiree = Some(Retiree { step, handoff: self.handoff, reports: false });
        self.tell_retiree(self.policy.stop_grace_ms, out);
    }

    fn found(&self, party: Party) -> Found {
        self.recovery.map_or(Found::Gone, |mut recovery| *recovery.of(party))
    }

    /// One thing that happens before it is known what to do.
    pub(super) fn recovering(&mut self, at: Moment, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Request(Request::Cancel) => out.push(Action::Refuse(Refusal::NothingToCancel)),
            Event::Request(Request::Start | Request::Stop | Request::Upgrade { .. }) => {
                out.push(Action::Refuse(Refusal::Busy(Phase::Recovering)))
            }
            Event::FromIncumbent(id, message) => self.answered(at, Party::Incumbent, id, &message, out),
            Event::FromSuccessor(id, message) => self.answered(at, Party::Successor, id, &message, out),
            Event::FromRetiree(id, message) => self.on_retiree(at, id, &message, out),
            Event::HungUp(party) | Event::Garbage(party, _) => self.unheard(at, party, out),
            Event::IncumbentGone(_) => self.learn(at, Party::Incumbent, Found::Gone, out),
            Event::SuccessorGone(_) => self.learn(at, Party::Successor, Found::Gone, out),
            Event::RetireeGone => self.retiree_gone(out),
            Event::Deadline(deadline) => self.late(at, deadline, out),
            Event::SpawnFailed(_)
            | Event::Probed(_, _)
            | Event::Condemned(_, _)
            | Event::RetireeUnheard
            | Event::Durable
            | Event::NotDurable(_) => {}
        }
    }

    fn answered(
        &mut self,
        at: Moment,
        party: Party,
        id: HandoffId,
        message: &FromService,
        out: &mut Vec<Action>,
    ) {
        let known = self.found(party);
        let found = match (known, message) {
            _ if id != self.handoff => Found::Mute,
            (Found::Asked, FromService::Adopted(adopted)) => adopted.stage.into(),
            (Found::Working | Found::Waiting, FromService::Resumed(_)) => Found::Serving,
            (_, FromService::ResumeFailed(_)) => Found::Leaving,
            (Found::Working | Found::Waiting, FromService::Ready(ready)) if party == Party::Successor => {
                self.ready_or_not(ready)
            }
            (_, FromService::Progress(_)) => known,
            (_, _) => Found::Mute,
        };
        // One that is still to be told says `Ready`.
        let serves_now = found == Found::Serving && known != found;
        self.self_made |=
            party == Party::Successor && serves_now && !matches!(message, FromService::Ready(_));
        match found {
            Found::Mute => self.unheard(at, party, out),
            found => self.learn(at, party, found, out),
        }
    }

    fn ready_or_not(&mut self, ready: &Ready) -> Found {
        if ready.healthy {
            return Found::Serving;
        }
        self.reason.get_or_insert_with(|| Reason::Unhealthy(ready.reason.clone()));
        Found::Leaving
    }

    /// It can be told nothing any more. A frozen one stays what it is.
    fn unheard(&mut self, at: Moment, party: Party, out: &mut Vec<Action>) {
        match self.found(party) {
            Found::Gone | Found::Leaving | Found::Frozen => {}
            Found::Asked | Found::Serving | Found::Working | Found::Waiting | Found::Mute => {
                if party == Party::Incumbent {
                    out.push(Action::HangUpIncumbent);
                }
                self.learn(at, party, Found::Mute, out);
            }
        }
    }

    fn late(&mut self, at: Moment, deadline: Deadline, out: &mut Vec<Action>) {
        match deadline {
            Deadline::AnswerIncumbent => self.silent(at, Party::Incumbent, out),
            Deadline::AnswerSuccessor => self.silent(at, Party::Successor, out),
            Deadline::Recover => {
                self.silent(at, Party::Successor, out);
                self.silent(at, Party::Incumbent, out);
            }
            deadline => self.retire_late(deadline, out),
        }
    }

    fn silent(&mut self, at: Moment, party: Party, out: &mut Vec<Action>) {
        match self.found(party) {
            Found::Asked | Found::Working | Found::Waiting => self.learn(at, party, Found::Frozen, out),
            Found::Leaving => {
                out.push(match party {
                    Party::Incumbent => Action::KillIncumbent,
                    Party::Successor => Action::KillSuccessor,
                });
            }
            Found::Gone | Found::Serving | Found::Frozen | Found::Mute => {}
        }
    }

    fn learn(&mut self, at: Moment, party: Party, found: Found, out: &mut Vec<Action>) {
        let Some(recovery) = &mut self.recovery else { return };
        *recovery.of(party) = found;
        match found {
            Found::Asked | Found::Working | Found::Waiting => self.arm(at, answer_of(party), out),
            Found::Leaving => out.push(Action::Arm(answer_of(party), self.policy.exit_limit_ms)),
            Found::Gone | Found::Serving | Found::Frozen | Found::Mute => {
                out.push(Action::Disarm(answer_of(party)))
            }
        }
        self.conclude(at, out);
    }

    /// Does what the table says.
    fn conclude(&mut self, at: Moment, out: &mut Vec<Action>) {
        let Some(facts) = self.facts() else { return };
        let Facts { incumbent, successor, .. } = facts;
        let decision = decide(facts).decision;
        match decision {
            Decision::Wait => return,
            Decision::KillSuccessor => {
                out.push(Action::KillSuccessor);
                return self.learn(at, Party::Successor, Found::Leaving, out);
            }
            Decision::KillIncumbent => {
                out.push(Action::KillIncumbent);
                return self.learn(at, Party::Incumbent, Found::Leaving, out);
            }
            Decision::Adopt
            | Decision::Commit
            | Decision::Forward
            | Decision::Back
            | Decision::Revert
            | Decision::Start
            | Decision::Rest => {}
        }
        self.disarm_phase(out);
        self.recovery = None;
        self.incumbent = incumbent_as(incumbent);
        out.push(Action::Recovered(decision));
        match decision {
            Decision::Commit => self.commit_left(at, incumbent, out),
            Decision::Forward => self.finish_left(at, successor, out),
            Decision::Adopt | Decision::Back | Decision::Revert | Decision::Start | Decision::Rest => {
                if self.asked {
                    self.target = Target::Candidate;
                    self.reason.get_or_insert(Reason::SupervisorLost);
                }
                if decision == Decision::Revert {
                    self.undoing = Undoing::IfServed;
                }
                self.go_back(at, successor, out);
            }
            Decision::Wait | Decision::KillSuccessor | Decision::KillIncumbent => {}
        }
    }

    /// It has its canary from the first step on, as its shares were taken back, and its probation if somebody can stand by.
    fn commit_left(&mut self, at: Moment, incumbent: Found, out: &mut Vec<Action>) {
        self.target = Target::Candidate;
        self.successor = Successor::Ready;
        if matches!(incumbent, Found::Serving | Found::Waiting) {
            self.probation_ms = self.policy.probation_ms;
        }
        self.advance(at, out);
    }

    fn finish_left(&mut self, at: Moment, successor: Found, out: &mut Vec<Action>) {
        self.self_made = true;
        self.steer_forward(out);
        self.committed(at, out);
        if successor == Found::Mute {
            self.incumbent = Incumbent::Mute;
        }
    }

    pub(super) fn steer_forward(&self, out: &mut Vec<Action>) {
        if self.mode == Mode::Overlap {
            out.push(Action::SteerToSuccessor);
        }
    }

    /// The incumbent serves, or nobody does.
    fn go_back(&mut self, at: Moment, successor: Found, out: &mut Vec<Action>) {
        self.self_made = false;
        if self.incumbent != Incumbent::Absent && self.mode == Mode::Overlap {
            out.push(Action::SteerToIncumbent);
        }
        match successor {
            Found::Gone => self.reaped(at, out),
            // Only killed or sent away already, or willing to go.
            Found::Waiting => {
                self.successor = Successor::Begun;
                self.dismiss(at, out);
            }
            Found::Asked | Found::Serving | Found::Working | Found::Leaving | Found::Frozen | Found::Mute => {
                self.successor = Successor::Begun;
                self.enter(at, Phase::Reaping, Deadline::Leave, out);
            }
        }
    }
}

fn incumbent_as(found: Found) -> Incumbent {
    match found {
        Found::Gone => Incumbent::Absent,
        Found::Serving => Incumbent::Whole,
        Found::Mute => Incumbent::Mute,
        Found::Asked | Found::Working | Found::Waiting | Found::Leaving | Found::Frozen => Incumbent::Touched,
    }
}

fn answer_of(party: Party) -> Deadline {
    match party {
        Party::Incumbent => Deadline::AnswerIncumbent,
        Party::Successor => Deadline::AnswerSuccessor,
    }
}
