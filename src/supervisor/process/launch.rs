//! Starting a process of a service.

mod directory;
mod environment;
mod start_context;
mod unclaimed;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use handoff_protocol::frame::Transport;
use handoff_protocol::ids::{HandoffId, ID_VARIABLE, ListenerName};
use handoff_protocol::record::{Binary, Fact, Process as Identity};
use handoff_protocol::supervisor::{Event, Phase, Target};
use tokio::task::{AbortHandle, spawn_local};

use super::{Process, ProcessParts, Token};
use crate::config;
use crate::crash_points::{crash_point, passed_on};
use crate::journal::unix_ms;
use crate::shim::{self, shim_config, shim_config::ShimConfig};
use crate::supervisor::input::Input;
use crate::supervisor::keeper::LogGuard;
use crate::supervisor::listening::Listening;
use crate::supervisor::rollout::{find, origin_of};
use crate::supervisor::service::{START_LIMIT, Service, in_ms};
use crate::sys::channel::Channel;
use crate::sys::files::check_room_for_files;
use crate::sys::inherit::{ADOPT_VARIABLE, KIND_VARIABLE, STREAM};
use crate::sys::log_pipe::{Stream, log_pipe};
use crate::sys::process::ProcessId;
use crate::sys::spawn::SpawnSpec;
use directory::ProcessDirectory;
pub(in crate::supervisor) use directory::remove_directory;
use environment::Environment;
pub(crate) use environment::{environment_of, inherited_environment};
use start_context::{StartContext, StartSources};
pub(in crate::supervisor) use unclaimed::UnclaimedProcess;
use unclaimed::start;

impl Service {
    /// Finds the program for a process, then starts it.
    pub(in crate::supervisor) fn spawn(&mut self, id: HandoffId, target: Target) {
        let path = self.path_of(target);
        let stored = self.stored_binary(&path).zip(self.versions.store().version_at(&path));
        let (inputs, restorer) = (self.inputs.clone(), self.restorer());
        let (sources, lane) =
            (StartSources::of(&self.config, &self.shared.dirs, id), self.lanes.programs.clone());
        let (at, what) = (path.clone(), path.display().to_string());
        let (hashes, store) = (self.shared.hashes.clone(), Arc::clone(self.versions.store()));
        let version = stored.as_ref().map(|(_, version)| version.clone());
        let (instead, named_by_file) = (self.instead(target), self.config.binary.clone());
        let (named, looks) = (instead.clone(), self.lanes.comparisons.clone());
        // A candidate was checked when it was requested.
        let is_known = target == Target::Committed;
        let in_place = is_known.then(|| self.in_place(&path, &self.config.binary)).flatten();
        // The version may have been removed from the store by hand.
        let found = self.lanes.programs.run_within(START_LIMIT, what, move || match version {
            Some(version) => Ok((store.is_whole(&version), None)),
            None => {
                in_place.map_or(Ok(()), |in_place| in_place.check_start())?;
                find(&hashes, &at, named.as_deref()).map(|binary| (true, Some(binary)))
            }
        });
        spawn_local(async move {
            let found = found.await.and_then(|found| found);
            if let (Ok((false, _)), Some((_, version))) = (&found, &stored) {
                let put_back = restorer.restore_version(version.clone()).await;
                tracing::error!("{}", put_back.unwrap_or_else(|error| error));
            }
            let binary = found.map(|(_, found)| found.or(stored.map(|(binary, _)| binary)));
            if let (Ok(Some(binary)), Some(_)) = (&binary, &instead)
                && Path::new(&binary.path) != path
                && let Some(origin) = origin_of(looks, binary.clone(), instead, named_by_file).await
            {
                inputs.send(Input::Origin(origin));
            }
            let binary = binary.map_err(|error| format!("{}: {error}", path.display()));
            let context = sources.prepare_in(&lane).await;
            inputs.send(Input::Located(LocatedProgram { id, target, binary, context }));
        });
    }

