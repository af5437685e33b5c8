//! A process of the service: its machine, its channels, and what it holds.

use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{FromService, ToService};
use handoff_protocol::process::{Process as Machine, ProcessState, Role};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessStatus {
    Runs,
    Frozen,
    /// SIGKILL was sent. It does nothing more, but is not gone.
    Killed,
    /// Gone. The supervisor does not know it yet.
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
pub enum Membership {
    /// Not welcomed yet.
    Stranger {
        greeted: bool,
    },
    Welcomed(Machine),
}

impl Membership {
    pub fn state(&self) -> Option<ProcessState> {
        match self {
            Self::Stranger { .. } => None,
            Self::Welcomed(machine) => Some(machine.state()),
        }
    }

    pub fn is_incumbent(&self) -> bool {
        matches!(self, Self::Welcomed(machine) if machine.role() == Role::Incumbent)
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Delivery {
    Welcome,
    Message(ToService),
}

/// The connection between a process and a supervisor.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Channel {
    pub inbox: Vec<(HandoffId, Delivery)>,
    pub outbox: Vec<(HandoffId, FromService)>,
    /// The end of the process is open.
    pub up: bool,
    /// The end of the supervisor is open.
    pub down: bool,
    /// It was closed by a process with unread messages: the supervisor sees that before the messages in the outbox.
    pub reset: bool,
    pub closed_seen: bool,
    pub eof_seen: bool,
}

impl Channel {
    pub const OPEN: Self = Self {
        inbox: Vec::new(),
        outbox: Vec::new(),
        up: true,
        down: true,
        reset: false,
        closed_seen: false,
        eof_seen: false,
    };

    pub fn is_open(&self) -> bool {
        self.up && self.down
    }

    /// The supervisor sees next that it is closed.
    pub fn ends(&self) -> bool {
        let readable = self.outbox.is_empty() || self.reset;
        !self.up && self.down && !self.eof_seen && readable
    }

    /// The process ends.
    pub fn end(&mut self) {
        self.reset |= !self.inbox.is_empty();
        self.inbox.clear();
        self.up = false;
    }

    /// The supervisor ends.
    pub fn orphan(&mut self) {
        self.outbox.clear();
        self.down = false;
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Process {
    pub membership: Membership,
    pub status: ProcessStatus,
    /// The handoff that started it.
    pub born_in: HandoffId,
    pub slot: u8,
    pub channel: Channel,
    /// The channels of other supervisors that it has not examined yet, the oldest first.
    pub calls: Vec<Channel>,
    pub lease: bool,
    /// The lease ended while the process was frozen.
    pub overdue: bool,
    pub waits: bool,
    /// It got the lock while it was frozen.
    pub granted: bool,
    pub code: Option<Code>,
    pub next: Option<Code>,
    pub accepts: bool,
    /// Its data is open: from the start of the code that opens it to the release of the lock.
    pub data_open: bool,
    /// Its seal code succeeded since it last opened its data.
    pub sealed: bool,
    /// The handoff in which it said `Sealed`.
    pub said_sealed: Option<HandoffId>,
    /// The last state that it handed over, and the handoff.
    pub handed: Option<(HandoffId, u32)>,
    /// The last state that was handed to it, and the handoff.
    pub given: Option<(HandoffId, u32)>,
    /// It received `Begin`.
    pub begun: bool,
    /// It has passed its last probe.
    pub probed: bool,
    /// The number of shares of the connections that it got from the current supervisor.
    pub shares: u8,
    /// It reported that it cannot continue.
    pub unfit: bool,
    /// It sent something that is not a message.
    pub babbled: bool,
    /// The current supervisor cannot reach it, or found it silent.
    pub mute: bool,
    /// SIGTERM was sent.
    pub terminated: bool,
}

impl Process {
    pub fn new(born_in: HandoffId, slot: u8) -> Self {
        Self {
            membership: Membership::Stranger { greeted: false },
            status: ProcessStatus::Runs,
            born_in,
            slot,
            channel: Channel::OPEN,
            calls: Vec::new(),
            lease: false,
            overdue: false,
            waits: false,
            granted: false,
            code: None,
            next: None,
            accepts: false,
            data_open: false,
            sealed: false,
            said_sealed: None,
            handed: None,
            given: None,
            begun: false,
            probed: false,
            shares: 0,
            unfit: false,
            babbled: false,
            mute: false,
            terminated: false,
        }
    }

    /// The channel of the current supervisor.
    pub fn line(&self) -> &Channel {
        self.calls.last().unwrap_or(&self.channel)
    }

    pub fn line_mut(&mut self) -> &mut Channel {
        self.calls.last_mut().unwrap_or(&mut self.channel)
    }

    /// It works for the supervisor, and gives signs of life.
    pub fn is_at_work(&self) -> bool {
        self.runs()
            && self.calls.is_empty()
            && self.channel.is_open()
            && match &self.membership {
                Membership::Stranger { .. } => false,
                Membership::Welcomed(machine) => machine.is_working(),
            }
    }

    pub fn runs(&self) -> bool {
        self.status == ProcessStatus::Runs
    }

    /// It serves clients now.
    pub fn serves(&self) -> bool {
        self.runs() && self.accepts
    }

    /// It has no problem.
    pub fn is_healthy(&self) -> bool {
        self.runs() && self.line().is_open() && !self.unfit && !self.babbled && !self.mute
    }

    /// It serves, or will serve without another message.
    pub fn is_entitled(&self) -> bool {
        let sent_away =
            |delivery: &(HandoffId, Delivery)| matches!(delivery.1, Delivery::Message(ToService::Abort(_)));
        if self.channel.inbox.iter().any(sent_away) {
            return false;
        }
        match self.membership.state() {
            None => false,
            Some(ProcessState::Sealing { leave, .. } | ProcessState::Reopening { leave }) => !leave,
            Some(
                ProcessState::Locking
                | ProcessState::Opening
                | ProcessState::Ready
                | ProcessState::Serving
                | ProcessState::Draining { .. }
                | ProcessState::Sealed
                | ProcessState::Failed
                | ProcessState::Waiting,
            ) => true,
            Some(
                ProcessState::Starting { .. }
                | ProcessState::Parked
                | ProcessState::Dismissed
                | ProcessState::Leaving
                | ProcessState::Gone,
            ) => false,
        }
    }
}
