//! Which process of a service has which role, and how the roles change.

use std::os::fd::OwnedFd;

use super::launch::StartingProcess;
use super::{Process, Token};

/// The processes of a service.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Processes {
    incumbent: Option<Process>,
    successor: Option<Process>,
    outgoing: Option<Process>,
    /// The successor, while its process is being started.
    starting: Option<StartingProcess>,
    /// The descriptors of the current message.
    fds: Vec<OwnedFd>,
}

/// The role of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) enum ProcessRole {
    Incumbent,
    Successor,
    Outgoing,
}

impl Processes {
    /// The process that serves.
    pub(in crate::supervisor) fn incumbent(&self) -> Option<&Process> {
        self.incumbent.as_ref()
    }

    /// The process that is to take over.
    pub(in crate::supervisor) fn successor(&self) -> Option<&Process> {
        self.successor.as_ref()
    }

    /// The process that was replaced or stopped, on its way out.
    pub(in crate::supervisor) fn outgoing(&self) -> Option<&Process> {
        self.outgoing.as_ref()
    }

    pub(in crate::supervisor) fn at(&self, place: ProcessRole) -> Option<&Process> {
        match place {
            ProcessRole::Incumbent => self.incumbent(),
            ProcessRole::Successor => self.successor(),
            ProcessRole::Outgoing => self.outgoing(),
        }
    }

    pub(in crate::supervisor) fn all(&self) -> impl Iterator<Item = &Process> {
        [&self.incumbent, &self.successor, &self.outgoing].into_iter().flatten()
    }

    pub(in crate::supervisor) fn find(&self, token: Token) -> Option<&Process> {
        self.all().find(|process| process.token == token)
    }

    pub(in crate::supervisor) fn find_mut(&mut self, token: Token) -> Option<&mut Process> {
        let all = [&mut self.incumbent, &mut self.successor, &mut self.outgoing];
        all.into_iter().flatten().find(|process| process.token == token)
    }

    /// The current role of this process. `None` if it was let go.
    pub(in crate::supervisor) fn role_of(&self, token: Token) -> Option<ProcessRole> {
        let is_at = |place: &ProcessRole| self.at(*place).is_some_and(|process| process.token == token);
        [ProcessRole::Incumbent, ProcessRole::Successor, ProcessRole::Outgoing].into_iter().find(is_at)
    }

    /// The slots of all processes, including one that is being started.
    pub(in crate::supervisor) fn slots(&self) -> Vec<u64> {
        let starting = self.starting.iter().map(StartingProcess::slot);
        self.all().map(|process| process.slot).chain(starting).collect()
    }

    /// Sets the processes that an earlier daemon has left.
    pub(in crate::supervisor) fn recovered(
        &mut self,
        incumbent: Option<Process>,
        successor: Option<Process>,
        outgoing: Option<Process>,
    ) {
        (self.incumbent, self.successor, self.outgoing) = (incumbent, successor, outgoing);
    }

    pub(in crate::supervisor) fn begin_start(&mut self, starting: StartingProcess) {
        self.starting = Some(starting);
    }

    /// Takes the start with this token, unless another one is in progress: it has ended.
    pub(in crate::supervisor) fn end_start(&mut self, token: Token) -> Option<StartingProcess> {
        self.starting.take_if(|starting| starting.token() == token)
    }

    /// Takes the process that is being started: nothing waits for it any more.
    pub(in crate::supervisor) fn give_up_start(&mut self) -> Option<StartingProcess> {
        self.starting.take()
    }

    /// Adds the successor.
    pub(in crate::supervisor) fn started(&mut self, successor: Process) {
        self.successor = Some(successor);
    }

    /// Makes the successor the incumbent. After a crash there is no incumbent to replace, and an earlier one may
    /// still be on its way out.
    pub(in crate::supervisor) fn promote(&mut self) {
        if let Some(replaced) = self.incumbent.take() {
            self.outgoing = Some(replaced);
        }
        self.incumbent = self.successor.take();
    }

    /// Makes the incumbent the outgoing process, without a replacement.
    pub(in crate::supervisor) fn retire(&mut self) {
        self.outgoing = self.incumbent.take();
    }

    /// Makes the outgoing process the incumbent again. The process that had replaced it leaves, or becomes the
    /// successor again. Returns whether there was one.
    pub(in crate::supervisor) fn reinstate(&mut self, retires: bool) -> bool {
        let replaced = self.incumbent.take();
        self.incumbent = self.outgoing.take();
        let was_replaced = replaced.is_some();
        if retires {
            self.outgoing = replaced;
        } else {
            self.successor = replaced;
        }
        was_replaced
    }

    /// Takes the incumbent, which is gone.
    pub(in crate::supervisor) fn lose_incumbent(&mut self) -> Option<Process> {
        self.incumbent.take()
    }

    /// Takes the successor, which is gone.
    pub(in crate::supervisor) fn lose_successor(&mut self) -> Option<Process> {
        self.successor.take()
    }

    /// Takes the outgoing process, which is gone.
    pub(in crate::supervisor) fn lose_outgoing(&mut self) -> Option<Process> {
        self.outgoing.take()
    }

    /// Sends the incumbent no more messages. Its end is still noticed.
    pub(in crate::supervisor) fn hang_up_incumbent(&mut self) {
        if let Some(process) = &mut self.incumbent {
            process.hang_up();
        }
    }

    /// The descriptors of the current message.
    pub(in crate::supervisor) fn fds(&self) -> &[OwnedFd] {
        &self.fds
    }

    pub(in crate::supervisor) fn hold_fds(&mut self, fds: Vec<OwnedFd>) {
        self.fds = fds;
    }

    pub(in crate::supervisor) fn drop_fds(&mut self) {
        self.fds.clear();
    }
}
