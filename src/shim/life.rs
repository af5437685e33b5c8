//! What becomes of a program, as a table of states and events: which of its processes counts, which signal is due, and whether its end
//! was wanted. Pids come from the effects and are compared, nothing else.
//!
//! What must hold, whatever the processes do and say:
//! - only a process of the tree is believed, and only one of the tree is named;
//! - when the process that counts ends and nobody asked for it, the program has failed, whatever else of it still runs; of a daemon, in
//!   which no process counts, when none has a listener any more;
//! - each process gets the stop signal once, and SIGKILL only when the time is over or the program is not wanted at all;
//! - every end is known: a program that was asked to end has ended, or was killed.
//!
//! ```text
//!            Serves            MainPid, from any of the others
//!  Spawned ──────────▶ Known ──────────────────────────────────▶ Adopted
//!     │                  │
//!     └──────────────────┴── the first ends with 0, others live ▶ Daemonised
//!
//!  each of these four ── the one that counts ends otherwise; Stop; Kill; Unserved, of a daemon ──▶ Leaving
//!  each of these five ── Empty ──▶ Ended
//! ```

use crate::sys::process::Exit;

/// Where a program stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// It was not started.
    Absent,
    /// The first process runs, and counts. Nobody relies on the program yet.
    Spawned {
        /// The first process.
        main: u32,
    },
    /// Likewise, and somebody relies on it.
    Known {
        /// The first process.
        main: u32,
    },
    /// Another process counts: a process of the program has named it (`MAINPID`).
    Adopted {
        /// The one that was named last.
        main: u32,
        /// Whether somebody relies on the program.
        serves: bool,
    },
    /// The first process has ended with 0 and left others: a daemon, which names no process.
    Daemonised {
        /// Whether somebody relies on the program.
        serves: bool,
    },
    /// It is to end.
    Leaving {
        /// What was done about it.
        step: Step,
        /// Whether somebody has asked for that: otherwise the process that counts has ended by itself.
        wanted: bool,
        /// Whether somebody relied on the program.
        serves: bool,
    },
    /// Nothing of it is left.
    Ended,
}

/// How a program was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// The process that serves got the stop signal.
    Server,
    /// All others got it as well.
    Rest,
    /// SIGKILL.
    Killed,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// The program was started, as this process.
    Started(u32),
    /// It is ready: somebody relies on it from now on.
    Serves,
    /// Somebody says that this process counts.
    MainPid {
        /// The process.
        pid: u32,
        /// Whether that is one of the program.
        is_ours: bool,
        /// Whether the one that says so is.
        sender_is_ours: bool,
    },
    /// A process ended; how is known only to its parent.
    Exited(u32, Option<Exit>),
    /// A process ended, in this way, and none of those that are left has a listener any more, as one had before.
    Unserved(Option<Exit>),
    /// No process is left.
    Empty,
    /// It is asked to end.
    Stop,
    /// Those that got the stop signal have ended, and others are still there.
    Lingers,
    /// The time that it had to end is over.
    Late,
    /// It is not wanted at all.
    Kill,
}

/// What is to be done. In the order given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    /// Tell others of this process, and tell of its end.
    Watch(u32),
    /// Say that nobody was believed, and why.
    Refuse(Stranger),
    /// The stop signal, for the process that serves.
    AskServer,
    /// The stop signal, for all that have not got it.
    AskRest,
    /// SIGKILL, for all.
    Kill,
    /// The program has failed: whoever runs it ends in the same way.
    Fail,
}

/// Who is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stranger {
    /// Who named a process.
    Sender,
    /// The process that was named.
    Named,
}

/// The machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Life {
    state: State,
    /// The process whose end is that of the program, also while it is to end. Of a daemon that is the last that ends.
    counts: Option<u32>,
    /// How that ended.
    exit: Option<Exit>,
}

impl Default for Life {
    /// A program that was not started.
    fn default() -> Self {
        Self { state: State::Absent, counts: None, exit: None }
    }
}

impl Life {
    /// Where it stands.
    pub(super) fn state(self) -> State {
        self.state
    }

    /// The process that counts.
    pub(super) fn main(self) -> Option<u32> {
        match self.state {
            State::Spawned { main } | State::Known { main } | State::Adopted { main, .. } => Some(main),
            State::Absent | State::Daemonised { .. } | State::Leaving { .. } | State::Ended => None,
        }
    }

    /// How the process that counted ended, if it has.
    pub(super) fn exit(self) -> Option<Exit> {
        self.exit
    }

    /// Whether anything of it is there.
    pub(super) fn lives(self) -> bool {
        !matches!(self.state, State::Absent | State::Ended)
    }

    /// Whether it runs, and nobody has asked it to end.
    pub(super) fn is_whole(self) -> bool {
        match self.state {
            State::Spawned { .. }
            | State::Known { .. }
            | State::Adopted { .. }
            | State::Daemonised { .. } => true,
            State::Absent | State::Leaving { .. } | State::Ended => false,
        }
    }

    /// Whether somebody relies on it.
    pub(super) fn serves(self) -> bool {
        match self.state {
            State::Known { .. } => true,
            State::Adopted { serves, .. } | State::Daemonised { serves } | State::Leaving { serves, .. } => {
                serves
            }
            State::Absent | State::Spawned { .. } | State::Ended => false,
        }
    }

    /// Takes one event and returns what to do.
    pub(super) fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Started(main) => self.started(main),
            Event::Serves => self.serve(),
            Event::MainPid { pid, is_ours, sender_is_ours } => match (sender_is_ours, is_ours) {
                (false, _) => vec![Action::Refuse(Stranger::Sender)],
                (true, false) => vec![Action::Refuse(Stranger::Named)],
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
        // It ended by itself before it was to end, if its end is known already.
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

    /// Of a daemon no process counts: it is its listeners that tell.
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

    /// A step further, and never back.
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
