//! The listeners over the life of a service: bound, restored, given to a process, retired, closed.

use std::io;
use std::time::{Duration, Instant};

use handoff_protocol::message::Mode;

use super::Listening;
use super::datagrams::LostDatagrams;
use crate::config::{Adapter, ListenAddress};
use crate::control::{Error, Kind};
use crate::shim;
use crate::slots::{Side, SlotError, stop_listening};
use crate::supervisor::service::Service;
use crate::supervisor::state::STATE_TIMEOUT;

/// How long a directory that has answered is not asked again.
const ANSWERS_FOR: Duration = Duration::from_secs(1);

impl Service {
    /// Binds the addresses of the service file, unless they are bound already.
    pub(in crate::supervisor) fn open_listeners(&mut self) -> Result<(), Error> {
        if self.listening.is_some() {
            return Ok(());
        }
        if self.is_as_running() {
            self.restore_listeners(true);
        } else {
            self.drop_held();
        }
        if self.listening.is_some() {
            return Ok(());
        }
        let refused = |error: SlotError| {
            let error = self.with_holder(error);
            let message = format!("Service {:?} cannot listen: {error}.", self.name.as_str());
            Error::new(Kind::BindFailed, message, "Nothing was started.")
        };
        self.paths_answer().map_err(refused)?;
        let binds = self.config.adapter == Adapter::Inject;
        let listening = Listening::open(&self.config.listeners, self.is_paired(), binds).map_err(refused)?;
        listening.store(&self.shared.keeper, self.name.as_str(), listening.steered);
        self.listening = Some(listening);
        self.forget_sides();
        self.remember_running();
        Ok(())
    }

    /// Whether the directories of the service's unix sockets answer, or did a moment ago. The daemon's thread itself
    /// works on those paths, so it must not start to wait for a file system that hangs. This check blocks only for a
    /// moment.
    pub(in crate::supervisor) fn paths_answer(&self) -> Result<(), SlotError> {
        if self.upkeep.paths_answered.get().is_some_and(|at| at.elapsed() < ANSWERS_FOR) {
            return Ok(());
        }
        for listener in &self.config.listeners {
            let ListenAddress::Unix(path) = &listener.address else { continue };
            let directory = path.parent().unwrap_or(path).to_owned();
            let what = directory.display().to_string();
            let look = move || _ = std::fs::symlink_metadata(directory.join("."));
            let looked = self.lanes.paths.wait(STATE_TIMEOUT, &what, look);
            looked.map_err(|error| SlotError::Directory { path: path.clone(), error })?;
        }
        self.upkeep.paths_answered.set(Some(Instant::now()));
        Ok(())
    }

    /// Removes records that are about other listeners.
    fn forget_sides(&self) {
        let shared_dir = self.shared.dirs.service_state(&self.name);
        let what = shared_dir.display().to_string();
        let forgotten =
            self.lanes.history.wait(STATE_TIMEOUT, &what, move || shim::forget_sides(&shared_dir));
        if let Err(error) = forgotten {
            tracing::warn!(%error, "what is written down of earlier listeners stays");
        }
    }

    /// Ends the listeners that only the keeper has.
    pub(in crate::supervisor) fn drop_held(&self) {
        let prefix = format!("{}/", self.name);
        for (_, fd) in self.shared.keeper.held(&prefix).unwrap_or_default() {
            stop_listening(&fd);
        }
        self.shared.keeper.drop_prefix(&prefix);
    }

    /// Closes the listeners that an earlier daemon has left: nothing runs that would serve there.
    pub(in crate::supervisor) fn close_left_listeners(&mut self) {
        self.restore_listeners(true);
        if self.listening.is_some() {
            self.close_listeners();
        }
    }

    /// Restores the listeners of this service that the keeper holds, if any. New connections go to the newest slot,
    /// or to the oldest one.
    pub(in crate::supervisor) fn restore_listeners(&mut self, newest: bool) {
        if self.listening.is_some() {
            return;
        }
        let held = match self.shared.keeper.held(&format!("{}/", self.name)) {
            Ok(held) => held,
            Err(error) => {
                tracing::error!(%error, "what the keeper holds cannot be used");
                return;
            }
        };
        let is_paired = self.is_paired();
        match Listening::restore(&self.config.listeners, self.name.as_str(), held, newest, is_paired) {
            Ok(listening) => self.listening = listening,
            Err(error) => {
                tracing::error!(%error, "what the keeper holds cannot be used");
                self.problems.slots_unusable(&error);
            }
        }
    }

