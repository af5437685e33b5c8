//! How what a client sends next is kept from a process.

use std::io;
use std::time::{Duration, Instant};

use super::work::Account;
use crate::sys::held::HeldSocket;
use crate::sys::tcp::{drop_data, is_blocking, set_low_water, take_data};

/// More than a request has, or a process reads at once; the kernel bounds it.
const LOW_WATER: i32 = 1 << 20;

/// A gate before a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gate {
    /// It lies unread, as it is not enough to be readable; and what was enough before.
    LowWater(i32),
    /// It is dropped, for processes that wait in their reads: such a call takes what there is, and would return later. And how
    /// many segments had been dropped before.
    Drops(u32),
}

/// A request that makes no progress for so long may miss its rest, or has come as a whole.
pub(super) const STARVED: Duration = Duration::from_millis(100);

impl Gate {
    /// `None` if the connection is gone.
    pub(super) fn close(holder: &HeldSocket, account: &Account) -> io::Result<Option<Gate>> {
        let Some(socket) = holder.duplicate()? else { return Ok(None) };
        Ok(Some(match is_blocking(&socket)? {
            false => Gate::LowWater(set_low_water(&socket, LOW_WATER)?),
            true => {
                drop_data(&socket)?;
                Gate::Drops(account.dropped)
            }
        }))
    }

    pub(super) fn open(&self, holder: &HeldSocket) -> io::Result<()> {
        let Some(socket) = holder.duplicate()? else { return Ok(()) };
        match self {
            Gate::LowWater(before) => set_low_water(socket, *before).map(drop),
            Gate::Drops(_) => take_data(socket),
        }
    }

    /// Whether the process may wait for the rest of a request. Of what is dropped only the count is known: a client whose request is
    /// under way sends its rest, or nothing.
    pub(super) fn is_in_the_way(&self, account: &Account, now: Instant) -> bool {
        match self {
            Gate::LowWater(_) => account.misses_something(),
            Gate::Drops(before) => account.dropped != *before && account.is_begun_for(STARVED, now),
        }
    }
}
