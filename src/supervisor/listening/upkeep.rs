//! Slots that a program has ended, and strangers in their groups.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, spawn_local};

use super::ended::{EndedListeners, SlotWatch};
use super::paths::SocketPaths;
use super::{Listening, PAIR};
use crate::config::ListenAddress;
use crate::slots::{ForeignSocket, Side, SlotError};
use crate::supervisor::input::Input;
use crate::supervisor::service::Service;

/// How often the daemon checks for strangers between the slots: when one leaves, connections go elsewhere.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The task that checks the slots. It ends when this is dropped.
#[derive(Debug)]
struct RepairTask(AbortHandle);

impl Drop for RepairTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The watches over the listeners of a service.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Upkeep {
    /// Over the paths of unix sockets.
    pub(super) paths: Option<SocketPaths>,
    /// Over slots that have strangers between them.
    repairs: Option<RepairTask>,
    /// Over the listeners of the serving process.
    pub(super) slots: Option<SlotWatch>,
    pub(super) ended_listeners: EndedListeners,
    /// When the directories of the unix sockets last answered.
    pub(super) paths_answered: Cell<Option<Instant>>,
}

/// A new socket could not be recorded for the shims, which count the members of the group.
pub(super) fn not_noted(address: &ListenAddress, error: io::Error) -> SlotError {
    SlotError::System { address: address.clone(), action: "note a new socket of", error }
}

impl Listening {
    /// Revives the listeners that the next process of a slot is to get, if a program has shut them down. For a pair
    /// the shims do this for TCP listeners: only they know at which side no program is at work. `is_alone`: there is
    /// no other process. Returns whether anything is new. `note` records at which side of which address a new socket
    /// is.
    pub(super) fn revive(
        &mut self,
        slot: u64,
        is_alone: bool,
        note: impl Fn(usize, Side) -> io::Result<()>,
    ) -> Result<bool, SlotError> {
        let slots = if self.is_paired { self.slots() } else { vec![slot] };
        let mut is_new = false;
        for slot in slots {
            let ids = self.slots.get(&slot).cloned().unwrap_or_default();
            for (at, (group, id)) in self.groups.iter_mut().zip(ids).enumerate() {
                let is_tcp = group.address().ip().is_some() && !group.address().is_datagram();
                if group.is_alive(id) || is_tcp && (self.is_paired || !is_alone) {
                    continue;
                }
                let address = group.address().clone();
                tracing::warn!(%address, slot = %id, "the program has shut its listener down; it is replaced");
                is_new |= group.revive(id)?;
                if !self.is_paired {
                    group.steer_anew()?;
                } else if address.is_datagram() {
                    let side = if id == PAIR[0] { Side::A } else { Side::B };
                    note(at, side).map_err(|error| not_noted(&address, error))?;
                }
            }
        }
        Ok(is_new)
    }

    fn is_displaced(&self) -> bool {
        !self.is_paired && self.groups.iter().any(crate::slots::Group::is_displaced)
    }

    fn repair(&mut self) -> Result<(), SlotError> {
        self.groups.iter_mut().try_for_each(crate::slots::Group::repair)
    }

    /// The sockets of other programs at the addresses. If the kernel cannot be asked, there are none.
    pub(in crate::supervisor) fn others(&self) -> Vec<(ListenAddress, ForeignSocket)> {
        let of = |group: &crate::slots::Group| {
            let others = group.others().unwrap_or_default();
            others.into_iter().map(|other| (group.address().clone(), other)).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of).collect()
    }
}

impl Service {
    /// A sentence for the user about other processes that listen at the addresses of the service.
    pub(in crate::supervisor) fn foreign_sockets_text(&self) -> Option<String> {
        let others = self.listening.as_ref()?.others();
        let (address, ForeignSocket { local, owner }) = others.first()?;
        let who = owner.as_ref().map_or("A process that cannot be seen from here".to_owned(), |owner| {
            format!("Process {} ({})", owner.pid, owner.name)
        });
        let more = match others.len() {
            1 => String::new(),
            count => format!(" There are {count} such sockets."),
        };
        Some(format!(
            "{who} has a socket at {local} beside {address}, and may take what is sent to the service: end it, or give it another \
             address.{more}"
        ))
    }

    /// While strangers are between the slots, checks whether they leave. At rest there is nothing to check.
    pub(in crate::supervisor) fn adjust_repairs(&mut self) {
        let is_displaced = self.listening.as_ref().is_some_and(Listening::is_displaced);
        if !is_displaced || self.upkeep.repairs.is_some() {
            return;
        }
        if let Some(strangers) = self.foreign_sockets_text() {
            tracing::warn!("{strangers}");
        }
        let inputs = self.inputs.clone();
        let task = spawn_local(async move {
            loop {
                tokio::time::sleep(CHECK_INTERVAL).await;
                if !inputs.deliver(Input::RepairDue).await {
                    return;
                }
            }
        });
        self.upkeep.repairs = Some(RepairTask(task.abort_handle()));
    }

    /// Checks whether the strangers have left.
    pub(in crate::supervisor) fn repair_slots(&mut self) {
        if self.upkeep.repairs.is_none() {
            return;
        }
        let Some(listening) = self.listening.as_mut().filter(|listening| listening.is_displaced()) else {
            self.upkeep.repairs = None;
            return;
        };
        if let Err(error) = listening.repair() {
            tracing::error!(%error, "new connections could not be steered");
        }
    }
}
