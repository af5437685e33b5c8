//! One service: the machine, and everything that it acts on. Events come in one at a time; [`effects`] carries out
//! the actions of the machine.

mod awaiting;
mod compact;
mod deadline;
mod durable;
mod effects;
mod events;
mod handle;
mod last_lines;
mod log;
mod points;
mod policy;
mod problems;
mod process_failures;
mod recovery;
mod refusal;
mod rest;
mod timers;
mod unrecorded;
mod upkeep;

pub(in crate::supervisor) use deadline::in_ms;
pub(in crate::supervisor) use effects::{START_LIMIT, phase_of};
pub(in crate::supervisor) use handle::Handle;
pub(in crate::supervisor) use last_lines::with_lines;
pub(in crate::supervisor) use recovery::lacks_adoption_socket;
pub(in crate::supervisor) use upkeep::restore_current_version;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Instant;

use handoff_protocol::deadline::Millis;
use handoff_protocol::ids::{HandoffId, ServiceName};
use handoff_protocol::reason::Exit;
use handoff_protocol::record::Fact;
use handoff_protocol::supervisor::{Action, Event, Incumbent, Moment, Phase, Request, Supervisor};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::config;
use crate::control::Error;
use crate::control::api::Change;
use crate::journal::Journal;
use crate::supervisor::autostart::Autostart;
use crate::supervisor::daemon::Shared;
use crate::supervisor::input::Inputs;
use crate::supervisor::lane::Lanes;
use crate::supervisor::listening::{Listening, Upkeep};
use crate::supervisor::monitor::Monitor;
use crate::supervisor::operations::{Operation, Operations, Recorder, progress};
use crate::supervisor::process::{Processes, Token};
use crate::supervisor::reload::SeenFile;
use crate::supervisor::rollout::Versions;
use crate::supervisor::service_files::ServiceFileStamp;
use crate::supervisor::state::OpenedState;
use crate::supervisor::status_file::StatusKey;
use crate::sys::clock::as_ms;
use awaiting::NextStart;
use durable::PendingWrites;
use last_lines::LastLines;
use policy::policy;
use problems::Problems;
use process_failures::ServiceActivity;
use timers::Timers;

#[derive(Debug)]
pub(in crate::supervisor) struct Service {
    /// Names the service in each line that is logged while it works.
    pub(in crate::supervisor) span: tracing::Span,
    pub(in crate::supervisor) name: ServiceName,
    pub(in crate::supervisor) config: config::Service,
    pub(in crate::supervisor) machine: Supervisor,
    pub(in crate::supervisor) journal: Journal,
    pub(in crate::supervisor) listening: Option<Listening>,
    pub(in crate::supervisor) processes: Processes,
    pub(in crate::supervisor) operations: Operations,
    pub(in crate::supervisor) lanes: Lanes,
    pub(in crate::supervisor) versions: Versions,
    /// Whether the daemon is to start it, once what it depends on is ready.
    pub(in crate::supervisor) is_to_start: bool,
    /// What a person has decided about starts with the daemon.
    pub(in crate::supervisor) autostart: Autostart,
    /// What of that is on the disk.
    pub(in crate::supervisor) kept_autostart: Autostart,
    /// How the last process that served has ended.
    last_exit: Option<Exit>,
    /// What processes that failed have written at last.
    pub(in crate::supervisor) last_lines: LastLines,
    /// The watches over the listeners.
    pub(in crate::supervisor) upkeep: Upkeep,
    /// What the user should know.
    pub(in crate::supervisor) problems: Problems,
    /// The state of the service file when it was last read.
    pub(in crate::supervisor) file_look: Option<ServiceFileStamp>,
    /// What was read then, unless the service goes by it.
    pub(in crate::supervisor) file_seen: Option<SeenFile>,
    /// The settings of the serving process, as recorded for the next daemon.
    pub(in crate::supervisor) running_settings: Option<Rc<config::Service>>,
    /// The next attempt of a start.
    pub(in crate::supervisor) next_start: NextStart,
    pub(in crate::supervisor) shared: Rc<Shared>,
    this: Weak<RefCell<Service>>,
    /// The inbox, to which tasks report their findings.
    pub(in crate::supervisor) inputs: Inputs,
    /// What the subscribers know.
    pub(in crate::supervisor) published: Option<Change>,
    /// What the status file knows, or will know in a moment.
    pub(in crate::supervisor) noted_status: Option<StatusKey>,
    /// What is on its way to the disk.
    pub(in crate::supervisor) disk: PendingWrites,
    /// Notified when the service comes to rest, and when its journal is short again.
    pub(in crate::supervisor) settled: Rc<Notify>,
    pub(in crate::supervisor) timers: Timers,
    pub(in crate::supervisor) monitor: Monitor,
    tokens: u64,
    clock: Instant,
}

