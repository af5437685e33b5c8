//! How a process is asked to end, how it is ended if it does not, and how that is reported.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{Grant, ToService};
use handoff_protocol::reason::Reason;
use handoff_protocol::restart::When;
use handoff_protocol::supervisor::Phase;
use tokio::time::Instant;

use super::{Process, ProcessRole};
use crate::config::{self, StopSignal, format_duration_ms};
use crate::control::api::{Kill, Killed};
use crate::control::{Error, Kind, signal_names, signal_of};
use crate::shim::{self, killed};
use crate::supervisor::service::Service;
use crate::sys::clock::as_ms;
use crate::sys::process::{Signal, has_ended, is_zombie, name_of, parent_of, place_of, tree_of};

impl Process {
    /// Records that it is asked to end now, unless it was asked before.
    pub(in crate::supervisor) fn asked_to_end(&self) {
        self.asked_at.set(self.asked_at.get().or(Some(Instant::now())));
    }

    /// How long ago it was asked to end.
    pub(in crate::supervisor) fn asked_for(&self) -> Option<Duration> {
        self.asked_at.get().map(|since| since.elapsed())
    }

    /// Records that it is not to end: it serves on.
    pub(in crate::supervisor) fn not_asked_to_end(&self) {
        self.asked_at.set(None);
    }
}

impl Service {
    /// Prepares a message that may end a process: sends what the process needs before it, and records that the
    /// process was asked to end.
    pub(in crate::supervisor) fn prepare_end(&self, process: &Process, id: HandoffId, message: &ToService) {
        match message {
            ToService::Seal(_) => {
                process.asked_to_end();
                if let (false, Some(listening)) = (self.config.adapter.is_foreign(), &self.listening)
                    && process.slot == listening.steered()
                {
                    self.operations.timeline().note_without_room(listening.all_without_room(process.slot));
                }
                let end_ms = self.machine.grant_ms(self.now());
                process.send(id, &ToService::Grant(Grant { end_ms }), &[]);
            }
            ToService::Abort(_) => process.asked_to_end(),
            // The serving process learns from this that it stays.
            ToService::Commit(_)
                if !self.processes.incumbent().is_some_and(|one| one.token == process.token) =>
            {
                process.asked_to_end();
            }
            _ => {}
        }
    }

    /// Sends SIGKILL. A process that was asked to end before may have lost unsaved data, so this is reported.
    pub(in crate::supervisor) fn kill(&mut self, place: ProcessRole) {
        let Some(process) = self.processes.at(place) else { return };
        let killed = process.asked_for().map(|after| {
            let pid = self.program_run_by(process).unwrap_or(process.pid());
            let after_ms = as_ms(after);
            Killed { pid, name: name_of(pid).unwrap_or_default(), after_ms }
        });
        process.signal(Signal::SIGKILL);
        self.note_killed(killed);
    }

    /// Sends a signal to the program. If it has a shim, the signal goes through the shim, which knows which of the
    /// program's processes should get it.
    pub(in crate::supervisor) fn signal_program(
        &self,
        kill: &Kill,
        config: Option<&config::Service>,
    ) -> Result<(), Error> {
        let Some(process) = self.processes.incumbent() else { return Err(self.not_running()) };
        let reload = || config.unwrap_or(&self.config).program.reload_signal.map(StopSignal::signal);
        let found = kill.signal.as_deref().map_or_else(reload, signal_of);
        let Some(signal) = found else { return Err(no_signal(kill)) };
        tracing::info!(pid = process.pid(), signal = signal as i32, "signal for the program");
        process.signal(signal);
        Ok(())
    }

    /// Collects what the shim of this handoff has recorded: the processes that it has killed, and the datagrams that
    /// it has seen lost. Returns the processes.
    pub(in crate::supervisor) fn collect_killed(&mut self, handoff: HandoffId) -> Vec<Killed> {
        let own = self.shared.dirs.adopt_socket(handoff);
        let killed = killed::take(&own);
        self.note_killed(killed.clone());
        if self.config.adapter.is_foreign() {
            self.operations.timeline_mut().note_lost(shim::lost::take(&own));
        }
        killed
    }

    /// The same for each running process: one that serves again may have ended its program meanwhile.
    pub(in crate::supervisor) fn collect_all_killed(&mut self) {
        let processes = self.processes.all();
        let handoffs: Vec<HandoffId> = processes.map(|process| process.handoff).collect();
        for handoff in handoffs {
            self.collect_killed(handoff);
        }
        if let Some(listening) = &self.listening {
            self.operations
                .timeline_mut()
                .count_without_room(listening.all_without_room(listening.steered()));
        }
    }

