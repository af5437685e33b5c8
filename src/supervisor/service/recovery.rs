//! Takes over what an earlier daemon has left running.
//!
//! Nothing is bound or started before it is known which processes run. A pid only counts with its start time and boot
//! id. Listeners come back from the keeper, or else from the processes themselves, and every process is asked what it
//! is doing. The table of [`handoff_protocol::recovery`] decides the rest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::Adopted;
use handoff_protocol::reason::Exit;
use handoff_protocol::record::{Attempt, Binary, Current, Fact, Process as Identity, Standing};
use handoff_protocol::recovery::{Decision, LastHandoff, LivingProcesses, Observation, Roles, roles};
use handoff_protocol::supervisor::{Legacy, Supervisor};
use handoff_protocol::version::VersionRange;
use uuid::Uuid;

use super::Service;
use super::deadline;
use super::policy::policy;
use crate::config::Dirs;
use crate::crash_points::{crash_point, name};
use crate::supervisor::adoption_socket::{check_peer, connect_to, place_of};
use crate::supervisor::listening::{Admission, Listening};
use crate::supervisor::operations::LOST_BEFORE;
use crate::supervisor::process::{Process, ProcessParts, Token, to_protocol_exit};
use crate::sys::errno::{Errno, errno_of};
use crate::sys::exit::{ProcessStatus, exit_of_reaped, exit_of_zombie, life};
use crate::sys::held::{inherited_listeners, sockets_of};
use crate::sys::process::ProcessId;

/// A process that the journal names.
#[derive(Debug, Clone)]
struct RecordedProcess {
    handoff: HandoffId,
    binary: Binary,
    process: Identity,
    started_unix_ms: u64,
}

impl From<&Current> for RecordedProcess {
    fn from(current: &Current) -> Self {
        Self {
            handoff: current.handoff,
            binary: current.binary.clone(),
            // A process that has ended is never looked for.
            process: current.process.clone().unwrap_or(NO_PROCESS),
            started_unix_ms: current.started_unix_ms,
        }
    }
}

impl From<&Attempt> for RecordedProcess {
    fn from(attempt: &Attempt) -> Self {
        Self {
            handoff: attempt.handoff,
            binary: attempt.binary.clone(),
            process: attempt.process.clone().unwrap_or(NO_PROCESS),
            started_unix_ms: attempt.started_unix_ms,
        }
    }
}

const NO_PROCESS: Identity = Identity { pid: 0, start_ticks: 0, boot_id: [0; 16] };

/// A process that still runs.
type SurvivingProcess = (RecordedProcess, OwnedFd);

/// Opens the process, if it runs.
fn open(process: &Identity) -> io::Result<Option<OwnedFd>> {
    let &Identity { pid, start_ticks, boot_id } = process;
    if pid == 0 {
        return Ok(None);
    }
    let id = ProcessId { pid, start_ticks, boot_id: Uuid::from_bytes(boot_id).to_string() };
    let Some(pidfd) = id.open()? else { return Ok(None) };
    Ok(matches!(life(&pidfd)?, ProcessStatus::Runs).then_some(pidfd))
}

