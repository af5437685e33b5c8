//! What a process said, or what became of it, on its way to the machine.

use handoff_protocol::message::FromService;
use handoff_protocol::reason::{Exit, Party as Role};
use handoff_protocol::record::Fact;
use handoff_protocol::supervisor::{Event, Incumbent};

use super::party::{Happened, Party, Serial};
use super::service::Service;

impl Service {
    /// Something happened to a process.
    pub(super) fn happened(&mut self, serial: Serial, happened: Happened) {
        let happened = match happened {
            Happened::Said(id, FromService::Adopted(adopted), fds) => {
                match self.adopted(serial, &adopted, fds) {
                    Ok(()) => Happened::Said(id, FromService::Adopted(adopted), Vec::new()),
                    Err(what) => Happened::Garbage(what),
                }
            }
            happened => happened,
        };
        if matches!(happened, Happened::Gone(_)) {
            self.forget_process(serial);
        }
        let is = |party: &Option<Party>| party.as_ref().is_some_and(|party| party.serial == serial);
        let event = if is(&self.incumbent) {
            match happened {
                Happened::Said(id, message, fds) => {
                    self.fds = fds;
                    if matches!(message, FromService::Resumed(_)) {
                        self.timeline.gap_ends();
                    }
                    Event::FromIncumbent(id, message)
                }
                Happened::Garbage(what) => Event::Garbage(Role::Incumbent, what),
                Happened::HungUp => Event::HungUp(Role::Incumbent),
                Happened::Gone(exit) => {
                    self.note_death(exit);
                    Event::IncumbentGone(exit)
                }
            }
        } else if is(&self.successor) {
            match happened {
                Happened::Said(id, message, _) => Event::FromSuccessor(id, message),
                Happened::Garbage(what) => Event::Garbage(Role::Successor, what),
                Happened::HungUp => Event::HungUp(Role::Successor),
                Happened::Gone(exit) => {
                    self.forget_successor();
                    Event::SuccessorGone(exit)
                }
            }
        } else if is(&self.retiree) {
            match happened {
                Happened::Said(id, message, fds) => {
                    self.fds = fds;
                    Event::FromRetiree(id, message)
                }
                Happened::Gone(exit) => {
                    self.note_end_of_retiree(exit);
                    Event::RetireeGone
                }
                Happened::Garbage(_) | Happened::HungUp => Event::RetireeUnheard,
            }
        } else {
            return;
        };
        let unheard = match &event {
            Event::HungUp(Role::Incumbent) => Some("it closed its channel".to_owned()),
            Event::Garbage(Role::Incumbent, what) => Some(format!("it broke the protocol: {what}")),
            _ => None,
        };
        self.feed(event);
        self.fds.clear();
        if let Some(why) = unheard {
            self.note_mute(&why);
        }
    }

    /// Whoever asks is to know it before the next upgrade is refused for it.
    fn note_mute(&mut self, why: &str) {
        if self.machine.incumbent() == Incumbent::Mute
            && let Some(party) = &self.incumbent
        {
            let pid = party.process.pid;
            tracing::warn!(service = %self.name, pid, why, "the process can be told nothing any more");
            let what = "it serves on, but this daemon can only stop it";
            self.problem = Some(format!("The process {pid} can be told nothing any more ({why}): {what}."));
        }
    }

    /// After a stop the process of the current generation is the one that left.
    fn note_end_of_retiree(&mut self, exit: Exit) {
        let Some(current) = &self.journal.standing().current else { return };
        if self.retiree.as_ref().is_some_and(|party| party.handoff == current.handoff) {
            let generation = current.generation;
            self.note(Fact::Exited { generation, exit });
        }
    }

    /// No later daemon has to ask how it ended, or what it is doing.
    fn forget_process(&self, serial: Serial) {
        let mut parties = [&self.incumbent, &self.successor, &self.retiree].into_iter().flatten();
        if let Some(party) = parties.find(|party| party.serial == serial) {
            self.shared.keeper.forget_process(&self.name, party.handoff);
            let _ = std::fs::remove_file(self.shared.dirs.adopt_socket(party.handoff));
        }
    }

    fn note_death(&mut self, exit: Exit) {
        let Some(party) = self.incumbent.take() else { return };
        self.timeline.gap_begins();
        tracing::warn!(service = %self.name, pid = party.process.pid, "the process {exit}");
        let current = self.journal.standing().current.as_ref();
        let Some(generation) = current.filter(|current| current.handoff == party.handoff) else { return };
        let generation = generation.generation;
        if !self.machine.is_on_probation() {
            let pid = party.process.pid;
            self.problem = Some(match self.verdict.take() {
                Some(why) => {
                    format!("The process {pid} did not serve: {why}. It was killed and started again.")
                }
                None => format!("The process {pid} {exit}; it was started again."),
            });
        }
        self.note(Fact::Exited { generation, exit });
    }
}
