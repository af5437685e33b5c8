//! The life of a program, as a table of states and events: which process is its main process, which signal is due, and
//! whether its end was wanted. Pids come from outside and are only compared.
//!
//! Invariants, whatever the processes do and claim:
//! - only processes of the tree are believed, and only processes of the tree can be named;
//! - if the main process ends without a request, the program has failed, even if other parts still run; a daemon, which
//!   has no main process, has failed when no process holds a listener anymore;
//! - each process gets the stop signal once, and SIGKILL only when its time is over or the program is dismissed;
//! - every end is known: a program that was asked to end has ended, or was killed.
//!
//! ```text
//!            Serves            MainPid, from any of the others
//!  Spawned ──────────▶ Known ──────────────────────────────────▶ Adopted
//!     │                  │
//!     └──────────────────┴── the first ends with 0, others live ▶ Daemonised
//!
//!  each of these four ── the main process ends otherwise; Stop; Kill; Unserved, of a daemon ──▶ Leaving
//!  each of these five ── Empty ──▶ Ended
//! ```

use crate::sys::process::Exit;

/// The state of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LifeState {
    /// It was not started.
    Absent,
    /// The first process runs and is the main process. Nothing relies on the program yet.
    Spawned {
        /// The first process.
        main: u32,
    },
    /// The same, and the service relies on the program.
    Known {
        /// The first process.
        main: u32,
    },
    /// Another process is the main process: a process of the program has named it (`MAINPID`).
    Adopted {
        /// The process that was named last.
        main: u32,
        /// Whether the service relies on the program.
        serves: bool,
    },
    /// The first process has exited with 0 and left others: a daemon without a named main process.
    Daemonised {
        /// Whether the service relies on the program.
        serves: bool,
    },
    /// It is ending.
    Leaving {
        /// How far it was pushed.
        step: EndStep,
        /// Whether the end was requested; otherwise the main process ended by itself.
        wanted: bool,
        /// Whether the service relied on the program.
        serves: bool,
    },
    /// Nothing of it is left.
    Ended,
}

/// How a program was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum EndStep {
    /// The serving process got the stop signal.
    Server,
    /// All other processes got it as well.
    Rest,
    /// SIGKILL was sent.
    Killed,
}

/// An event of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LifeEvent {
    /// The program was started, as this process.
    Started(u32),
    /// It is ready: from now on the service relies on it.
    Serves,
    /// A process was named as the main process.
    MainPid {
        /// The process.
        pid: u32,
        /// Whether that process is part of the program.
        is_ours: bool,
        /// Whether the sender is part of the program.
        sender_is_ours: bool,
    },
    /// A process ended. Only its parent knows the exit status.
    Exited(u32, Option<Exit>),
    /// A process ended, and no remaining process holds a listener, although one did before.
    Unserved(Option<Exit>),
    /// No process is left.
    Empty,
    /// A request to end.
    Stop,
    /// The processes that got the stop signal have ended, but others have not.
    Lingers,
    /// The time to end is over.
    Late,
    /// The program is dismissed.
    Kill,
}

/// Actions, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LifeAction {
    /// Publish this process as the main process, and watch it.
    Watch(u32),
    /// Report that a `MAINPID` was ignored, and why.
    Refuse(Outsider),
    /// Send the stop signal to the serving process.
    AskServer,
    /// Send the stop signal to all processes that have not received it.
    AskRest,
    /// Send SIGKILL to all processes.
    Kill,
    /// The program has failed: the shim must end in the same way.
    Fail,
}

/// The process that is not part of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Outsider {
    /// The sender of the message.
    Sender,
    /// The process that was named.
    Named,
}

/// The machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Lifecycle {
    state: LifeState,
    /// The main process, whose end is the program's end; kept while the program is ending. For a daemon, the last
    /// process that ends.
    decisive: Option<u32>,
    /// Its exit status.
    exit: Option<Exit>,
}

impl Default for Lifecycle {
    /// A program that was not started.
    fn default() -> Self {
        Self { state: LifeState::Absent, decisive: None, exit: None }
    }
}