    /// Starts a process from the program that was found.
    pub(in crate::supervisor) fn found(
        &mut self,
        LocatedProgram { id, target, binary, context }: LocatedProgram,
    ) {
        if self.machine.handoff() != id || self.machine.phase() != Phase::Greeting {
            return;
        }
        let mut events = VecDeque::new();
        match (binary, context) {
            (Ok(Some(binary)), Ok(context)) => self.launch(id, target, &binary, context, &mut events),
            (Ok(None), _) => {}
            (Err(error), _) | (_, Err(error)) => events.push_back(Event::SpawnFailed(error)),
        }
        for event in events {
            self.feed(event);
        }
    }

    /// Records the intent and starts the process.
    pub(in crate::supervisor) fn launch(
        &mut self,
        id: HandoffId,
        target: Target,
        binary: &Binary,
        context: StartContext,
        events: &mut VecDeque<Event>,
    ) {
        // Near its limits, the daemon keeps things as they are. A service that is down gets what is left.
        if let Err(error) = self.reserve()
            && target == Target::Candidate
        {
            return events.push_back(Event::SpawnFailed(error));
        }
        self.record_launch(id, binary);
        let generation = self.journal.standing().generation().next();
        let intent = Fact::Intent { handoff: id, generation, binary: binary.clone() };
        if let Err(error) = self.journal.append(intent) {
            self.problems.not_recorded(&error);
            // An upgrade can wait for a better disk. A service that is down cannot.
            if target == Target::Candidate {
                return events.push_back(Event::SpawnFailed(error.to_string()));
            }
        }
        if let Some(ends) = in_ms(self.machine.time_left(self.moment())) {
            self.note(Fact::Deadline { handoff: id, ends });
        }
        if let Err(error) = self.try_launch(id, binary, context) {
            events.push_back(Event::SpawnFailed(error.to_string()));
        }
    }

    /// Reserves what an upgrade and its commit need. An error says what is lacking.
    fn reserve(&mut self) -> Result<(), String> {
        check_room_for_files(self.files_of_a_start()).map_err(|error| error.to_string())?;
        let held = self.lanes.journal.hold();
        self.disk.reserve(held.map_err(|error| format!("the commit could not be written: {error}"))?);
        Ok(())
    }

    fn try_launch(&mut self, id: HandoffId, binary: &Binary, context: StartContext) -> io::Result<()> {
        self.open_listeners().map_err(io::Error::other)?;
        let slot = self.slot_for_successor().map_err(io::Error::other)?;
        self.start_on(slot, id, binary, context).inspect_err(|_| self.retire_slot(slot))
    }

    /// Gives up the process that is being started. If it starts after all, it is ended.
    pub(in crate::supervisor) fn give_up_start(&mut self) {
        if let Some(starting) = self.processes.give_up_start() {
            starting.task.abort();
            self.retire_slot(starting.prepared.slot);
        }
    }

    fn start_on(
        &mut self,
        slot: u64,
        id: HandoffId,
        binary: &Binary,
        mut context: StartContext,
    ) -> io::Result<()> {
        crash_point!("supervisor/launch/slot");
        let (channel, theirs) = match self.config.channel {
            Transport::Packets => Channel::pair()?,
            Transport::Stream => Channel::stream_pair()?,
        };
        let ((out, stdout), (err, stderr)) = (log_pipe()?, log_pipe()?);
        crash_point!("supervisor/launch/before-log");
        let generation = Some(self.journal.standing().generation().next());
        let log = self.log(generation, None, [(Some(Stream::Out), out), (Some(Stream::Err), err)]);
        let (program, args, env) = self.command(id, binary, &mut context)?;
        let checked = self.config.adapter.is_foreign().then(|| PathBuf::from(&binary.path));
        let spec = SpawnSpec {
            binary: program,
            args,
            env: env.into_iter().collect(),
            working_dir: self.config.working_dir.clone(),
            stdout,
            stderr,
            channel: Some(theirs),
            files_limit: Some(self.shared.files_limit),
        };
        crash_point!("supervisor/launch/before-spawn");
        let listening = self.listening.as_ref().filter(|_| self.config.channel == Transport::Stream);
        let listeners = listening.map(|listening| listening.fds(slot)).unwrap_or_default();
        let names = listening.map(Listening::names).unwrap_or_default();
        let copies =
            listeners.iter().zip(names).map(|(fd, name)| Ok((name.to_string(), fd.try_clone_to_owned()?)));
        let copies = copies.collect::<io::Result<Vec<_>>>()?;
        // A shim gives them to its program.
        let attributes = Some(context.attributes).filter(|_| checked.is_none());
        let attributes = attributes.filter(|attributes| !attributes.is_empty());
        let marks = self.shared.keeper.labels_lines();
        let what = format!("{} or its working directory {}", binary.path, self.config.working_dir.display());
        let spawned = self
            .lanes
            .processes
            .run_within(START_LIMIT, what, move || start(checked, spec, copies, attributes, marks));
        let (token, inputs) = (self.next_token(), self.inputs.clone());
        let task = spawn_local(async move {
            inputs.send(Input::Spawned(token, spawned.await.and_then(|spawned| spawned)));
        });
        let (binary, directory) = (binary.clone(), context.directory);
        let settings = Rc::new(self.config.clone());
        let prepared = PreparedProcess { token, id, slot, binary, settings, log, channel, directory };
        self.processes.begin_start(StartingProcess { prepared, task: task.abort_handle() });
        Ok(())
    }

