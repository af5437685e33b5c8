//! One state of the whole model: the supervisor, the processes, their channels, the data lock, the disk.
//!
//! There is no clock. An armed timer may fire when nothing else can happen. At the cost of one unit of the budget it
//! may fire earlier: then the process that it waits for was slow.

use handoff_protocol::deadline::{CanaryStep, Deadline, Policy, Stragglers};
use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::Mode;
use handoff_protocol::reason::Role;
use handoff_protocol::restart::{Restart, When};
use handoff_protocol::supervisor::{Action, DurableFact, Phase, Supervisor, WatchReason};

use super::defects::Defect;
use super::journal::Journal;
use super::process::{Membership, Process, ProcessStatus};

/// Maximum number of simultaneous processes of the service.
pub const PROCESSES: usize = 4;

/// The constants of one walk.
#[derive(Clone)]
pub struct Model {
    pub mode: Mode,
    pub stragglers: Stragglers,
    pub probes: bool,
    pub trial: Trial,
    pub liveness: bool,
    /// Whether a service that has died, or has failed to start twice, stays down.
    pub rests: bool,
    pub budget: Budget,
    pub defect: Option<Defect>,
}

impl Model {
    pub fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    pub fn policy(&self) -> Policy {
        let canary = [CanaryStep { permille: 50, time_ms: 1 }, CanaryStep { permille: 500, time_ms: 1 }];
        let (steps, probation_ms) = match self.trial {
            Trial::None => (0, 0),
            Trial::Canary => (2, 0),
            Trial::Probation => (0, 1),
            Trial::CanaryAndProbation => (1, 1),
        };
        Policy {
            stragglers: self.stragglers,
            probes: self.probes,
            canary: canary[..steps].to_vec(),
            probation_ms,
            liveness: self.liveness,
            // One of the models is that of a shim.
            seal_ends: self.trial == Trial::Probation && !self.probes,
            restart: match self.rests {
                true => Restart { when: When::Never, budget: 2, ..Restart::default() },
                false => Restart { budget: 0, ..Restart::default() },
            },
            ..Policy::default()
        }
    }

    /// The policy for the leftovers of an earlier supervisor.
    pub fn policy_for_left(&self) -> Policy {
        let policy = self.policy();
        match self.has(Defect::TrustLeft) {
            true => Policy { probes: false, canary: Vec::new(), probation_ms: 0, ..policy },
            false => policy,
        }
    }

    /// Whether a lost supervisor is followed by another one.
    pub fn returns(&self) -> bool {
        self.budget.returns > 0
    }
}

/// The trials of a new process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    None,
    /// Two steps.
    Canary,
    Probation,
    /// One step of a canary, and a probation.
    CanaryAndProbation,
}

impl Trial {
    pub fn has_probation(self) -> bool {
        matches!(self, Self::Probation | Self::CanaryAndProbation)
    }
}

/// The remaining failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    /// Deaths and endless freezes of any role.
    pub deaths: u8,
    /// Failing code of the service, a breaking channel, a failing disk.
    pub faults: u8,
    /// Timers that fire although a process is at work.
    pub slow: u8,
    /// Requests during another one.
    pub asks: u8,
    /// Signs of life.
    pub chatter: u8,
    /// Freezes that end.
    pub thaws: u8,
    /// States to hand over.
    pub states: u8,
    /// New supervisors that start before everything else is at rest.
    pub returns: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SupervisorStatus {
    Runs,
    Frozen,
    Dead,
}

/// The process of each role, for the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Roles {
    pub incumbent: Option<usize>,
    pub successor: Option<usize>,
    pub outgoing: Option<usize>,
}

impl Roles {
    pub fn all(&self) -> impl Iterator<Item = usize> {
        [self.incumbent, self.successor, self.outgoing].into_iter().flatten()
    }

