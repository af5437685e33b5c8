//! One state of everything that takes part: the supervisor, the processes, their channels, the data lock, the disk.
//!
//! There is no clock. A timer that is armed may fire whenever nothing else can happen, and, at the cost of one unit of
//! the budget, also before that: whoever it waits for was slow.

use handoff_protocol::deadline::{Deadline, Policy, Stragglers};
use handoff_protocol::ids::HandoffId;
use handoff_protocol::incumbent::{self, Incumbent};
use handoff_protocol::message::{FromService, Mode, ToService};
use handoff_protocol::successor::{self, Successor};
use handoff_protocol::supervisor::{Lasting, Supervisor};

use crate::defects::Defect;

/// At most these many processes of the service exist at a time.
pub const PROCESSES: usize = 3;

/// What is the same in all states of one walk.
#[derive(Clone)]
pub struct Model {
    pub mode: Mode,
    pub stragglers: Stragglers,
    pub budget: Budget,
    pub defect: Option<Defect>,
}

impl Model {
    pub fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    /// Deaths and everlasting freezes of any party.
    pub deaths: u8,
    /// Code of the service that fails, a channel that breaks, a disk that fails.
    pub faults: u8,
    /// Timers that fire although somebody is at work.
    pub slow: u8,
    /// Requests that come while another is under way.
    pub asks: u8,
    /// Signs of life.
    pub chatter: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Chair {
    Runs,
    Frozen,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    Runs,
    Frozen,
    /// SIGKILL was sent. It does nothing any more, but is not gone.
    Killed,
    /// Gone; the supervisor does not know it yet.
    Dead,
}

/// The code of the service that a process can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    Start,
    Drain,
    Seal,
    Resume,
    Open,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Part {
    /// Not welcomed yet.
    Stranger {
        greeted: bool,
    },
    Successor(Successor),
    Incumbent(Incumbent),
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Letter {
    Welcome,
    Message(ToService),
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Process {
    pub part: Part,
    pub life: Life,
    /// The handoff that it was started in.
    pub born_in: HandoffId,
    pub slot: u8,
    pub inbox: Vec<(HandoffId, Letter)>,
    pub outbox: Vec<(HandoffId, FromService)>,
    /// Its end of the channel is open.
    pub up: bool,
    /// The supervisor's end of the channel is open.
    pub down: bool,
    /// It was closed by a process that had not read everything: the supervisor sees that before what is in the outbox.
    pub reset: bool,
    pub closed_seen: bool,
    pub eof_seen: bool,
    pub lease: bool,
    pub waits: bool,
    pub code: Option<Code>,
    pub next: Option<Code>,
    pub accepts: bool,
    /// Its data is open: from the start of the code that opens it to the release of the lock.
    pub data_open: bool,
    /// Its seal code succeeded since it last opened its data.
    pub sealed: bool,
    /// The handoff in which it said `Sealed`.
    pub said_sealed: Option<HandoffId>,
    /// It was told to begin.
    pub begun: bool,
    /// It said that it cannot go on.
    pub unfit: bool,
    /// It sent something that is not a message.
    pub babbled: bool,
    /// SIGTERM was sent.
    pub terminated: bool,
}

impl Process {
    pub fn new(born_in: HandoffId, slot: u8) -> Self {
        Self {
            part: Part::Stranger { greeted: false },
            life: Life::Runs,
            born_in,
            slot,
            inbox: Vec::new(),
            outbox: Vec::new(),
            up: true,
            down: true,
            reset: false,
            closed_seen: false,
            eof_seen: false,
            lease: false,
            waits: false,
            code: None,
            next: None,
            accepts: false,
            data_open: false,
            sealed: false,
            said_sealed: None,
            begun: false,
            unfit: false,
            babbled: false,
            terminated: false,
        }
    }

    pub fn runs(&self) -> bool {
        self.life == Life::Runs
    }

    /// It serves clients now.
    pub fn serves(&self) -> bool {
        self.runs() && self.accepts
    }

    /// Nothing is wrong with it.
    pub fn is_healthy(&self) -> bool {
        self.runs() && self.up && self.down && !self.unfit && !self.babbled
    }

    /// It serves, or will without being told anything more.
    pub fn is_entitled(&self) -> bool {
        match &self.part {
            Part::Stranger { .. } => false,
            Part::Successor(machine) => match machine.state() {
                successor::State::Locking | successor::State::Opening | successor::State::Serving => true,
                successor::State::Starting { .. }
                | successor::State::Parked
                | successor::State::Incumbent
                | successor::State::Leaving
                | successor::State::Gone => false,
            },
            Part::Incumbent(machine) => match machine.state() {
                incumbent::State::Leaving | incumbent::State::Gone => false,
                incumbent::State::Sealing { leave, .. } | incumbent::State::Reopening { leave } => !leave,
                incumbent::State::Serving
                | incumbent::State::Draining { .. }
                | incumbent::State::Sealed
                | incumbent::State::Failed
                | incumbent::State::Waiting => true,
            },
        }
    }
}

/// Which process plays which part for the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Roles {
    pub incumbent: Option<usize>,
    pub successor: Option<usize>,
    pub retiree: Option<usize>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub chair: Chair,
    pub machine: Supervisor,
    pub roles: Roles,
    /// A bit per armed deadline.
    pub timers: u16,
    pub writing: Option<(HandoffId, Lasting)>,
    /// The journal takes no more.
    pub disk_failed: bool,
    /// The handoff whose generation is current, and the one before it, as the disk knows them.
    pub current: HandoffId,
    pub previous: HandoffId,
    /// The slot that new connections go to.
    pub steering: u8,
    pub listening: bool,
    pub processes: [Option<Process>; PROCESSES],
    pub lock: Option<usize>,
    /// How many handoff ids were used.
    pub ids: u8,
    /// How many requests wait for their report.
    pub waiting: u8,
    pub wanted: bool,
    /// When the supervisor went, somebody was there who has to serve.
    pub orphans: bool,
    /// Besides whoever died, a process was lost that could have served.
    pub lost_another: bool,
    /// Some process sent something that is not a message.
    pub babbled: bool,
    pub budget: Budget,
}

impl World {
    /// Nothing runs, and nothing was asked for.
    pub fn stopped(model: &Model) -> Self {
        Self {
            chair: Chair::Runs,
            machine: Self::supervisor(model),
            roles: Roles::default(),
            timers: 0,
            writing: None,
            disk_failed: false,
            current: HandoffId::NIL,
            previous: HandoffId::NIL,
            steering: 0,
            listening: true,
            processes: [None, None, None],
            lock: None,
            ids: 0,
            waiting: 0,
            wanted: false,
            orphans: false,
            lost_another: false,
            babbled: false,
            budget: Budget::default(),
        }
    }

    pub fn supervisor(model: &Model) -> Supervisor {
        Supervisor::new(model.mode, Policy { stragglers: model.stragglers, ..Policy::default() })
    }

    /// An id that was never used.
    pub fn fresh(&self) -> HandoffId {
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

    /// All processes that were not waited for.
    pub fn existing(&self) -> impl Iterator<Item = (usize, &Process)> {
        self.processes.iter().enumerate().filter_map(|(at, process)| Some((at, process.as_ref()?)))
    }

    pub fn arm(&mut self, deadline: Deadline, armed: bool) {
        let bit = 1 << deadline as u16;
        self.timers = if armed { self.timers | bit } else { self.timers & !bit };
    }

    pub fn is_armed(&self, deadline: Deadline) -> bool {
        self.timers & (1 << deadline as u16) != 0
    }

    /// A process ends: the kernel closes its end of the channel and releases its lock.
    pub fn end(&mut self, at: usize) {
        if self.lock == Some(at) {
            self.lock = None;
        }
        let process = self.process_mut(at);
        process.life = Life::Dead;
        process.reset |= !process.inbox.is_empty();
        process.inbox.clear();
        process.up = false;
        process.data_open = false;
        (process.lease, process.waits, process.terminated) = (false, false, false);
        (process.code, process.next) = (None, None);
        // Nobody is left who would notice.
        if self.chair != Chair::Runs {
            self.processes[at] = None;
        }
    }

    /// The supervisor takes no more part. What it knew does not matter any more.
    pub fn lose_supervisor(&mut self, model: &Model, chair: Chair) {
        self.wanted = self.machine.is_wanted();
        let orphans = self.existing().any(|(_, process)| process.runs() && process.is_entitled());
        self.orphans = orphans;
        self.chair = chair;
        self.machine = Self::supervisor(model);
        self.roles = Roles::default();
        (self.timers, self.waiting, self.writing) = (0, 0, None);
        for slot in &mut self.processes {
            slot.take_if(|process| process.life == Life::Dead);
            if let Some(process) = slot {
                process.outbox.clear();
                process.down &= chair != Chair::Dead;
            }
        }
    }
}

pub const DEADLINES: [Deadline; 12] = [
    Deadline::Greet,
    Deadline::Prepare,
    Deadline::Drain,
    Deadline::Seal,
    Deadline::Begin,
    Deadline::Silence,
    Deadline::Leave,
    Deadline::Resume,
    Deadline::Backoff,
    Deadline::RetireDrain,
    Deadline::RetireSeal,
    Deadline::RetireExit,
];