impl Service {
    /// `ways` lead to the service itself, and to its inbox.
    fn new(
        config: config::Service,
        opened: OpenedState,
        lanes: Lanes,
        shared: Rc<Shared>,
        ways: (Weak<RefCell<Self>>, Inputs),
    ) -> Self {
        let OpenedState { journal, store, origins, staged, autostart, problem, began_again } = opened;
        let recorder = Recorder::new(shared.dirs.service_state(&config.name), lanes.history.clone());
        let (this, inputs) = ways;
        Self {
            // Like an error, so that each line that is logged has the name.
            span: tracing::error_span!(target: "handoff", "service", name = %config.name),
            name: config.name.clone(),
            machine: Supervisor::new(config.mode, policy(&config)),
            config,
            journal,
            listening: None,
            processes: Processes::default(),
            operations: Operations::new(recorder),
            lanes,
            versions: Versions::new(store, staged, origins),
            is_to_start: false,
            autostart,
            kept_autostart: autostart,
            last_exit: None,
            last_lines: LastLines::default(),
            upkeep: Upkeep::default(),
            problems: Problems::at_opening(problem, began_again),
            file_look: None,
            file_seen: None,
            running_settings: None,
            next_start: NextStart::default(),
            shared,
            this,
            inputs,
            published: None,
            noted_status: None,
            disk: PendingWrites::default(),
            settled: Rc::default(),
            timers: Timers::default(),
            monitor: Monitor::default(),
            tokens: 0,
            clock: Instant::now(),
        }
    }
}