/// Whether the socket of a running process is gone.
pub(in crate::supervisor) fn lacks_adoption_socket(dirs: &Dirs, standing: &Standing) -> bool {
    let generations = [&standing.current, &standing.previous, &standing.leaving].into_iter().flatten();
    let named =
        generations.map(RecordedProcess::from).chain(standing.attempt.iter().map(RecordedProcess::from));
    let is_gone = |named: &RecordedProcess| {
        let found = std::fs::symlink_metadata(place_of(&dirs.adopt_socket(named.handoff)));
        found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    named.filter(is_gone).any(|named| matches!(open(&named.process), Ok(Some(_))))
}

impl Service {
    /// Takes over what an earlier daemon has left of a service, when the service becomes known, or its journal
    /// readable, while this daemon already works. What runs goes on as the journal says. What has ended is recorded,
    /// and only started if it is `wanted`. Returns `false` if there is nothing left to do.
    pub(in crate::supervisor) fn take_over_late(&mut self, wanted: bool) -> bool {
        let lives = self.recall_unrecorded() || {
            let standing = self.journal.standing();
            !roles(standing, self.surviving_processes(standing)).is_empty()
        };
        match (lives, wanted) {
            (true, _) => self.take_over_left(self.journal.standing().wanted),
            (false, true) => self.take_over_left(true),
            (false, false) => {
                self.note_ends();
                false
            }
        }
    }

    /// Records what has ended: nothing of the service runs, and this call must not start anything.
    fn note_ends(&mut self) {
        let standing = self.journal.standing().clone();
        self.note_end_of_current();
        if let Some(attempt) = &standing.attempt {
            let reason = LOST_BEFORE.to_owned();
            self.note(Fact::RolledBack { handoff: attempt.handoff, reason });
            self.shared.keeper.forget_process(&self.name, attempt.handoff);
        }
        self.recall_attempts(None);
    }

    /// Takes over the processes that an earlier daemon has left, and ends what it had begun. Returns `false` if it
    /// has left nothing: then nothing was done.
    pub(in crate::supervisor) fn take_over_left(&mut self, wanted: bool) -> bool {
        let wanted = self.recall_unrecorded() || wanted;
        let standing = self.journal.standing().clone();
        let living = self.surviving_processes(&standing);
        let has_ended = standing.current.is_some() && living.current.is_none();
        let ended = has_ended.then(|| self.note_end_of_current()).flatten();
        let roles = roles(&standing, living);
        if roles.is_empty() && standing.attempt.is_none() {
            if !wanted {
                self.close_left_listeners();
            }
            // Clients may wait at the listeners for a start.
            if ended.is_none() || !wanted {
                self.recall_attempts(None);
                return false;
            }
        }
        crash_point!("supervisor/recovery/looked");
        if !roles.is_empty() {
            self.go_by_running();
        } else if !self.is_as_running() {
            // Listeners are known by name, and the same name now means another address.
            self.drop_held();
        }
        let left = self.reach_all(&standing, roles, wanted);
        // A reboot has ended all, and that is no end of their own.
        let left = Legacy { died: ended.filter(|_| self.shared.was_lost), ..left };
        let handoff = match left.last_handoff {
            LastHandoff::Uncommitted => standing.attempt.as_ref().map(|attempt| attempt.handoff),
            LastHandoff::Committed => standing.current.as_ref().map(|current| current.handoff),
        };
        self.recall_attempts(handoff.filter(|_| left.under_way));
        tracing::info!(
            handoff = %left.handoff,
            wanted,
            upgrade_under_way = left.under_way,
            old_process = %left.incumbent,
            new_process = %left.successor,
            "taking over what an earlier daemon has left"
        );
        let (machine, actions) =
            Supervisor::recover(self.config.mode, policy(&self.config), self.moment(), left);
        self.machine = machine;
        let mut events = VecDeque::new();
        self.carry_out(actions, &mut events);
        for event in events {
            self.feed(event);
        }
        true
    }

    /// Finds the processes of the journal that still run.
    fn surviving_processes(&self, standing: &Standing) -> LivingProcesses<SurvivingProcess> {
        let generation =
            |it: &Option<Current>| it.as_ref().and_then(|current| self.open_if_running(&current.into()));
        LivingProcesses {
            current: generation(&standing.current),
            previous: generation(&standing.previous),
            leaving: generation(&standing.leaving),
            attempt: standing.attempt.as_ref().and_then(|attempt| self.open_if_running(&attempt.into())),
        }
    }

    /// Restores the listeners, and connects to the processes that run.
    fn reach_all(&mut self, standing: &Standing, roles: Roles<SurvivingProcess>, wanted: bool) -> Legacy {
        let attempt = standing.attempt.as_ref();
        self.versions.upgrades_to(attempt.map(|attempt| attempt.binary.path.clone().into()));
        self.restore_listeners(roles.newest_slot_serves());
        let slots = self.listening.as_ref().map(Listening::slots).unwrap_or_default();
        let slots = roles.slots(self.config.mode, &slots);
        crash_point!("supervisor/recovery/listeners");
        let under_way = roles.is_under_way(policy(&self.config).probation_ms > 0);
        let Roles { last_handoff: written, incumbent, successor, outgoing, .. } = roles;
        let (outgoing, outgoing_found) = self.reach(outgoing, slots.outgoing);
        let (incumbent, incumbent_found) = self.reach(incumbent, slots.incumbent);
        let (successor, successor_found) = self.reach(successor, slots.successor);
        self.processes.recovered(incumbent, successor, outgoing);
        let fresh = || HandoffId::from_uuid(Uuid::now_v7());
        Legacy {
            wanted,
            last_handoff: written,
            handoff: attempt.map_or_else(fresh, |attempt| attempt.handoff),
            under_way,
            left_ms: attempt.and_then(|attempt| attempt.ends).and_then(deadline::left_ms),
            died: None,
            incumbent: incumbent_found,
            successor: successor_found,
            outgoing: outgoing_found,
        }
    }

    /// The process, if it is still the same one.
    fn open_if_running(&self, named: &RecordedProcess) -> Option<SurvivingProcess> {
        Some((named.clone(), self.open(&named.process)?))
    }

    fn open(&self, process: &Identity) -> Option<OwnedFd> {
        match open(process) {
            Ok(found) => found,
            // Taking it for dead would start another process beside it.
            Err(error) if is_shortage(&error) => {
                self.leave_for_next(process.pid, "it cannot be found out whether it lives", &error)
            }
            // The pid now belongs to something that is not a process.
            Err(error) => {
                tracing::warn!(pid = process.pid, %error, "this is no process");
                None
            }
        }
    }

    /// Ends the daemon, because the kernel gives it nothing more. The next one may get what it needs. The services
    /// run on.
    fn leave_for_next(&self, pid: u32, what: &str, error: &io::Error) -> ! {
        tracing::error!(pid, %error, "{what}; the daemon ends, and the services run on");
        std::process::exit(1)
    }

    /// Records the end of the process of the current generation, which ended while no daemon ran. Returns how it
    /// ended.
    fn note_end_of_current(&mut self) -> Option<Exit> {
        let current = self.journal.standing().current.clone()?;
        let process = current.process?;
        let exit = self.exit_of(current.handoff);
        self.collect_killed(current.handoff);
        if self.journal.standing().wanted {
            tracing::warn!(pid = process.pid, "while no daemon was there, the process {exit}");
            let pid = process.pid;
            self.problems.died(format!("While no daemon was there, the process {pid} {exit}"));
        }
        self.note(Fact::Exited { generation: current.generation, exit });
        self.shared.keeper.forget_process(&self.name, current.handoff);
        Some(exit)
    }

    /// Whether this process still runs.
    pub(in crate::supervisor) fn lives(&self, process: Option<&Identity>) -> bool {
        process.is_some_and(|process| self.open(process).is_some())
    }

    /// How a process ended, if the keeper has its pidfd and the kernel knows.
    fn exit_of(&self, handoff: HandoffId) -> Exit {
        let pidfd = self.shared.keeper.process(&self.name, handoff).ok().flatten();
        let exit = pidfd.and_then(|pidfd| exit_of_reaped(&pidfd).or_else(|| exit_of_zombie(&pidfd)));
        exit.map_or(Exit::Unknown, to_protocol_exit)
    }

    fn reach(&mut self, found: Option<SurvivingProcess>, slot: u64) -> (Option<Process>, Observation) {
        let Some((named, pidfd)) = found else { return (None, Observation::Gone) };
        let RecordedProcess { handoff, binary, process, started_unix_ms } = named;
        let pid = process.pid;
        crash_point!("supervisor/recovery/before-reach");
        let channel = connect_to(&self.shared.dirs.adopt_socket(handoff)).and_then(|channel| {
            check_peer(&channel, pid)?;
            Ok(channel)
        });
        crash_point!("supervisor/recovery/reached");
        // Others have connected, and it has let none of them in: it is silent, as one that does not answer.
        let is_full = channel.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        if let Some(error) = channel.as_ref().err().filter(|_| !is_full) {
            tracing::error!(pid, %error, "the process lives and cannot be reached");
            let what = "it serves on, but can only be stopped";
            self.problems
                .mute(format!("The process {pid} cannot be reached by this daemon ({error}): {what}"));
        }
        let log = self.log_of(handoff, pid);
        let is_asked = channel.is_ok() || is_full;
        let found = if is_asked { Observation::Asked } else { Observation::Unreachable };
        let parts = ProcessParts {
            token: self.next_token(),
            identity: process,
            handoff,
            binary,
            settings: self.running_settings.clone(),
            started_at_unix_ms: started_unix_ms,
            slot,
            log,
            channel: channel.ok(),
            pidfd,
            trace: self.trace_of(handoff),
            lane: self.lanes.processes.clone(),
        };
        match Process::new(parts, self.inputs.clone()) {
            Ok(process) => {
                self.remember_writer(&process);
                (Some(process), found)
            }
            Err(error) => self.leave_for_next(pid, "the process cannot be watched", &error),
        }
    }

    /// Handles the answer of a process. An error says why the daemon cannot talk to the process: then the machine
    /// does not get the answer.
    pub(in crate::supervisor) fn adopted(
        &mut self,
        token: Token,
        adopted: &Adopted,
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        if !VersionRange::OURS.contains(adopted.version) {
            return Err(format!("it chose version {}, which was not offered", adopted.version));
        }
        if adopted.service != self.name {
            return Err(format!("it belongs to service {:?}", adopted.service.as_str()));
        }
        let slot = self.slot_of(fds, adopted, token);
        if let Some(process) = self.processes.find_mut(token) {
            process.agree(adopted.version);
            process.slot = slot.unwrap_or(process.slot);
            let (pid, stage) = (process.pid(), adopted.stage);
            tracing::info!(pid, ?stage, "adopted");
        }
        Ok(())
    }

    fn slot_of(&mut self, mut fds: Vec<OwnedFd>, adopted: &Adopted, token: Token) -> Option<u64> {
        // On a stream it cannot send them. A known slot is found in the list of the process's sockets, which may
        // always be read. Anything else takes a privilege that the kernel may not give.
        if fds.is_empty() && !adopted.listeners.is_empty() {
            let sockets = sockets_of(adopted.pid).into_iter().flatten().map(|held| held.inode).collect();
            let known = self.listening.as_ref().and_then(|listening| listening.slot_among(&sockets));
            if known.is_some() {
                return known;
            }
            fds = inherited_listeners(adopted.pid, adopted.listeners.len())
                .inspect_err(|error| tracing::warn!(%error, "its listeners cannot be had"))
                .unwrap_or_default();
        }
        let oldest = self.processes.incumbent().is_some_and(|process| process.token == token);
        if let Some(listening) = &mut self.listening {
            return match listening.admit(fds, oldest) {
                Ok(Admission::Known(slot)) => Some(slot),
                Ok(Admission::New(slot)) => {
                    listening.store(&self.shared.keeper, self.name.as_str(), slot);
                    Some(slot)
                }
                Err(error) => {
                    tracing::error!(%error, "its listeners cannot be used");
                    None
                }
            };
        }
        let offered = adopted.listeners.iter().cloned().zip(fds).collect();
        match Listening::from_service(&self.config.listeners, offered, self.is_paired()) {
            Ok(listening) => {
                let slot = listening.steered();
                listening.store(&self.shared.keeper, self.name.as_str(), slot);
                self.listening = Some(listening);
                Some(slot)
            }
            Err(error) => {
                tracing::error!(%error, "its listeners are not known");
                self.problems.listeners_unknown(&error);
                None
            }
        }
    }

    /// Handles the decision about what was left.
    pub(in crate::supervisor) fn recovered(&mut self, decision: Decision) {
        crash_point!("supervisor/recovery/decided.{}", name(&decision));
        let text = match decision {
            Decision::Adopt => "the process goes on under this daemon",
            Decision::Advance => {
                "the new process serves: the upgrade that was under way goes on, and what it demands is asked again"
            }
            Decision::Forward => "the new process serves and was committed",
            Decision::Back => "the old process serves: the upgrade that was under way is rolled back",
            Decision::Revert => "the old process serves again: the upgrade is undone",
            Decision::Start => "no process is left: the service is started",
            Decision::Rest => "no process is left, and none is to run",
            Decision::Wait | Decision::KillSuccessor | Decision::KillIncumbent => return,
        };
        tracing::info!(?decision, "recovered: {text}");
        self.operations.recovered(decision == Decision::Advance);
        if decision == Decision::Revert {
            self.record_undone();
        }
        self.retire_unused_slots();
        let processes = self.processes.all();
        self.shared.keeper.keep_only(&self.name, processes.map(|process| process.handoff));
    }
}

/// Whether the kernel, or a limit of this process, leaves no room for the request.
fn is_shortage(error: &io::Error) -> bool {
    let known = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM];
    errno_of(error).is_some_and(|error| known.contains(&error))
}