impl Lifecycle {
    /// The current state.
    pub(super) fn state(self) -> LifeState {
        self.state
    }

    /// The main process.
    pub(super) fn main(self) -> Option<u32> {
        match self.state {
            LifeState::Spawned { main } | LifeState::Known { main } | LifeState::Adopted { main, .. } => {
                Some(main)
            }
            LifeState::Absent
            | LifeState::Daemonised { .. }
            | LifeState::Leaving { .. }
            | LifeState::Ended => None,
        }
    }

    /// The exit status of the main process, once it has ended.
    pub(super) fn exit(self) -> Option<Exit> {
        self.exit
    }

    /// Whether any part of the program exists.
    pub(super) fn lives(self) -> bool {
        !matches!(self.state, LifeState::Absent | LifeState::Ended)
    }

    /// Whether it runs without a request to end.
    pub(super) fn is_whole(self) -> bool {
        match self.state {
            LifeState::Spawned { .. }
            | LifeState::Known { .. }
            | LifeState::Adopted { .. }
            | LifeState::Daemonised { .. } => true,
            LifeState::Absent | LifeState::Leaving { .. } | LifeState::Ended => false,
        }
    }

    /// Whether the service relies on it.
    pub(super) fn serves(self) -> bool {
        match self.state {
            LifeState::Known { .. } => true,
            LifeState::Adopted { serves, .. }
            | LifeState::Daemonised { serves }
            | LifeState::Leaving { serves, .. } => serves,
            LifeState::Absent | LifeState::Spawned { .. } | LifeState::Ended => false,
        }
    }

    /// Processes one event. Returns the actions to perform.
    pub(super) fn step(&mut self, event: LifeEvent) -> Vec<LifeAction> {
        match event {
            LifeEvent::Started(main) => self.started(main),
            LifeEvent::Serves => self.serve(),
            LifeEvent::MainPid { pid, is_ours, sender_is_ours } => match (sender_is_ours, is_ours) {
                (false, _) => vec![LifeAction::Refuse(Outsider::Sender)],
                (true, false) => vec![LifeAction::Refuse(Outsider::Named)],
                (true, true) => self.adopt(pid),
            },
            LifeEvent::Exited(pid, exit) => self.exited(pid, exit),
            LifeEvent::Unserved(exit) => self.unserved(exit),
            LifeEvent::Empty => self.empty(),
            LifeEvent::Stop => self.stop(EndStep::Server, LifeAction::AskServer),
            LifeEvent::Kill => self.stop(EndStep::Killed, LifeAction::Kill),
            LifeEvent::Lingers => self.further(EndStep::Rest, LifeAction::AskRest),
            LifeEvent::Late => self.further(EndStep::Killed, LifeAction::Kill),
        }
    }

    fn started(&mut self, main: u32) -> Vec<LifeAction> {
        match self.state {
            LifeState::Absent | LifeState::Ended => {
                *self = Self { state: LifeState::Spawned { main }, decisive: Some(main), exit: None };
                vec![LifeAction::Watch(main)]
            }
            LifeState::Spawned { .. }
            | LifeState::Known { .. }
            | LifeState::Adopted { .. }
            | LifeState::Daemonised { .. }
            | LifeState::Leaving { .. } => Vec::new(),
        }
    }

    fn serve(&mut self) -> Vec<LifeAction> {
        self.state = match self.state {
            LifeState::Spawned { main } => LifeState::Known { main },
            LifeState::Adopted { main, .. } => LifeState::Adopted { main, serves: true },
            LifeState::Daemonised { .. } => LifeState::Daemonised { serves: true },
            state @ (LifeState::Absent
            | LifeState::Known { .. }
            | LifeState::Leaving { .. }
            | LifeState::Ended) => state,
        };
        Vec::new()
    }

