//! Starting a process of a service.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use handoff_protocol::frame::Transport;
use handoff_protocol::ids::{HandoffId, ListenerName};
use handoff_protocol::record::{Binary, Fact, Process};
use handoff_protocol::supervisor::{Event, Target};

use super::listening::Listening;
use super::party::{Parts, Party};
use super::service::Service;
use crate::config::{self, check_binary};
use crate::crash_points::{crash_point, passed_on};
use crate::journal::unix_ms;
use crate::service::ID_VARIABLE;
use crate::shim::{self, plan, plan::Plan};
use crate::sys::channel::Channel;
use crate::sys::files::check_room_for_files;
use crate::sys::inherit::{ADOPT_VARIABLE, KIND_VARIABLE, STREAM};
use crate::sys::log_pipe::log_pipe;
use crate::sys::process::ProcessId;
use crate::sys::spawn::{SpawnSpec, spawn_with_listeners};

/// What a service may know of the daemon's own environment; everything else comes from its file.
const INHERITED: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_RUNTIME_DIR"];

type Environment = Vec<(OsString, OsString)>;

impl Service {
    /// Records the intent and starts the process.
    pub(super) fn launch(
        &mut self,
        id: HandoffId,
        target: Target,
        binary: &Binary,
        events: &mut VecDeque<Event>,
    ) {
        // Near its limit the daemon goes on as it is. A service that is down gets what is left.
        if target == Target::Candidate
            && let Err(error) = check_room_for_files(self.files_of_a_start())
        {
            return events.push_back(Event::SpawnFailed(error.to_string()));
        }
        self.record_launch(id, binary);
        let generation = self.journal.standing().generation().next();
        let intent = Fact::Intent { handoff: id, generation, binary: binary.clone() };
        if let Err(error) = self.journal.append(intent) {
            self.problem = Some(error.to_string());
            // An upgrade can wait for a better disk. A service that is down cannot.
            if target == Target::Candidate {
                return events.push_back(Event::SpawnFailed(error.to_string()));
            }
        }
        if let Err(error) = self.try_launch(id, binary) {
            events.push_back(Event::SpawnFailed(error.to_string()));
        }
    }

    fn try_launch(&mut self, id: HandoffId, binary: &Binary) -> io::Result<()> {
        self.open_listeners().map_err(io::Error::other)?;
        let slot = self.slot_for_successor().map_err(io::Error::other)?;
        self.start_on(slot, id, binary).inspect_err(|_| self.retire_slot(slot))
    }

    fn start_on(&mut self, slot: u64, id: HandoffId, binary: &Binary) -> io::Result<()> {
        crash_point!("supervisor/launch/slot");
        let (channel, theirs) = match self.config.channel {
            Transport::Packets => Channel::pair()?,
            Transport::Stream => Channel::stream_pair()?,
        };
        let (log, stdout) = log_pipe()?;
        let stderr = stdout.try_clone()?;
        crash_point!("supervisor/launch/before-log");
        let log = self.shared.keeper.log(&self.name, &self.config.log, &log);
        let (program, args, env) = self.command(id, binary)?;
        let spec = SpawnSpec {
            binary: program,
            args,
            env,
            working_dir: self.config.working_dir.clone(),
            stdout,
            stderr,
            channel: Some(theirs),
            files_limit: Some(self.shared.files_limit),
        };
        crash_point!("supervisor/launch/before-spawn");
        let listening = self.listening.as_ref().filter(|_| self.config.channel == Transport::Stream);
        let listeners = listening.map(|listening| listening.fds(slot)).unwrap_or_default();
        let spawned = spawn_with_listeners(spec, &listeners)?;
        crash_point!("supervisor/launch/spawned");
        let process = identity(spawned.pid);
        self.shared.keeper.keep_process(&self.name, id, spawned.pidfd.as_fd());
        self.note(Fact::Spawned { handoff: id, process: process.clone() });
        let this = self.this.clone();
        let parts = Parts {
            serial: self.next_serial(),
            handoff: id,
            process,
            binary: binary.clone(),
            started_at_unix_ms: self.started_at(id),
            slot,
            log,
            channel: Some(channel),
            pidfd: spawned.pidfd,
            trace: self.trace_of(id),
        };
        let party = Party::new(parts, move |serial, happened| {
            if let Some(service) = this.upgrade() {
                service.borrow_mut().happened(serial, happened);
            }
        })?;
        tracing::info!(service = %self.name, handoff = %id, pid = spawned.pid, binary = binary.path, "started");
        self.successor = Some(party);
        Ok(())
    }

