//! Taking over what an earlier daemon has left running.
//!
//! Nothing is bound and nothing is started before it is known who lives: pids are believed only with their start time and
//! boot id, listeners come back from the keeper, else from the processes themselves, and every process is asked what it
//! is doing. The table of [`handoff_protocol::recovery`] decides the rest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{Adopted, Mode};
use handoff_protocol::reason::Exit;
use handoff_protocol::record::{Attempt, Binary, Current, Fact, Process, Standing};
use handoff_protocol::recovery::{Decision, Found, Written};
use handoff_protocol::supervisor::{Left, Supervisor};
use handoff_protocol::version::VersionRange;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use uuid::Uuid;

use super::binary::Hashes;
use super::keeping::LogGuard;
use super::launch::identity;
use super::listening::{Admitted, Listening};
use super::party::{Parts, Party, Serial, told};
use super::policy::policy;
use super::service::Service;
use super::slots::Slots;
use crate::crash_points::{crash_point, name};
use crate::shim;
use crate::sys::channel::Channel;
use crate::sys::exit::{Life, exit_of_reaped, exit_of_zombie, life, pid_of};
use crate::sys::held::{inherited_listeners, sockets_of};
use crate::sys::log_pipe::log_pipe_of;
use crate::sys::process::ProcessId;

/// A process that the journal names.
#[derive(Debug, Clone)]
struct Named {
    handoff: HandoffId,
    binary: Binary,
    process: Process,
    started_unix_ms: u64,
}

impl From<&Current> for Named {
    fn from(current: &Current) -> Self {
        Self {
            handoff: current.handoff,
            binary: current.binary.clone(),
            // A process that ended is never looked for.
            process: current.process.clone().unwrap_or(NOBODY),
            started_unix_ms: current.started_unix_ms,
        }
    }
}

impl From<&Attempt> for Named {
    fn from(attempt: &Attempt) -> Self {
        Self {
            handoff: attempt.handoff,
            binary: attempt.binary.clone(),
            process: attempt.process.clone().unwrap_or(NOBODY),
            started_unix_ms: attempt.started_unix_ms,
        }
    }
}

const NOBODY: Process = Process { pid: 0, start_ticks: 0, boot_id: [0; 16] };

/// The processes that are still there. Until it is known what they do, the one that served before the last handoff is the
/// incumbent, and the one that was to follow it the successor.
#[derive(Debug)]
struct Remains {
    written: Written,
    incumbent: Option<(Named, OwnedFd)>,
    successor: Option<(Named, OwnedFd)>,
    retiree: Option<(Named, OwnedFd)>,
    /// Whether the process of the current generation is among them.
    current: bool,
}

impl Remains {
    fn is_nobody(&self) -> bool {
        [&self.incumbent, &self.successor, &self.retiree].iter().all(|process| process.is_none())
    }
}