    /// Whether all processes share both slots of each address, and decide by themselves where new connections go. A
    /// process that cannot stop accepting must not share a slot with the next one, and only one process works at a
    /// time.
    pub(in crate::supervisor) fn is_paired(&self) -> bool {
        self.config.adapter.is_foreign() && self.config.mode == Mode::Exclusive
    }

    /// Closes the listeners: from now on connections are refused.
    pub(in crate::supervisor) fn close_listeners(&mut self) {
        self.forget_running();
        let Some(listening) = self.listening.take() else { return };
        for slot in listening.slots.keys() {
            listening.forget(&self.shared.keeper, self.name.as_str(), *slot);
        }
        self.shared.keeper.forget_processes(&self.name);
        let answers = self.paths_answer().is_ok();
        for group in listening.groups {
            match group.address() {
                // The path is removed when its directory answers again.
                ListenAddress::Unix(_) if !answers => self.lanes.paths.post(group.close_but_for_path()),
                _ => group.close(),
            }
        }
    }

    /// The slot from which the next process is to accept: a new one beside the incumbent's if both may serve at once,
    /// otherwise the one that has the connections.
    pub(in crate::supervisor) fn slot_for_successor(&mut self) -> Result<u64, SlotError> {
        self.paths_answer()?;
        self.renew_ended();
        let is_left = self.processes.incumbent().is_none_or(|process| self.is_left(process.slot));
        let note = self.note_joined();
        let Some(listening) = &mut self.listening else { return Ok(0) };
        if self.config.mode == Mode::Exclusive || is_left {
            let slot = listening.steered;
            if listening.revive(slot, self.processes.incumbent().is_none(), note)? {
                listening.store(&self.shared.keeper, self.name.as_str(), slot);
            }
            return Ok(slot);
        }
        let slot = listening.add()?;
        listening.store(&self.shared.keeper, self.name.as_str(), slot);
        Ok(slot)
    }

    /// Returns a function that records at which side of which address a new socket is. It blocks only for a moment.
    pub(super) fn note_joined(&self) -> impl Fn(usize, Side) -> io::Result<()> + use<> {
        let (shared_dir, lane) = (self.shared.dirs.service_state(&self.name), self.lanes.history.clone());
        move |at, side| {
            let (what, shared_dir) = (shared_dir.display().to_string(), shared_dir.clone());
            lane.wait(STATE_TIMEOUT, &what, move || shim::note_joined(&shared_dir, at, side))?
        }
    }

    /// Drops the successor, which is gone, with its own slot: no connection was meant to wait there.
    pub(in crate::supervisor) fn forget_successor(&mut self) {
        if let Some(process) = self.processes.lose_successor() {
            self.retire_slot(process.slot);
        }
    }

    /// Drops the outgoing process, which is gone.
    pub(in crate::supervisor) fn forget_outgoing(&mut self) {
        if let Some(process) = self.processes.lose_outgoing() {
            self.retire_slot(process.slot);
        }
    }

    /// Retires the slots of processes that are gone.
    pub(in crate::supervisor) fn retire_unused_slots(&mut self) {
        let used = self.processes.slots();
        let slots = self.listening.as_ref().map(Listening::slots).unwrap_or_default();
        for slot in slots.into_iter().filter(|slot| !used.contains(slot)) {
            self.retire_slot(slot);
        }
    }

    pub(in crate::supervisor) fn retire_slot(&mut self, slot: u64) {
        let Some(listening) = &mut self.listening else { return };
        if slot == listening.steered || listening.is_paired {
            return;
        }
        let keys = listening.keys(self.name.as_str(), slot);
        for LostDatagrams { address, unread, no_room } in listening.drop_unread(slot) {
            tracing::warn!(
                %address, unread, no_room,
                "datagrams were lost: the process that is gone has not read all of them"
            );
            self.operations.timeline_mut().note_lost(u64::from(unread) + u64::from(no_room));
        }
        if let Err(error) = listening.retire(slot) {
            tracing::error!(%error, "a slot could not be retired");
            self.problems.slots_unusable(&error);
        }
        // Only now: once the keeper has dropped a listener, nothing can take it out of its group any more.
        for key in keys {
            self.shared.keeper.drop_key(&key);
        }
    }
}
