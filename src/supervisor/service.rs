//! One service: the machine, and everything that it acts on. Events come in, one at a time; [`perform`](super::perform)
//! carries out what the machine says.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use handoff_protocol::deadline::Deadline;
use handoff_protocol::ids::{HandoffId, ServiceName};
use handoff_protocol::record::Fact;
use handoff_protocol::supervisor::{Action, Event, Moment, Phase, Request, Supervisor};
use tokio::sync::{Mutex, Notify};
use tokio::task::AbortHandle;
use uuid::Uuid;

use super::canary::Measured;
use super::daemon::Shared;
use super::listening::Listening;
use super::liveness::Vigil;
use super::party::{Party, Serial};
use super::policy::policy;
use super::preparation::Preparation;
use super::recording::{Asked, Recorder};
use super::timeline::{Operation, Timeline, progress};
use super::watching::Watching;
use crate::config;
use crate::control::api;
use crate::journal::Journal;
use crate::store::Store;

/// A service that tasks can reach.
#[derive(Debug, Clone)]
pub(super) struct Handle(Rc<RefCell<Service>>);

#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: ServiceName,
    pub(super) config: config::Service,
    pub(super) machine: Supervisor,
    pub(super) journal: Journal,
    pub(super) listening: Option<Listening>,
    pub(super) incumbent: Option<Party>,
    pub(super) successor: Option<Party>,
    pub(super) retiree: Option<Party>,
    pub(super) candidate: Option<PathBuf>,
    pub(super) operations: Vec<Operation>,
    pub(super) incoming: Option<Operation>,
    pub(super) timeline: Timeline,
    pub(super) last: Option<api::Outcome>,
    pub(super) recorder: Recorder,
    pub(super) store: Arc<Store>,
    /// Whoever has it brings a version in, or removes some.
    pub(super) turn: Arc<Mutex<()>>,
    /// What is brought in at the moment.
    pub(super) preparation: Option<Rc<Preparation>>,
    /// What the first start is started from.
    pub(super) first: Option<PathBuf>,
    /// What looks out for new versions at a path.
    pub(super) lookout: Option<Watching>,
    pub(super) problem: Option<String>,
    /// Whether the upgrade under way was begun by an earlier daemon, and is only to be committed.
    pub(super) completes: bool,
    pub(super) shared: Rc<Shared>,
    pub(super) this: Weak<RefCell<Service>>,
    /// Told when the service comes to rest, and when its journal is short again.
    pub(super) settled: Rc<Notify>,
    pub(super) is_compacting: bool,
    /// The descriptors of the message at hand.
    pub(super) fds: Vec<OwnedFd>,
    pub(super) timers: HashMap<Deadline, AbortHandle>,
    /// The watch over a process.
    pub(super) vigil: Option<Vigil>,
    /// Why the process that serves is killed by it.
    pub(super) verdict: Option<String>,
    /// What the share of a successor was measured to be.
    pub(super) measured: Option<Measured>,
    serials: u64,
    shown: &'static str,
    shown_share: u8,
    clock: Instant,
}

impl Handle {
    pub(super) fn new(config: config::Service, journal: Journal, store: Store, shared: Rc<Shared>) -> Self {
        let recorder = Recorder::new(shared.dirs.service_state(&config.name));
        Self(Rc::new_cyclic(|this| {
            RefCell::new(Service {
                name: config.name.clone(),
                machine: Supervisor::new(config.mode, policy(&config)),
                config,
                journal,
                listening: None,
                incumbent: None,
                successor: None,
                retiree: None,
                candidate: None,
                operations: Vec::new(),
                incoming: None,
                timeline: Timeline::begin(),
                last: None,
                recorder,
                store: Arc::new(store),
                turn: Arc::default(),
                preparation: None,
                first: None,
                lookout: None,
                problem: None,
                completes: false,
                shared,
                this: this.clone(),
                settled: Rc::default(),
                is_compacting: false,
                fds: Vec::new(),
                timers: HashMap::new(),
                vigil: None,
                verdict: None,
                measured: None,
                serials: 0,
                shown: "",
                shown_share: 0,
                clock: Instant::now(),
            })
        }))
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Service) -> T) -> T {
        look(&mut self.0.borrow_mut())
    }

    /// Completes when the service is stopped, or rests although it was not asked to.
    pub(super) async fn settled(&self) {
        loop {
            let settled = self.with(|service| Rc::clone(&service.settled));
            let waiting = settled.notified();
            if self.with(|service| service.is_settled()) {
                return;
            }
            waiting.await;
        }
    }
}