    fn note_killed(&mut self, killed: impl IntoIterator<Item = Killed>) {
        for killed in killed {
            let Killed { pid, name, after_ms } = &killed;
            tracing::warn!(pid, name, after_ms, "killed: it had not ended in its time");
            self.problems.was_killed(killed);
        }
    }

    /// The pid of the serving process, as shown to users. It is the program's: a signal that a user sends there must
    /// not end the shim in place of the program.
    pub(in crate::supervisor) fn pid(&self) -> Option<u32> {
        match self.config.adapter.is_foreign() {
            true => self.pid_of_program(),
            false => self.processes.incumbent().map(|process| process.pid()),
        }
    }

    /// When the serving process was started: as [`Self::pid`], the program, which its shim may start more than once.
    /// Milliseconds since 1970-01-01 UTC. `pid`: the result of [`Self::pid`].
    pub(in crate::supervisor) fn serves_since(&self, pid: Option<u32>) -> Option<u64> {
        let process = self.processes.incumbent()?;
        let program = pid.filter(|_| self.config.adapter.is_foreign());
        let started_at = program.and_then(|pid| process.program_started_at(pid));
        Some(started_at.unwrap_or(process.started_at_unix_ms))
    }

    /// The shim that runs it.
    pub(in crate::supervisor) fn pid_of_shim(&self) -> Option<u32> {
        self.processes.incumbent().filter(|_| self.config.adapter.is_foreign()).map(|process| process.pid())
    }

    /// The program that the shim of the incumbent says it runs.
    pub(in crate::supervisor) fn pid_of_program(&self) -> Option<u32> {
        self.program_run_by(self.processes.incumbent()?)
    }

    pub(in crate::supervisor) fn program_run_by(&self, process: &Process) -> Option<u32> {
        if !self.config.adapter.is_foreign() {
            return None;
        }
        if self.main_exit(process).is_some() {
            return None;
        }
        let path = self.file_of_shim(process.handoff, shim::PID);
        let said = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        let found = match said {
            // The shim corrects it in a moment. One look may miss a process that is losing its parent.
            Some(pid) if !is_part_of(pid, process.pid()) => {
                find_program(process).or_else(|| find_program(process))
            }
            Some(pid) => Some(pid),
            None => write_pid_again(process, &path),
        };
        process.program.set(found.or(process.program.get()).or(said));
        found
    }

    /// How the main process of a program has ended whose other processes are still ending. A clause.
    fn main_exit(&self, process: &Process) -> Option<String> {
        let is_shim = self.config.adapter.is_foreign();
        is_shim.then(|| shim::main_exit(&self.shared.dirs.adopt_socket(process.handoff))).flatten()
    }

    /// The same, of the serving program.
    pub(in crate::supervisor) fn incumbent_main_exit(&self) -> Option<String> {
        self.processes.incumbent().and_then(|process| self.main_exit(process))
    }

    /// The same, as sentences.
    pub(in crate::supervisor) fn shown_main_exit(&self) -> Option<String> {
        let process = self.processes.incumbent()?;
        let how = self.main_exit(process)?;
        let left = tree_of(process.pid()).into_iter().filter(|pid| *pid != process.pid()).collect();
        let then = match self.config.restart.when {
            When::Always => "then the service is started again",
            When::OnFailure | When::Never => "then `restart` in its service file decides",
        };
        Some(format!(
            "The main {how}. What is left of the program has its stop signal, and up to {} to end; {then}: process {}.",
            format_duration_ms(self.config.stop_grace_ms),
            shim::named(&left)
        ))
    }

    /// What keeps a starting program from its listeners, or the old one from its end, as its shim reports.
    pub(in crate::supervisor) fn shown_wait(&self) -> Option<String> {
        if self.machine.phase() == Phase::Draining {
            return self
                .drain_waits()
                .map(|requests| format!("The upgrade waits for requests that take long: {requests}."));
        }
        let matters = matches!(self.machine.phase(), Phase::Warming | Phase::Beginning | Phase::Resuming);
        let process = self.processes.successor().or(self.processes.incumbent());
        let process = process.filter(|_| matters && self.config.adapter.is_foreign())?;
        let waits = shim::waits_for(&self.shared.dirs.adopt_socket(process.handoff))?;
        Some(format!("The service waits for its program: {waits}."))
    }