    fn adopt(&mut self, pid: u32) -> Vec<LifeAction> {
        match self.state {
            _ if self.main() == Some(pid) => Vec::new(),
            LifeState::Spawned { .. }
            | LifeState::Known { .. }
            | LifeState::Adopted { .. }
            | LifeState::Daemonised { .. } => {
                let state = LifeState::Adopted { main: pid, serves: self.serves() };
                *self = Self { state, decisive: Some(pid), exit: None };
                vec![LifeAction::Watch(pid)]
            }
            LifeState::Absent | LifeState::Leaving { .. } | LifeState::Ended => Vec::new(),
        }
    }

    fn exited(&mut self, pid: u32, exit: Option<Exit>) -> Vec<LifeAction> {
        // If its exit status is known already, it ended before the request.
        let is_last_word = self.decisive.is_none_or(|counts| counts == pid && self.exit.is_none());
        if is_last_word && self.lives() {
            self.exit = exit;
        }
        if self.main() != Some(pid) {
            return Vec::new();
        }
        let serves = self.serves();
        match self.state {
            LifeState::Spawned { .. } | LifeState::Known { .. }
                if exit.is_some_and(|exit| exit.code == Some(0)) =>
            {
                (self.state, self.decisive) = (LifeState::Daemonised { serves }, None);
                Vec::new()
            }
            _ => {
                self.state = LifeState::Leaving { step: EndStep::Rest, wanted: false, serves };
                vec![LifeAction::AskRest]
            }
        }
    }

    /// A daemon has no main process: its listeners decide.
    fn unserved(&mut self, exit: Option<Exit>) -> Vec<LifeAction> {
        match self.state {
            LifeState::Daemonised { serves: true } => {
                self.state = LifeState::Leaving { step: EndStep::Rest, wanted: false, serves: true };
                self.exit = exit;
                vec![LifeAction::AskRest]
            }
            LifeState::Absent
            | LifeState::Spawned { .. }
            | LifeState::Known { .. }
            | LifeState::Adopted { .. }
            | LifeState::Daemonised { serves: false }
            | LifeState::Leaving { .. }
            | LifeState::Ended => Vec::new(),
        }
    }

    fn empty(&mut self) -> Vec<LifeAction> {
        let failed = match self.state {
            LifeState::Absent | LifeState::Ended => return Vec::new(),
            LifeState::Leaving { wanted, serves, .. } => serves && !wanted,
            LifeState::Spawned { .. }
            | LifeState::Known { .. }
            | LifeState::Adopted { .. }
            | LifeState::Daemonised { .. } => self.serves(),
        };
        self.state = LifeState::Ended;
        if failed { vec![LifeAction::Fail] } else { Vec::new() }
    }

    fn stop(&mut self, step: EndStep, action: LifeAction) -> Vec<LifeAction> {
        match self.state {
            LifeState::Absent | LifeState::Ended => Vec::new(),
            LifeState::Spawned { .. }
            | LifeState::Known { .. }
            | LifeState::Adopted { .. }
            | LifeState::Daemonised { .. } => {
                self.state = LifeState::Leaving { step, wanted: true, serves: self.serves() };
                vec![action]
            }
            LifeState::Leaving { step: before, serves, .. } => {
                self.state = LifeState::Leaving { step: before, wanted: true, serves };
                self.further(step, action)
            }
        }
    }

    /// Advances to a later step, never back.
    fn further(&mut self, step: EndStep, action: LifeAction) -> Vec<LifeAction> {
        match self.state {
            LifeState::Leaving { step: before, wanted, serves } if before.is_before(step) => {
                self.state = LifeState::Leaving { step, wanted, serves };
                vec![action]
            }
            LifeState::Absent
            | LifeState::Spawned { .. }
            | LifeState::Known { .. }
            | LifeState::Adopted { .. }
            | LifeState::Daemonised { .. }
            | LifeState::Leaving { .. }
            | LifeState::Ended => Vec::new(),
        }
    }
}

impl EndStep {
    fn is_before(self, other: Self) -> bool {
        (self as u8) < other as u8
    }
}

#[cfg(test)]
mod explore;
#[cfg(test)]
mod tests;
