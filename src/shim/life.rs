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
pub(super) enum State {
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
        step: Step,
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
pub(super) enum Step {
    /// The serving process got the stop signal.
    Server,
    /// All other processes got it as well.
    Rest,
    /// SIGKILL was sent.
    Killed,
}

/// An event of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Event {
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
pub(super) enum Action {
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
pub(super) struct Life {
    state: State,
    /// The main process, whose end is the program's end; kept while the program is ending. For a daemon, the last
    /// process that ends.
    counts: Option<u32>,
    /// Its exit status.
    exit: Option<Exit>,
}

impl Default for Life {
    /// A program that was not started.
    fn default() -> Self {
        Self { state: State::Absent, counts: None, exit: None }
    }
}

impl Life {
    /// The current state.
    pub(super) fn state(self) -> State {
        self.state
    }

    /// The main process.
    pub(super) fn main(self) -> Option<u32> {
        match self.state {
            State::Spawned { main } | State::Known { main } | State::Adopted { main, .. } => Some(main),
            State::Absent | State::Daemonised { .. } | State::Leaving { .. } | State::Ended => None,
        }
    }

    /// The exit status of the main process, once it has ended.
    pub(super) fn exit(self) -> Option<Exit> {
        self.exit
    }

    /// Whether any part of the program exists.
    pub(super) fn lives(self) -> bool {
        !matches!(self.state, State::Absent | State::Ended)
    }

    /// Whether it runs without a request to end.
    pub(super) fn is_whole(self) -> bool {
        match self.state {
            State::Spawned { .. }
            | State::Known { .. }
            | State::Adopted { .. }
            | State::Daemonised { .. } => true,
            State::Absent | State::Leaving { .. } | State::Ended => false,
        }
    }

    /// Whether the service relies on it.
    pub(super) fn serves(self) -> bool {
        match self.state {
            State::Known { .. } => true,
            State::Adopted { serves, .. } | State::Daemonised { serves } | State::Leaving { serves, .. } => {
                serves
            }
            State::Absent | State::Spawned { .. } | State::Ended => false,
        }
    }

    /// Processes one event. Returns the actions to perform.
    pub(super) fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Started(main) => self.started(main),
            Event::Serves => self.serve(),
            Event::MainPid { pid, is_ours, sender_is_ours } => match (sender_is_ours, is_ours) {
                (false, _) => vec![Action::Refuse(Outsider::Sender)],
                (true, false) => vec![Action::Refuse(Outsider::Named)],
                (true, true) => self.adopt(pid),
            },
            Event::Exited(pid, exit) => self.exited(pid, exit),
            Event::Unserved(exit) => self.unserved(exit),
            Event::Empty => self.empty(),
            Event::Stop => self.stop(Step::Server, Action::AskServer),
            Event::Kill => self.stop(Step::Killed, Action::Kill),
            Event::Lingers => self.further(Step::Rest, Action::AskRest),
            Event::Late => self.further(Step::Killed, Action::Kill),
        }
    }

    fn started(&mut self, main: u32) -> Vec<Action> {
        match self.state {
            State::Absent | State::Ended => {
                *self = Self { state: State::Spawned { main }, counts: Some(main), exit: None };
                vec![Action::Watch(main)]
            }
            State::Spawned { .. }
            | State::Known { .. }
            | State::Adopted { .. }
            | State::Daemonised { .. }
            | State::Leaving { .. } => Vec::new(),
        }
    }

    fn serve(&mut self) -> Vec<Action> {
        self.state = match self.state {
            State::Spawned { main } => State::Known { main },
            State::Adopted { main, .. } => State::Adopted { main, serves: true },
            State::Daemonised { .. } => State::Daemonised { serves: true },
            state @ (State::Absent | State::Known { .. } | State::Leaving { .. } | State::Ended) => state,
        };
        Vec::new()
    }

    fn adopt(&mut self, pid: u32) -> Vec<Action> {
        match self.state {
            _ if self.main() == Some(pid) => Vec::new(),
            State::Spawned { .. }
            | State::Known { .. }
            | State::Adopted { .. }
            | State::Daemonised { .. } => {
                let state = State::Adopted { main: pid, serves: self.serves() };
                *self = Self { state, counts: Some(pid), exit: None };
                vec![Action::Watch(pid)]
            }
            State::Absent | State::Leaving { .. } | State::Ended => Vec::new(),
        }
    }

    fn exited(&mut self, pid: u32, exit: Option<Exit>) -> Vec<Action> {
        // If its exit status is known already, it ended before the request.
        let is_last_word = self.counts.is_none_or(|counts| counts == pid && self.exit.is_none());
        if is_last_word && self.lives() {
            self.exit = exit;
        }
        if self.main() != Some(pid) {
            return Vec::new();
        }
        let serves = self.serves();
        match self.state {
            State::Spawned { .. } | State::Known { .. } if exit.is_some_and(|exit| exit.code == Some(0)) => {
                (self.state, self.counts) = (State::Daemonised { serves }, None);
                Vec::new()
            }
            _ => {
                self.state = State::Leaving { step: Step::Rest, wanted: false, serves };
                vec![Action::AskRest]
            }
        }
    }

    /// A daemon has no main process: its listeners decide.
    fn unserved(&mut self, exit: Option<Exit>) -> Vec<Action> {
        match self.state {
            State::Daemonised { serves: true } => {
                self.state = State::Leaving { step: Step::Rest, wanted: false, serves: true };
                self.exit = exit;
                vec![Action::AskRest]
            }
            State::Absent
            | State::Spawned { .. }
            | State::Known { .. }
            | State::Adopted { .. }
            | State::Daemonised { serves: false }
            | State::Leaving { .. }
            | State::Ended => Vec::new(),
        }
    }

    fn empty(&mut self) -> Vec<Action> {
        let failed = match self.state {
            State::Absent | State::Ended => return Vec::new(),
            State::Leaving { wanted, serves, .. } => serves && !wanted,
            State::Spawned { .. }
            | State::Known { .. }
            | State::Adopted { .. }
            | State::Daemonised { .. } => self.serves(),
        };
        self.state = State::Ended;
        if failed { vec![Action::Fail] } else { Vec::new() }
    }

    fn stop(&mut self, step: Step, action: Action) -> Vec<Action> {
        match self.state {
            State::Absent | State::Ended => Vec::new(),
            State::Spawned { .. }
            | State::Known { .. }
            | State::Adopted { .. }
            | State::Daemonised { .. } => {
                self.state = State::Leaving { step, wanted: true, serves: self.serves() };
                vec![action]
            }
            State::Leaving { step: before, serves, .. } => {
                self.state = State::Leaving { step: before, wanted: true, serves };
                self.further(step, action)
            }
        }
    }

    /// Advances to a later step, never back.
    fn further(&mut self, step: Step, action: Action) -> Vec<Action> {
        match self.state {
            State::Leaving { step: before, wanted, serves } if before.is_before(step) => {
                self.state = State::Leaving { step, wanted, serves };
                vec![action]
            }
            State::Absent
            | State::Spawned { .. }
            | State::Known { .. }
            | State::Adopted { .. }
            | State::Daemonised { .. }
            | State::Leaving { .. }
            | State::Ended => Vec::new(),
        }
    }
}

impl Step {
    fn is_before(self, other: Self) -> bool {
        (self as u8) < other as u8
    }
}

#[cfg(test)]
mod explore;
#[cfg(test)]
mod tests;