    pub fn contain(&self, at: usize) -> bool {
        self.all().any(|other| other == at)
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub supervisor: SupervisorStatus,
    pub machine: Supervisor,
    pub roles: Roles,
    /// A bit per armed deadline.
    pub timers: u32,
    /// The deadlines that passed while the supervisor was frozen.
    pub overdue: u32,
    /// The remaining actions of a frozen supervisor.
    pub pending: Vec<Action>,
    pub writing: Option<(HandoffId, DurableFact)>,
    /// Probes that have not been answered.
    pub probes: Vec<HandoffId>,
    /// The current write is never answered.
    pub disk_hangs: bool,
    /// The journal accepts nothing more.
    pub disk_failed: bool,
    pub journal: Journal,
    /// The slot that new connections go to.
    pub steering: u8,
    /// The slot that gets a share of them.
    pub share: Option<u8>,
    /// The process that stands by, as long as it must.
    pub standby: Option<usize>,
    /// The handoff of the process that was taken back after its commit.
    pub sent_back: Option<HandoffId>,
    /// The handoff of the process that was found not to be well.
    pub condemned: Option<HandoffId>,
    pub listening: bool,
    pub processes: [Option<Process>; PROCESSES],
    pub lock: Option<usize>,
    /// Number of used handoff ids.
    pub ids: u8,
    /// Number of requests that wait for their report.
    pub waiting: u8,
    /// Whether a process that must serve existed when the supervisor went.
    pub orphans: bool,
    /// Whether, in addition to the deaths, a process was lost that could have served.
    pub lost_another: bool,
    /// Whether a process sent something that is not a message.
    pub babbled: bool,
    /// Whether a process was started without a journal entry, because the disk failed.
    pub unknown: bool,
    /// Whether the time of the upgrade has passed since another supervisor started, before its decision.
    pub late: bool,
    /// Whether a process as in `unknown` still exists, and another supervisor has started, which does not know of it.
    pub lost_track: bool,
    pub budget: Budget,
}

impl World {
    /// Nothing runs, and there was no request.
    pub fn stopped(model: &Model) -> Self {
        Self {
            supervisor: SupervisorStatus::Runs,
            machine: Self::supervisor(model),
            roles: Roles::default(),
            timers: 0,
            overdue: 0,
            pending: Vec::new(),
            writing: None,
            probes: Vec::new(),
            disk_hangs: false,
            disk_failed: false,
            journal: Journal::default(),
            steering: 0,
            share: None,
            standby: None,
            sent_back: None,
            condemned: None,
            listening: true,
            processes: [const { None }; PROCESSES],
            lock: None,
            ids: 0,
            waiting: 0,
            orphans: false,
            lost_another: false,
            babbled: false,
            unknown: false,
            late: false,
            lost_track: false,
            budget: Budget::default(),
        }
    }

    pub fn supervisor(model: &Model) -> Supervisor {
        Supervisor::new(model.mode, model.policy())
    }

    /// An unused id.
    pub fn next_id(&self) -> HandoffId {
        let mut bytes = [0; 16];
        bytes[15] = self.ids + 1;
        HandoffId::from_bytes(bytes)
    }

    pub fn process(&self, at: usize) -> &Process {
        self.processes[at].as_ref().expect("the process exists")
    }

    pub fn process_mut(&mut self, at: usize) -> &mut Process {
        self.processes[at].as_mut().expect("the process exists")
    }

    /// All processes that were not reaped.
    pub fn existing(&self) -> impl Iterator<Item = (usize, &Process)> {
        self.processes.iter().enumerate().filter_map(|(at, process)| Some((at, process.as_ref()?)))
    }

    /// The number of processes, without those that the supervisor does not know of, because it died while it started
    /// them. They have no data and no listener, and end when they see that it is gone.
    pub fn count(&self) -> usize {
        let began = |process: &Process| !matches!(process.membership, Membership::Stranger { .. });
        self.existing().filter(|(at, process)| self.roles.contain(*at) || began(process)).count()
    }