    /// Handles the end of a start. A process whose start was given up ends here.
    pub(in crate::supervisor) fn spawned(&mut self, token: Token, spawned: io::Result<UnclaimedProcess>) {
        let Some(StartingProcess { prepared, .. }) = self.processes.end_start(token) else { return };
        let slot = prepared.slot;
        if let Err(error) = spawned.and_then(|spawned| self.started(prepared, spawned)) {
            self.retire_slot(slot);
            self.feed(Event::SpawnFailed(error.to_string()));
        }
    }

    /// Takes over a started process. If it cannot be watched, it is ended: it would serve beside the next one.
    fn started(&mut self, prepared: PreparedProcess, unclaimed: UnclaimedProcess) -> io::Result<()> {
        let PreparedProcess { token, id, slot, binary, settings, log, channel, directory } = prepared;
        crash_point!("supervisor/launch/spawned");
        let spawned = unclaimed.copy()?;
        let process = identity(spawned.pid);
        self.shared.keeper.keep_process(&self.name, id, spawned.pidfd.as_fd());
        self.shared.keeper.label(&log, spawned.pid);
        self.note(Fact::Spawned { handoff: id, process: process.clone() });
        tracing::info!(handoff = %id, pid = spawned.pid, binary = binary.path, "started");
        let parts = ProcessParts {
            token,
            handoff: id,
            identity: process,
            binary,
            settings: Some(settings),
            started_at_unix_ms: self.started_at(id),
            slot,
            log,
            channel: Some(channel),
            pidfd: spawned.pidfd,
            trace: self.trace_of(id),
            lane: self.lanes.processes.clone(),
        };
        let process = Process::new(parts, self.inputs.clone());
        let forget = |_: &io::Error| self.shared.keeper.forget_process(&self.name, id);
        let process = process.inspect_err(forget)?;
        self.remember_writer(&process);
        self.processes.started(process);
        unclaimed.claim();
        if let Some(directory) = directory {
            directory.keep();
        }
        Ok(())
    }

    /// The start time that the next daemon will report. If the journal takes no records, no other daemon will report
    /// one.
    fn started_at(&self, id: HandoffId) -> u64 {
        let attempt = self.journal.standing().attempt.as_ref().filter(|attempt| attempt.handoff == id);
        attempt.map(|attempt| attempt.started_unix_ms).filter(|at| *at > 0).unwrap_or_else(unix_ms)
    }

    /// What to execute: the program itself, or a shim that runs it.
    fn command(
        &self,
        id: HandoffId,
        binary: &Binary,
        context: &mut StartContext,
    ) -> io::Result<(PathBuf, Vec<OsString>, Environment)> {
        let (path, mut env) = (PathBuf::from(&binary.path), std::mem::take(&mut context.environment));
        env.extend(self.variables_of_handoff(id));
        if let Some(path) = context.adoption_path.take() {
            env.insert(ADOPT_VARIABLE.into(), path.into());
        }
        if !self.config.adapter.is_foreign() {
            return Ok((path, self.config.args.iter().map(OsString::from).collect(), env));
        }
        let state = self.shared.dirs.service_state(&self.name);
        let mut shim_config = ShimConfig::new(&self.config, path, state, self.shared.dirs.adopt_socket(id));
        shim_config.attributes = context.attributes.clone();
        let listening = self.listening.as_ref();
        shim_config.first_binds =
            listening.map(|listening| listening.first_binds(&self.config.listeners)).unwrap_or_default();
        env.insert(shim_config::VARIABLE.into(), shim_config.to_text()?.into());
        Ok((PathBuf::from("/proc/self/exe"), vec![shim::VERB.into(), self.name.as_str().into()], env))
    }