    /// As the next daemon will tell it. If the journal takes nothing, nobody else will.
    fn started_at(&self, id: HandoffId) -> u64 {
        let attempt = self.journal.standing().attempt.as_ref().filter(|attempt| attempt.handoff == id);
        attempt.map(|attempt| attempt.started_unix_ms).filter(|at| *at > 0).unwrap_or_else(unix_ms)
    }

    /// What is executed: the program itself, or a shim that runs it.
    fn command(&self, id: HandoffId, binary: &Binary) -> io::Result<(PathBuf, Vec<OsString>, Environment)> {
        let (path, mut env) = (PathBuf::from(&binary.path), self.environment(id));
        if !self.config.adapter.is_foreign() {
            return Ok((path, self.config.args.iter().map(OsString::from).collect(), env));
        }
        // A file that cannot be executed is told now, not by a shim later.
        check_binary(&path).map_err(|error| io::Error::other(format!("{error}; {}", error.hint())))?;
        let state = self.shared.dirs.service_state(&self.name);
        let plan = Plan::new(&self.config, path, state, self.shared.dirs.adopt_socket(id));
        env.push((plan::VARIABLE.into(), plan.to_text()?.into()));
        Ok((PathBuf::from("/proc/self/exe"), vec![shim::VERB.into(), self.name.as_str().into()], env))
    }

    /// What tells of the program that a shim runs.
    pub(super) fn trace_of(&self, id: HandoffId) -> Option<PathBuf> {
        self.config
            .adapter
            .is_foreign()
            .then(|| self.shared.dirs.adopt_socket(id).with_extension(shim::TRACE))
    }

    /// The process that the shim of the incumbent says it runs.
    pub(super) fn pid_of_program(&self) -> Option<u32> {
        let party = self.incumbent.as_ref().filter(|_| self.config.adapter.is_foreign())?;
        let path = self.shared.dirs.adopt_socket(party.handoff).with_extension(shim::PID);
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// Pipes, channel and pidfd, each of them also on record, and the listeners of another slot; and some for those who ask.
    fn files_of_a_start(&self) -> u64 {
        24 + 2 * self.config.listeners.len() as u64
    }

    fn environment(&self, id: HandoffId) -> Environment {
        let adopt = self.shared.dirs.adopt_socket(id).into_os_string();
        let given = [(ID_VARIABLE.into(), id.to_string().into()), (ADOPT_VARIABLE.into(), adopt)];
        let configured = environment_of(&self.config);
        configured.chain(given).chain(self.for_stream()).chain(passed_on()).collect()
    }

    /// On a stream no descriptor can be sent: the listeners are inherited.
    fn for_stream(&self) -> Vec<(OsString, OsString)> {
        if self.config.channel != Transport::Stream {
            return Vec::new();
        }
        let names = self.listening.as_ref().map(Listening::names).unwrap_or_default();
        let joined = names.iter().map(ListenerName::as_str).collect::<Vec<_>>().join(":");
        vec![
            (KIND_VARIABLE.into(), STREAM.into()),
            ("LISTEN_FDS".into(), names.len().to_string().into()),
            ("LISTEN_FDNAMES".into(), joined.into()),
        ]
    }
}

/// The environment that the file of a service gives it, as this process would: what comes from the handoff is not in it.
pub(crate) fn environment_of(
    config: &config::Service,
) -> impl Iterator<Item = (OsString, OsString)> + use<'_> {
    let inherited = inherited_environment()
        .filter(|(name, _)| name.to_str().is_none_or(|name| !config.env.contains_key(name)));
    inherited.chain(config.env.iter().map(|(name, value)| (name.into(), value.into())))
}

/// What every service and every command of a service file gets from the environment of this process.
pub(crate) fn inherited_environment() -> impl Iterator<Item = (OsString, OsString)> {
    INHERITED.iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)))
}

/// A process that was just started cannot have been mistaken for another, since nobody has waited for it yet.
pub(super) fn identity(pid: u32) -> Process {
    let (start_ticks, boot_id) = match ProcessId::of(pid) {
        Ok(found) => {
            (found.start_ticks, found.boot_id.parse::<uuid::Uuid>().unwrap_or_default().into_bytes())
        }
        Err(_) => (0, [0; 16]),
    };
    Process { pid, start_ticks, boot_id }
}