impl Service {
    /// Lets one thing happen, and what follows from it.
    pub(super) fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            tracing::debug!(service = %self.name, ?event, "event");
            let happened = self.at_event(&event);
            let actions = self.machine.step(self.moment(), event);
            self.carry_out(actions, &mut events);
            self.after_event(&happened);
        }
        self.adjust_vigil();
        self.shared.systemd.show(&self.name, self.machine.is_wanted(), self.incumbent.is_some());
        if self.is_settled() {
            self.settled.notify_waiters();
            self.compact_journal();
        }
    }

    pub(super) fn moment(&self) -> Moment {
        Moment {
            now: u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX),
            fresh: HandoffId::from_uuid(Uuid::now_v7()),
        }
    }

    /// Does what the machine says after one step.
    pub(super) fn carry_out(&mut self, actions: Vec<Action>, events: &mut VecDeque<Event>) {
        if self.machine.is_wanted() != self.journal.standing().wanted {
            self.note(Fact::Wanted { up: self.machine.is_wanted() });
        }
        let handoff = self.machine.handoff();
        let entered = self.show_phase();
        for action in actions {
            tracing::debug!(service = %self.name, ?action, "action");
            self.at_action(&action);
            self.perform(action, events);
        }
        // Not before: in the gap between two processes nobody waits for the log.
        if let Some(phase) = entered {
            tracing::info!(service = %self.name, %handoff, phase);
        }
        self.end_attempt();
    }

    fn is_settled(&self) -> bool {
        matches!(self.machine.phase(), Phase::Stopped | Phase::Serving | Phase::Backoff)
            && self.machine.retiree().is_none()
    }

    /// Somebody asks. The answer goes to `operation`, at once if the machine refuses.
    pub(super) fn ask(&mut self, request: Request, mut operation: Operation) {
        if request == Request::Cancel {
            return self.call_off(operation);
        }
        self.record_request(&mut operation);
        let before = std::mem::replace(&mut self.timeline, Timeline::begin());
        let shown = std::mem::take(&mut self.shown);
        self.incoming = Some(operation);
        self.feed(Event::Request(request));
        match self.incoming.take() {
            Some(operation) => self.operations.push(operation),
            None if self.shown.is_empty() => {
                self.timeline = before;
                self.shown = shown;
            }
            None => {}
        }
    }

    /// Somebody calls off what is under way. It is no operation of its own, so its clock goes on, and both are answered.
    fn call_off(&mut self, operation: Operation) {
        self.incoming = Some(operation);
        self.feed(Event::Request(Request::Cancel));
        self.operations.extend(self.incoming.take());
    }

    /// Tells those who wait that a phase began. Gives the phase, if it is a new one.
    fn show_phase(&mut self) -> Option<&'static str> {
        let (phase, share) = (self.phase_name(), self.machine.shares());
        if phase == self.shown && share == self.shown_share {
            return None;
        }
        (self.shown, self.shown_share) = (phase, share);
        self.timeline.enter(phase);
        self.tell_progress(phase, self.phase_detail());
        Some(phase)
    }

    pub(super) fn tell_progress(&self, phase: &str, detail: Option<String>) {
        let (handoff, at_us) = (self.machine.handoff(), self.timeline.age_us());
        for operation in self.operations.iter().chain(&self.incoming) {
            // What came before the machine was asked counts.
            let at_us = operation.asked.as_ref().map_or(at_us, Asked::elapsed_us);
            if let Some(sink) = &operation.progress {
                sink.send(progress(&self.name, handoff, phase, at_us, detail.clone()));
            }
        }
    }

    pub(super) fn phase_name(&self) -> &'static str {
        match self.machine.phase() {
            Phase::Recovering => "recovering",
            Phase::Stopped => "stopped",
            Phase::Backoff => "backoff",
            Phase::Greeting => "greeting",
            Phase::Warming => "warming",
            Phase::Draining => "draining",
            Phase::Sealing => "sealing",
            Phase::Beginning => "beginning",
            Phase::Probing => "probing",
            Phase::Canary => "canary",
            Phase::Committing => "committing",
            Phase::Reaping => "reaping",
            Phase::Resuming => "resuming",
            Phase::Reverting => "reverting",
            Phase::Serving if self.machine.is_on_probation() => "probation",
            Phase::Serving if self.machine.retiree().is_some() => "retiring",
            Phase::Serving => "serving",
            Phase::Stopping => "stopping",
        }
    }

    /// The journal must not keep an attempt that is over.
    fn end_attempt(&mut self) {
        if !matches!(self.machine.phase(), Phase::Serving | Phase::Stopped | Phase::Backoff) {
            return;
        }
        if let Some(attempt) = &self.journal.standing().attempt {
            let fact = Fact::RolledBack {
                handoff: attempt.handoff,
                reason: self.last.as_ref().and_then(|last| last.reason.clone()).unwrap_or_default(),
            };
            self.note(fact);
        }
    }

    /// Records a fact whose loss a restart of the supervisor could live with.
    pub(super) fn note(&mut self, fact: Fact) {
        if let Err(error) = self.journal.append(fact) {
            tracing::error!(service = %self.name, %error, "not recorded");
            self.problem = Some(error.to_string());
        }
    }

    /// After a disk was full: takes records again, and says how things stand now.
    pub(super) fn mend_journal(&mut self) {
        match self.journal.mend() {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => return tracing::error!(service = %self.name, %error, "still not mended"),
        }
        tracing::info!(service = %self.name, "the journal takes records again");
        self.problem = None;
        self.note(Fact::Wanted { up: self.machine.is_wanted() });
        let handoff = self.machine.handoff();
        let generation = self.journal.standing().generation().next();
        let known = self.journal.standing().current.as_ref().and_then(|current| current.process.as_ref());
        let facts = match &self.incumbent {
            Some(party) if known != Some(&party.process) => [
                Fact::Intent { handoff, generation, binary: party.binary.clone() },
                Fact::Spawned { handoff, process: party.process.clone() },
                Fact::Committed { handoff },
            ],
            Some(_) | None => return,
        };
        for fact in facts {
            self.note(fact);
        }
    }

    pub(super) fn next_serial(&mut self) -> Serial {
        self.serials += 1;
        Serial(self.serials)
    }

    /// A handle on this service, unless it is going.
    pub(super) fn handle(&self) -> Option<Handle> {
        self.this.upgrade().map(Handle)
    }

    /// Takes over what the service file says now. It counts from the next process on.
    pub(super) fn reconfigure(&mut self, config: config::Service) {
        self.machine.set_policy(config.mode, policy(&config));
        self.config = config;
        self.adjust_watch();
    }
}