    /// The file that a shim's program and all its descendants have open.
    pub(in crate::supervisor) fn trace_of(&self, id: HandoffId) -> Option<PathBuf> {
        self.config
            .adapter
            .is_foreign()
            .then(|| self.shared.dirs.adopt_socket(id).with_extension(shim::TRACE))
    }

    /// Records the connections that the program of a sealed process had, as its shim reports.
    pub(in crate::supervisor) fn note_connections(&mut self, handoff: HandoffId) {
        if self.config.adapter.is_foreign()
            && let Some(connections) = shim::connections_left(&self.shared.dirs.adopt_socket(handoff))
        {
            self.operations.timeline_mut().note_connections(connections);
        }
    }

    /// Records the old process at the beginning of an upgrade.
    pub(in crate::supervisor) fn note_old(&mut self) {
        if let Some(pid) = self.processes.incumbent().map(|process| process.pid()) {
            let program = self.pid_of_program();
            self.operations.timeline_mut().note_old(pid, program);
        }
    }

    /// Whether the old version was started again, and serves after an attempt that was rolled back.
    pub(in crate::supervisor) fn was_restarted(&self) -> bool {
        let (program, process) = (self.pid_of_program(), self.processes.incumbent());
        let is_another =
            process.is_some_and(|process| self.operations.timeline().is_another(process.pid(), program));
        // An attempt that began under an earlier daemon: that one saw the process before.
        let started_at = program.and_then(|_| self.serves_since(program));
        is_another
            || self.operations.requested().any(|asked| started_at.is_some_and(|at| at > asked.at_unix_ms))
    }

    /// The descriptors that a start needs: pipes, channel and pidfd, each of them also on record, the listeners of
    /// another slot, and some for clients.
    fn files_of_a_start(&self) -> u64 {
        28 + 2 * self.config.listeners.len() as u64
    }

    fn variables_of_handoff(&self, id: HandoffId) -> Vec<(OsString, OsString)> {
        let adopt = self.shared.dirs.adopt_socket(id).into_os_string();
        let given = [(ID_VARIABLE.into(), id.to_string().into()), (ADOPT_VARIABLE.into(), adopt)];
        given.into_iter().chain(self.for_stream()).chain(passed_on()).collect()
    }

    /// A stream cannot carry descriptors, so the listeners are inherited.
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

/// A process that is being started.
#[derive(Debug)]
pub(in crate::supervisor) struct StartingProcess {
    prepared: PreparedProcess,
    task: AbortHandle,
}

impl StartingProcess {
    pub(in crate::supervisor) fn token(&self) -> Token {
        self.prepared.token
    }

    /// Its slot. No process accepts there yet, and it must not be retired.
    pub(in crate::supervisor) fn slot(&self) -> u64 {
        self.prepared.slot
    }
}

/// The result of the search for the program of a process.
pub(in crate::supervisor) struct LocatedProgram {
    id: HandoffId,
    target: Target,
    binary: Result<Option<Binary>, String>,
    context: Result<StartContext, String>,
}

/// What a process gets, and what is known of it before it exists.
#[derive(Debug)]
struct PreparedProcess {
    token: Token,
    id: HandoffId,
    slot: u64,
    binary: Binary,
    settings: Rc<config::Service>,
    log: LogGuard,
    channel: Channel,
    directory: Option<ProcessDirectory>,
}

/// The identity of a process that was just started. The pid cannot belong to another process yet, because nothing has
/// reaped this one.
pub(in crate::supervisor) fn identity(pid: u32) -> Identity {
    let (start_ticks, boot_id) = match ProcessId::of(pid) {
        Ok(found) => {
            (found.start_ticks, found.boot_id.parse::<uuid::Uuid>().unwrap_or_default().into_bytes())
        }
        Err(_) => (0, [0; 16]),
    };
    Identity { pid, start_ticks, boot_id }
}