impl Service {
    /// Takes over the processes that an earlier daemon has left, and ends what it had begun. `false` if it has left
    /// nothing: then nothing was done.
    pub(super) fn take_over_left(&mut self, wanted: bool) -> bool {
        let wanted = self.recall_unrecorded() || wanted;
        let standing = self.journal.standing().clone();
        let remains = self.look_around(&standing);
        let ended = standing.current.is_some() && !remains.current && self.note_end_of_current();
        if remains.is_nobody() && standing.attempt.is_none() && !(ended && wanted) {
            self.recall_attempts(&standing, false);
            return false;
        }
        crash_point!("supervisor/recovery/looked");
        if !remains.is_nobody() {
            self.go_by_running();
        }
        let left = self.reach_all(&standing, remains, wanted);
        self.recall_attempts(&standing, left.under_way);
        tracing::info!(
            service = %self.name,
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

    /// Who of those that the journal names is still there, and in which part.
    fn look_around(&self, standing: &Standing) -> Remains {
        let generation =
            |it: &Option<Current>| it.as_ref().and_then(|current| self.look_for(&current.into()));
        let current = generation(&standing.current);
        let (previous, leaving) = (generation(&standing.previous), generation(&standing.leaving));
        let attempt = standing.attempt.as_ref().and_then(|attempt| self.look_for(&attempt.into()));
        let is_current = current.is_some();
        let (written, [incumbent, successor, retiree]) = match (&standing.attempt, previous) {
            (None, Some(previous)) => (Written::Committed, [Some(previous), current, leaving]),
            (_, previous) => (Written::Uncommitted, [current, attempt, previous.or(leaving)]),
        };
        Remains { written, incumbent, successor, retiree, current: is_current }
    }

    /// Takes back the listeners, and connects to whoever is there.
    fn reach_all(&mut self, standing: &Standing, remains: Remains, wanted: bool) -> Left {
        let Remains { written, incumbent, successor, retiree, .. } = remains;
        let attempt = standing.attempt.as_ref();
        // The restart of a process that had ended is nothing that anybody asked for.
        let under_way = attempt
            .zip(standing.current.as_ref())
            .is_some_and(|(attempt, current)| current.process.is_some() || attempt.binary != current.binary);
        self.candidate = attempt.map(|attempt| attempt.binary.path.clone().into());
        // Ids sort by time.
        let started = |it: &Option<Current>| it.as_ref().map(|current| current.handoff);
        let reverted = started(&standing.previous) > started(&standing.current);
        let slots = Slots { written, attempt: attempt.is_some(), incumbent: incumbent.is_some(), reverted };
        self.restore_listeners(slots.newest_serves());
        let slots = self.slots_by_age(slots, [retiree.is_some(), incumbent.is_some(), successor.is_some()]);
        crash_point!("supervisor/recovery/listeners");
        let (retiree, retiree_found) = self.reach(retiree, slots[0]);
        let (incumbent, incumbent_found) = self.reach(incumbent, slots[1]);
        let (successor, successor_found) = self.reach(successor, slots[2]);
        (self.incumbent, self.successor, self.retiree) = (incumbent, successor, retiree);
        let fresh = || HandoffId::from_uuid(Uuid::now_v7());
        Left {
            wanted,
            written,
            handoff: attempt.map_or_else(fresh, |attempt| attempt.handoff),
            under_way,
            incumbent: incumbent_found,
            successor: successor_found,
            retiree: retiree_found,
        }
    }

    /// A process that the earlier daemon could not record, since its disk took nothing: the keeper alone knows of it. It
    /// may be the one that serves. Recorded now, it is asked like any other.
    fn recall_unrecorded(&mut self) -> bool {
        let standing = self.journal.standing();
        let generations = [&standing.current, &standing.previous, &standing.leaving].into_iter().flatten();
        let attempt = standing.attempt.iter().filter(|attempt| self.look_for(&(*attempt).into()).is_some());
        let known: Vec<HandoffId> = generations
            .map(|generation| generation.handoff)
            .chain(attempt.map(|attempt| attempt.handoff))
            .collect();
        let generation = standing.generation().next();
        let kept = self.shared.keeper.processes(&self.name).unwrap_or_default();
        let unknown = kept.into_iter().filter(|(handoff, _)| !known.contains(handoff));
        let found = unknown.filter_map(|(handoff, pidfd)| Some((handoff, examine(&pidfd)?))).next_back();
        let Some((handoff, (process, binary))) = found else { return false };
        tracing::warn!(service = %self.name, pid = process.pid, "a process is found that was not recorded");
        self.note(Fact::Intent { handoff, generation, binary });
        self.note(Fact::Spawned { handoff, process });
        if !self.journal.standing().wanted {
            self.note(Fact::Wanted { up: true });
        }
        true
    }

    /// The process, if it is still the same one.
    fn look_for(&self, named: &Named) -> Option<(Named, OwnedFd)> {
        let Process { pid, start_ticks, boot_id } = named.process;
        if pid == 0 {
            return None;
        }
        let id = ProcessId { pid, start_ticks, boot_id: Uuid::from_bytes(boot_id).to_string() };
        match id.open() {
            Ok(Some(pidfd)) if matches!(life(&pidfd), Ok(Life::Runs)) => Some((named.clone(), pidfd)),
            Ok(_) => None,
            Err(error) => {
                tracing::error!(service = %self.name, pid, %error, "it cannot be found out whether it lives");
                None
            }
        }
    }

    /// Whether the process of the current generation ended while no daemon was there.
    fn note_end_of_current(&mut self) -> bool {
        let Some(current) = self.journal.standing().current.clone() else { return false };
        let Some(process) = current.process else { return false };
        let exit = self.exit_of(current.handoff);
        if self.journal.standing().wanted {
            tracing::warn!(service = %self.name, pid = process.pid, "while no daemon was there, the process {exit}");
            let pid = process.pid;
            self.problem =
                Some(format!("While no daemon was there, the process {pid} {exit}; it was started again."));
        }
        self.note(Fact::Exited { generation: current.generation, exit });
        self.shared.keeper.forget_process(&self.name, current.handoff);
        true
    }

    /// How a process ended, if the keeper has its pidfd and the kernel knows.
    fn exit_of(&self, handoff: HandoffId) -> Exit {
        let pidfd = self.shared.keeper.process(&self.name, handoff).ok().flatten();
        let exit = pidfd.and_then(|pidfd| exit_of_reaped(&pidfd).or_else(|| exit_of_zombie(&pidfd)));
        exit.map_or(Exit::Unknown, told)
    }

    fn reach(&mut self, found: Option<(Named, OwnedFd)>, slot: u64) -> (Option<Party>, Found) {
        let Some((named, pidfd)) = found else { return (None, Found::Gone) };
        let Named { handoff, binary, process, started_unix_ms } = named;
        let pid = process.pid;
        crash_point!("supervisor/recovery/before-reach");
        let channel = connect_to(&self.shared.dirs.adopt_socket(handoff));
        crash_point!("supervisor/recovery/reached");
        if let Err(error) = &channel {
            tracing::error!(service = %self.name, pid, %error, "the process lives and cannot be reached");
            let what = "it serves on, but can only be stopped";
            self.problem =
                Some(format!("The process {pid} cannot be reached by this daemon ({error}): {what}."));
        }
        let log = self.log_of(pid);
        let found = if channel.is_ok() { Found::Asked } else { Found::Mute };
        let parts = Parts {
            serial: self.next_serial(),
            process,
            handoff,
            binary,
            started_at_unix_ms: started_unix_ms,
            slot,
            log,
            channel: channel.ok(),
            pidfd,
            trace: self.trace_of(handoff),
        };
        let this = self.this.clone();
        let party = Party::new(parts, move |serial, happened| {
            if let Some(service) = this.upgrade() {
                service.borrow_mut().happened(serial, happened);
            }
        });
        match party {
            Ok(party) => (Some(party), found),
            Err(error) => {
                tracing::error!(service = %self.name, pid, %error, "the process cannot be watched");
                (None, Found::Gone)
            }
        }
    }

    /// The log pipe of a process, which the keeper is asked to read: it may be another one than before.
    fn log_of(&self, pid: u32) -> LogGuard {
        match log_pipe_of(pid) {
            Ok(Some(pipe)) => self.shared.keeper.log(&self.name, &self.config.log, &pipe),
            Ok(None) => LogGuard::default(),
            Err(error) => {
                tracing::warn!(service = %self.name, pid, %error, "another keeper would not read its log");
                LogGuard::default()
            }
        }
    }

    /// A process has answered. Gives what it said to the machine only if it can be talked to.
    pub(super) fn adopted(
        &mut self,
        serial: Serial,
        adopted: &Adopted,
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        if !VersionRange::OURS.contains(adopted.version) {
            return Err(format!("it chose version {}, which was not offered", adopted.version));
        }
        if adopted.service != self.name {
            return Err(format!("it belongs to service {:?}", adopted.service.as_str()));
        }
        let slot = self.slot_of(fds, adopted, serial);
        let parties = [&mut self.incumbent, &mut self.successor, &mut self.retiree];
        for party in parties.into_iter().flatten().filter(|party| party.serial == serial) {
            party.agree(adopted.version);
            party.slot = slot.unwrap_or(party.slot);
            let (pid, stage) = (party.process.pid, adopted.stage);
            tracing::info!(service = %self.name, pid, ?stage, "adopted");
        }
        Ok(())
    }

    fn slot_of(&mut self, mut fds: Vec<OwnedFd>, adopted: &Adopted, serial: Serial) -> Option<u64> {
        // On a stream it cannot send them. What is known already is found in the list of its sockets, which always may be
        // read; the rest takes a privilege that the kernel may not give.
        if fds.is_empty() && !adopted.listeners.is_empty() {
            let sockets = sockets_of(adopted.pid).into_iter().flatten().map(|held| held.inode).collect();
            let known = self.listening.as_ref().and_then(|listening| listening.slot_among(&sockets));
            if known.is_some() {
                return known;
            }
            fds = inherited_listeners(adopted.pid, adopted.listeners.len())
                .inspect_err(
                    |error| tracing::warn!(service = %self.name, %error, "its listeners cannot be had"),
                )
                .unwrap_or_default();
        }
        let oldest = self.incumbent.as_ref().is_some_and(|party| party.serial == serial);
        if let Some(listening) = &mut self.listening {
            return match listening.admit(fds, oldest) {
                Ok(Admitted::Known(slot)) => Some(slot),
                Ok(Admitted::New(slot)) => {
                    listening.store(&self.shared.keeper, self.name.as_str(), slot);
                    Some(slot)
                }
                Err(error) => {
                    tracing::error!(service = %self.name, %error, "its listeners cannot be used");
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
                tracing::error!(service = %self.name, %error, "its listeners are not known");
                self.problem = Some(format!("The listeners of the process are not known: {error}."));
                None
            }
        }
    }

    /// Which slot each of the processes has, as far as their age tells: retiree, incumbent, successor.
    fn slots_by_age(&self, of: Slots, alive: [bool; 3]) -> [u64; 3] {
        let slots = self.listening.as_ref().map(Listening::slots).unwrap_or_default();
        let last = slots.last().copied().unwrap_or(0);
        let living = alive.iter().filter(|alive| **alive).count();
        let mut next = slots.iter().copied().skip(of.dead_and_older(slots.len(), living));
        let mut by_age = alive.map(|alive| match (alive, self.config.mode) {
            (true, Mode::Overlap) => next.next().unwrap_or(last),
            (_, _) => last,
        });
        if of.reverted && of.written == Written::Committed {
            by_age.swap(1, 2);
        }
        by_age
    }

    /// It is decided what becomes of what was left.
    pub(super) fn recovered(&mut self, decision: Decision) {
        crash_point!("supervisor/recovery/decided.{}", name(&decision));
        let told = match decision {
            Decision::Adopt => "the process goes on under this daemon",
            Decision::Commit => "the new process serves: the upgrade that was under way is completed",
            Decision::Forward => "the new process serves and was committed: the old one leaves",
            Decision::Back => "the old process serves: the upgrade that was under way is rolled back",
            Decision::Revert => "the old process serves again: the upgrade is undone",
            Decision::Start => "nobody is left: the service is started",
            Decision::Rest => "nobody is left, and nobody is to run",
            Decision::Wait | Decision::KillSuccessor | Decision::KillIncumbent => return,
        };
        tracing::info!(service = %self.name, ?decision, "recovered: {told}");
        self.completes = decision == Decision::Commit;
        self.retire_unused_slots();
        let parties = [&self.incumbent, &self.successor, &self.retiree].into_iter().flatten();
        self.shared.keeper.keep_only(&self.name, parties.map(|party| party.handoff));
    }
}

/// Which process it is, and what it runs. `None` if it has ended.
fn examine(pidfd: &OwnedFd) -> Option<(Process, Binary)> {
    let pid = pid_of(pidfd.as_fd())?;
    let process = identity(pid);
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let binary = Hashes::identify_blocking(&program)
        .unwrap_or_else(|_| Binary { path: program.to_string_lossy().into_owned(), sha256: [0; 32] });
    // If it runs now, then it had the pid all the while.
    matches!(life(pidfd), Ok(Life::Runs)).then_some((process, binary))
}

/// Only the same user can have put a socket there. Its type is that of the channel on which the process was started,
/// whatever the service file says by now.
fn connect_to(path: &Path) -> io::Result<Channel> {
    let connected = |kind| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, kind, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    };
    match connected(SocketType::SEQPACKET) {
        Ok(socket) => Channel::from_fd(socket),
        Err(Errno::PROTOTYPE) => Channel::from_stream(connected(SocketType::STREAM)?),
        Err(error) => Err(error.into()),
    }
}

/// Removes the sockets of processes that are gone: nobody listens there any more. What a shim has left that is gone is
/// ended.
pub(super) fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_refused = |path: &Path| {
            connect_to(path).is_err_and(|error| {
                matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
            })
        };
        match path.extension() {
            None if is_refused(&path) => drop(std::fs::remove_file(&path)),
            Some(extension) if extension == shim::TRACE && is_refused(&path.with_extension("")) => {
                shim::end_what_is_left(&path);
            }
            _ => {}
        }
    }
}