    pub fn arm(&mut self, deadline: Deadline, armed: bool) {
        let bit = 1 << deadline as u32;
        self.timers = if armed { self.timers | bit } else { self.timers & !bit };
        self.overdue &= !bit;
    }

    pub fn is_armed(&self, deadline: Deadline) -> bool {
        self.timers & (1 << deadline as u32) != 0
    }

    pub fn is_overdue(&self, deadline: Deadline) -> bool {
        self.overdue & (1 << deadline as u32) != 0
    }

    /// Whether signs of life, which the model does not contain as such, keep this deadline from passing.
    pub fn is_put_off(&self, deadline: Deadline) -> bool {
        let at_work = |at: Option<usize>| at.is_some_and(|at| self.process(at).is_at_work());
        match deadline {
            Deadline::AnswerIncumbent => at_work(self.roles.incumbent),
            Deadline::AnswerSuccessor => at_work(self.roles.successor),
            // A disk answers long before.
            Deadline::Record => self.writing.is_some() && !self.disk_hangs,
            _ => false,
        }
    }

    /// Whether a process could continue if it got a processor.
    pub fn is_busy(&self, role: Role) -> bool {
        let at = match role {
            Role::Incumbent => self.roles.incumbent,
            Role::Successor => self.roles.successor,
        };
        at.is_some_and(|at| self.process(at).runs())
    }

    /// Whether there is a message or an end that the supervisor has not seen.
    pub fn is_something_to_hear(&self) -> bool {
        self.existing().any(|(_, process)| {
            let line = process.line();
            !line.outbox.is_empty() || line.ends() || process.status == ProcessStatus::Dead
        })
    }

    /// The process that the probe of this handoff is for, if its answer still matters.
    pub fn probed(&self, id: HandoffId) -> Option<&Process> {
        let waits = self.machine.phase() == Phase::Probing && self.machine.handoff() == id;
        waits.then(|| self.roles.successor.map(|at| self.process(at))).flatten()
    }

    /// The process that is watched.
    pub fn watched(&self) -> Option<&Process> {
        let at = match self.machine.watched()?.1 {
            WatchReason::Share(_) => self.roles.successor,
            WatchReason::Probation | WatchReason::Liveness => self.roles.incumbent,
        };
        at.map(|at| self.process(at))
    }

    /// Whether the supervisor exists, or will continue.
    pub fn is_supervised(&self) -> bool {
        match self.supervisor {
            SupervisorStatus::Runs => true,
            SupervisorStatus::Frozen => self.budget.thaws > 0,
            SupervisorStatus::Dead => false,
        }
    }

    /// A process ends: the kernel closes its end of the channel and releases its lock.
    pub fn end(&mut self, at: usize) {
        if self.lock == Some(at) {
            self.lock = None;
        }
        let process = self.process_mut(at);
        process.status = ProcessStatus::Dead;
        process.channel.end();
        for call in &mut process.calls {
            call.end();
        }
        process.data_open = false;
        (process.lease, process.overdue) = (false, false);
        (process.waits, process.granted, process.terminated) = (false, false, false);
        (process.code, process.next) = (None, None);
        // No supervisor is left to notice.
        if !self.is_supervised() {
            self.processes[at] = None;
        }
    }
}

pub const DEADLINES: [Deadline; 20] = [
    Deadline::Greet,
    Deadline::Prepare,
    Deadline::Drain,
    Deadline::Seal,
    Deadline::Begin,
    Deadline::Probe,
    Deadline::Record,
    Deadline::Canary,
    Deadline::Probation,
    Deadline::Silence,
    Deadline::Leave,
    Deadline::Resume,
    Deadline::Backoff,
    Deadline::RetireDrain,
    Deadline::RetireQuiet,
    Deadline::RetireSeal,
    Deadline::RetireExit,
    Deadline::AnswerIncumbent,
    Deadline::AnswerSuccessor,
    Deadline::Recover,
];