    /// The requests for which the drain of the serving program waits, or has waited, as its shim reports. A clause.
    fn drain_waits(&self) -> Option<String> {
        let process = self.processes.incumbent().filter(|_| self.config.adapter.is_foreign())?;
        shim::drains_for(&self.shared.dirs.adopt_socket(process.handoff))
    }

    /// A reason for the end of an attempt, with the requests that have outlasted the drain.
    pub(in crate::supervisor) fn with_requests(&self, reason: &Reason) -> String {
        match self.drain_waits().filter(|_| *reason == Reason::DrainGrace) {
            Some(requests) => format!("{reason}; {requests}"),
            None => reason.to_string(),
        }
    }

    /// The last message for the serving program that its shim did not accept.
    pub(in crate::supervisor) fn shown_refusal(&self) -> Option<String> {
        let process = self.processes.incumbent().filter(|_| self.config.program.notify.is_some())?;
        let refused = shim::refused_by(&self.shared.dirs.adopt_socket(process.handoff))?;
        Some(format!("{refused}."))
    }

    fn file_of_shim(&self, handoff: HandoffId, ending: &str) -> PathBuf {
        self.shared.dirs.adopt_socket(handoff).with_extension(ending)
    }
}

/// Whether a process is part of a shim's program, and has not ended.
fn is_part_of(pid: u32, shim: u32) -> bool {
    tree_of(shim).contains(&pid) && !is_gone(pid)
}

/// Whether a process waits to be reaped. Other threads may outlive its main thread.
fn is_gone(pid: u32) -> bool {
    is_zombie(pid) && has_ended(pid)
}

/// Finds the program of a shim without its file: the pid that the file had, or the first child of the shim, which leads
/// a session.
fn find_program(process: &Process) -> Option<u32> {
    let all: Vec<u32> = tree_of(process.pid()).into_iter().filter(|pid| !is_gone(*pid)).collect();
    let is_child = |pid: &u32| parent_of(*pid) == Some(process.pid());
    let known = process.program.get().filter(|pid| all.contains(pid));
    known.or_else(|| {
        let children: Vec<u32> = all.iter().copied().filter(is_child).collect();
        match children[..] {
            [only] => Some(only),
            // The orphans of its program are its children, too.
            _ => first_leader(&children).or_else(|| children.first().copied()),
        }
    })
}

/// Finds the program of a shim whose file is gone, perhaps with the whole directory, or could not be written on a full
/// disk. Writes the file again for the next daemon. A shim whose program has ended has removed the file itself.
fn write_pid_again(process: &Process, path: &Path) -> Option<u32> {
    let pid = find_program(process)?;
    // What the shim has written meanwhile is newer, and stays.
    let beside = path.with_added_extension(std::process::id().to_string());
    let written = fs::write(&beside, format!("{pid}\n"));
    if fs::metadata(path).is_ok_and(|found| found.len() == 0) {
        let _ = written.and_then(|()| fs::rename(&beside, path));
    } else {
        let _ = written.and_then(|()| fs::hard_link(&beside, path));
    }
    let _ = fs::remove_file(beside);
    Some(pid)
}

/// The oldest of the processes that lead their own session.
fn first_leader(pids: &[u32]) -> Option<u32> {
    let leads = |pid: &u32| Some((place_of(*pid)?, *pid)).filter(|(place, pid)| place.session == *pid);
    pids.iter().filter_map(leads).min_by_key(|(place, _)| place.start_ticks).map(|(_, pid)| pid)
}

fn no_signal(kill: &Kill) -> Error {
    match &kill.signal {
        Some(given) => {
            let message = format!("There is no signal {given:?} that can be sent.");
            Error::new(Kind::InvalidParams, message, format!("The signals are {}.", signal_names()))
        }
        None => {
            let message = format!("The file of service {:?} names no reload_signal.", kill.service.as_str());
            let hint = "Add reload_signal = \"SIGHUP\", or name a signal: handoff kill -s HUP";
            Error::new(Kind::InvalidParams, message, format!("{hint} {}", kill.service))
        }
    }
}

/// Asks a process to end, with SIGTERM.
pub(in crate::supervisor) fn terminate(process: Option<&Process>) {
    if let Some(process) = process {
        process.asked_to_end();
        process.signal(Signal::SIGTERM);
        // A stopped process cannot act on the signal otherwise.
        process.signal(Signal::SIGCONT);
    }
}