impl Service {
    /// Processes one event, and everything that follows from it.
    pub(in crate::supervisor) fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            tracing::debug!(?event, "event");
            let happened = self.at_event(&event);
            let actions = self.machine.step(self.moment(), event);
            self.carry_out(actions, &mut events);
            self.after_event(&happened);
        }
        self.report_restored_journal();
        self.adjust_watchdog();
        self.adjust_socket_paths();
        self.adjust_repairs();
        self.adjust_slot_watch();
        self.shared.systemd.show(&self.name, self.machine.is_wanted(), self.processes.incumbent().is_some());
        if self.is_settled() {
            self.settled.notify_waiters();
            self.compact_journal();
        }
    }

    pub(in crate::supervisor) fn moment(&self) -> Moment {
        Moment { now: self.now(), next_id: HandoffId::from_uuid(Uuid::now_v7()) }
    }

    /// The time on the clock of the machine.
    pub(in crate::supervisor) fn now(&self) -> Millis {
        as_ms(self.clock.elapsed())
    }

    /// Carries out the actions of one step.
    pub(in crate::supervisor) fn carry_out(&mut self, actions: Vec<Action>, events: &mut VecDeque<Event>) {
        // A rest says so itself, and why.
        let rests = actions.iter().any(|action| matches!(action, Action::Rest(..)));
        if !rests && self.machine.is_wanted() != self.journal.standing().wanted {
            self.note(Fact::Wanted { up: self.machine.is_wanted() });
        }
        let handoff = self.machine.handoff();
        // A client whose request is refused must not see the phase of another operation.
        let is_refused = actions.iter().any(|action| matches!(action, Action::Refuse(_)));
        let entered = if is_refused { None } else { self.show_phase() };
        for action in actions {
            tracing::debug!(?action, "action");
            self.at_action(&action);
            self.perform(action, events);
        }
        // Logged only now: in the gap between two processes, nothing waits for the log.
        if let Some(phase) = entered {
            tracing::info!(%handoff, phase);
        }
        self.end_attempt();
    }

    fn is_settled(&self) -> bool {
        matches!(self.machine.phase(), Phase::Stopped | Phase::Serving | Phase::Backoff)
            && self.machine.outgoing().is_none()
    }

    /// Sends a request to the machine. An upgrade is to the version at `path`. `operation` gets the answer, at once
    /// if the machine refuses.
    pub(in crate::supervisor) fn ask(
        &mut self,
        request: Request,
        path: Option<PathBuf>,
        mut operation: Operation,
    ) {
        if request == Request::Start && self.shared.is_leaving.get() {
            let error = Error::busy(&self.name, "the daemon ends");
            // The client may have hung up.
            let _ = operation.reply.send(Err(error));
            return;
        }
        self.record_request(&mut operation);
        let earlier = self.problems.request_begins(self.has_lasting_problem());
        let before = self.operations.request_begins(operation);
        let candidate = self.versions.candidate_for(path);
        self.feed(Event::Request(request));
        if !self.operations.request_ended(before) {
            self.versions.upgrades_to(candidate);
            self.problems.request_refused(earlier);
        }
    }

    /// Whether there is a problem that no request ends: the disk fails, or the process cannot be reached.
    fn has_lasting_problem(&self) -> bool {
        self.journal.latched().is_some()
            || self.journal.refused().is_some()
            || self.machine.incumbent() == Incumbent::Unreachable
    }

    /// What the user should know.
    pub(in crate::supervisor) fn problem_text(&self) -> Option<String> {
        let activity = match self.machine.phase() {
            Phase::Stopped | Phase::Stopping => ServiceActivity::Rests,
            _ if !self.machine.is_wanted() => ServiceActivity::Rests,
            _ if self.processes.incumbent().is_none() => ServiceActivity::Starts,
            _ => ServiceActivity::Serves,
        };
        // The daemon that saw it fail may be gone.
        self.problems.text(activity).or_else(|| self.has_failed().then(|| self.rest_text()))
    }

    /// The handoff in progress, or the last one, if there was one.
    pub(in crate::supervisor) fn handoff(&self) -> Option<HandoffId> {
        Some(self.machine.handoff()).filter(|handoff| *handoff != HandoffId::NIL)
    }

    /// Calls off the operation in progress for a client. That is no operation of its own, so the clock continues, and
    /// both operations are answered.
    pub(in crate::supervisor) fn call_off(&mut self, operation: Operation) {
        self.operations.call_off_begins(operation);
        self.feed(Event::Request(Request::Cancel));
        self.operations.call_off_ended();
    }

    /// Reports a new phase to the clients that wait. Returns the phase if it is new.
    fn show_phase(&mut self) -> Option<&'static str> {
        let (phase, share) = (self.phase_name(), self.machine.shares());
        let at_us = self.operations.show(phase, share)?;
        self.report_progress(phase, at_us, self.phase_detail());
        self.publish();
        Some(phase)
    }

    /// Reports progress to the clients that wait. `at_us` is on the clock of the timeline.
    pub(in crate::supervisor) fn report_progress(&self, phase: &str, at_us: u64, detail: Option<String>) {
        let (handoff, timeline) = (self.handoff(), self.operations.timeline());
        for operation in self.operations.all() {
            // The time before the machine was asked counts as well.
            let waited_us = operation.requested.as_ref().map_or(0, |asked| asked.waited_us(timeline));
            let at_us = waited_us.saturating_add(at_us);
            if let Some(sink) = &operation.progress {
                sink.send(progress(&self.name, handoff, phase, at_us, detail.clone()));
            }
        }
    }

    pub(in crate::supervisor) fn phase_name(&self) -> &'static str {
        match self.machine.phase() {
            Phase::Serving if self.machine.is_on_probation() => "probation",
            Phase::Serving if self.machine.outgoing().is_some() => "retiring",
            phase => phase.name(),
        }
    }

    /// Records the end of an attempt that is over: it must not stay in the journal.
    fn end_attempt(&mut self) {
        if !matches!(self.machine.phase(), Phase::Serving | Phase::Stopped | Phase::Backoff) {
            return;
        }
        self.disk.release();
        if let Some(attempt) = &self.journal.standing().attempt {
            let handoff = attempt.handoff;
            let text =
                || self.operations.last().filter(|last| last.handoff == Some(handoff))?.reason.as_deref();
            let reason = self.problems.failure().or_else(text).unwrap_or_default().to_owned();
            self.note(Fact::RolledBack { handoff, reason });
        }
        if self.machine.phase() == Phase::Serving {
            self.problems.serves();
        }
    }

    /// Records a fact whose loss a restart of the supervisor could tolerate.
    pub(in crate::supervisor) fn note(&mut self, fact: Fact) {
        if let Err(error) = self.journal.append(fact) {
            tracing::error!(%error, "not recorded");
            self.problems.not_recorded(&error);
        }
    }

    pub(in crate::supervisor) fn next_token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// A handle on this service, unless it is being dropped.
    pub(in crate::supervisor) fn handle(&self) -> Option<Handle> {
        self.this.upgrade().map(|service| Handle::of(service, self.inputs.clone()))
    }

    /// Adopts the current service file. It counts from the next process on.
    pub(in crate::supervisor) fn reconfigure(&mut self, config: config::Service) {
        self.machine.set_policy(config.mode, policy(&config));
        self.config = config;
        self.adjust_path_watch();
    }
}
