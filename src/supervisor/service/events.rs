//! What a process says, and what becomes of it, on its way to the machine.

use std::time::Duration;

use handoff_protocol::message::FromService;
use handoff_protocol::reason::{Exit, Role};
use handoff_protocol::record::Fact;
use handoff_protocol::supervisor::{Event, Incumbent};

use super::Service;
use crate::control::api::Killed;
use crate::supervisor::process::{Process, ProcessEvent, ProcessRole, Token, remove_directory};

impl Service {
    /// Handles an event of a process. If the process was let go meanwhile, the event is dropped.
    pub(in crate::supervisor) fn process_event(&mut self, token: Token, event: ProcessEvent) {
        let Some(place) = self.processes.role_of(token) else { return };
        let said = match event {
            ProcessEvent::Message(id, FromService::Adopted(adopted), fds) => {
                match self.adopted(token, &adopted, fds) {
                    Ok(()) => ProcessEvent::Message(id, FromService::Adopted(adopted), Vec::new()),
                    Err(what) => ProcessEvent::Garbage(what),
                }
            }
            event => event,
        };
        let killed = match said {
            ProcessEvent::Gone(_) => self.forget_process(token),
            _ => Vec::new(),
        };
        if let ProcessEvent::Message(id, FromService::Release(release), _) = &said {
            self.learn_version(token, *id, &release.version);
        }
        let event = match (place, said) {
            (ProcessRole::Incumbent, ProcessEvent::Message(id, message, fds)) => {
                self.processes.hold_fds(fds);
                if matches!(message, FromService::Resumed(_)) && !self.machine.resume_is_over() {
                    self.operations.timeline_mut().gap_ends();
                    self.processes.incumbent().into_iter().for_each(Process::not_asked_to_end);
                }
                self.inspect_leftovers(token, &message);
                Event::FromIncumbent(id, message)
            }
            (ProcessRole::Incumbent, ProcessEvent::Garbage(what)) => Event::Garbage(Role::Incumbent, what),
            (ProcessRole::Incumbent, ProcessEvent::HungUp) => Event::HungUp(Role::Incumbent),
            (ProcessRole::Incumbent, ProcessEvent::Gone(exit)) => {
                self.note_death(exit, &killed);
                Event::IncumbentGone(exit)
            }
            (ProcessRole::Successor, ProcessEvent::Message(id, message, _)) => {
                Event::FromSuccessor(id, message)
            }
            (ProcessRole::Successor, ProcessEvent::Garbage(what)) => Event::Garbage(Role::Successor, what),
            (ProcessRole::Successor, ProcessEvent::HungUp) => Event::HungUp(Role::Successor),
            (ProcessRole::Successor, ProcessEvent::Gone(exit)) => {
                self.forget_successor();
                Event::SuccessorGone(exit)
            }
            (ProcessRole::Outgoing, ProcessEvent::Message(id, message, fds)) => {
                self.processes.hold_fds(fds);
                self.inspect_leftovers(token, &message);
                Event::FromOutgoing(id, message)
            }
            (ProcessRole::Outgoing, ProcessEvent::Gone(exit)) => {
                self.note_end_of_outgoing(exit);
                Event::OutgoingGone
            }
            (ProcessRole::Outgoing, ProcessEvent::Garbage(_) | ProcessEvent::HungUp) => {
                Event::OutgoingUnheard
            }
        };
        let unheard = match &event {
            Event::HungUp(Role::Incumbent) => Some("it closed its channel".to_owned()),
            Event::Garbage(Role::Incumbent, what) => Some(format!("it broke the protocol: {what}")),
            _ => None,
        };
        self.feed(event);
        self.processes.drop_fds();
        if let Some(why) = unheard {
            self.note_mute(&why);
        }
    }

    /// Records what a process has left behind, if it has sealed: its program is gone.
    fn inspect_leftovers(&mut self, token: Token, message: &FromService) {
        let handoff = self.processes.find(token).map(|process| process.handoff);
        if let (FromService::Sealed(_), Some(handoff)) = (message, handoff) {
            self.note_connections(handoff);
        }
    }

    /// Reports that the process cannot be reached, so that users see it before the next upgrade is refused for it.
    fn note_mute(&mut self, why: &str) {
        if self.machine.incumbent() == Incumbent::Unreachable
            && let Some(process) = self.processes.incumbent()
        {
            let pid = process.pid();
            tracing::warn!(pid, why, "the process can be told nothing any more");
            let what = "it serves on, but this daemon can only stop it";
            self.problems.mute(format!("The process {pid} can be told nothing any more ({why}): {what}"));
        }
    }

    /// Records the end of the outgoing process if it was the process of the current generation, as after a stop.
    fn note_end_of_outgoing(&mut self, exit: Exit) {
        let Some(current) = &self.journal.standing().current else { return };
        if self.processes.outgoing().is_some_and(|process| process.handoff == current.handoff) {
            let generation = current.generation;
            self.note(Fact::Exited { generation, exit });
        }
    }

    /// Forgets a process: no later daemon has to ask how it ended, or what it is doing. Returns what its shim killed.
    fn forget_process(&mut self, token: Token) -> Vec<Killed> {
        let Some(handoff) = self.processes.find(token).map(|process| process.handoff) else {
            return Vec::new();
        };
        let killed = self.collect_killed(handoff);
        self.shared.keeper.forget_process(&self.name, handoff);
        let _ = std::fs::remove_file(self.shared.dirs.adopt_socket(handoff));
        let own = self.shared.dirs.process_dir(handoff);
        if own.is_dir() {
            self.lanes.processes.post(move || remove_directory(&own));
        }
        killed
    }

    fn note_death(&mut self, exit: Exit, killed: &[Killed]) {
        let Some(process) = self.processes.lose_incumbent() else { return };
        self.operations.timeline_mut().gap_begins();
        // The pid that users know.
        let pid = process.program.get().unwrap_or(process.pid());
        tracing::warn!(pid, "the process {exit}");
        self.last_exit = Some(exit);
        self.writer_died(process.handoff);
        let current = self.journal.standing().current.as_ref();
        let Some(generation) = current.filter(|current| current.handoff == process.handoff) else { return };
        let generation = generation.generation;
        if !self.machine.is_on_probation() {
            self.problems.died(match self.monitor.take_kill_reason() {
                Some(why) => format!("The process {pid} did not serve: {why}, so it was killed"),
                None => format!("The process {pid} {exit}{}", left_behind_clause(killed)),
            });
        }
        self.note(Fact::Exited { generation, exit });
    }
}

/// What the main process of a program had left behind and did not end in its time, as a part of a sentence.
fn left_behind_clause(killed: &[Killed]) -> String {
    let one = |Killed { pid, name, after_ms }: &Killed| {
        let after = Duration::from_millis(*after_ms).as_secs_f64();
        format!(", and process {pid} ({name}) was killed {after:.1} s later")
    };
    killed.iter().map(one).collect()
}
