//! Holds a client's input back from a process.

use std::io;
use std::time::{Duration, Instant};

use super::work::ConnectionWork;
use crate::sys::held::HeldSocket;
use crate::sys::tcp::{drop_data, is_blocking, set_low_water, take_data};

/// Larger than a request, and than one read of a process; the kernel caps it.
const LOW_WATER: i32 = 1 << 20;

/// A closed gate in front of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum InputGate {
    /// Data stays unread below the low-water mark. The value is the previous mark.
    LowWater(i32),
    /// Incoming data is dropped. For processes that block in a read: such a read takes the data and only returns later.
    /// The value is the number of segments dropped before.
    Drops(u32),
}

/// A request without progress for this long may lack its rest, or is complete.
pub(super) const STARVED: Duration = Duration::from_millis(100);

impl InputGate {
    /// Closes the gate. `None` if the connection is gone.
    pub(super) fn close(holder: &HeldSocket, account: &ConnectionWork) -> io::Result<Option<InputGate>> {
        let Some(socket) = holder.duplicate()? else { return Ok(None) };
        Ok(Some(match is_blocking(&socket)? {
            false => InputGate::LowWater(set_low_water(&socket, LOW_WATER)?),
            true => {
                drop_data(&socket)?;
                InputGate::Drops(account.dropped)
            }
        }))
    }

    /// Whether a gate could be closed there, also if the process blocks in a read: that takes privilege.
    pub(super) fn may_be_closed(holder: &HeldSocket, is_privileged: bool) -> bool {
        match holder.duplicate() {
            Ok(Some(socket)) => is_privileged || is_blocking(&socket).is_ok_and(|blocks| !blocks),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    pub(super) fn open(&self, holder: &HeldSocket) -> io::Result<()> {
        let Some(socket) = holder.duplicate()? else { return Ok(()) };
        match self {
            InputGate::LowWater(before) => set_low_water(socket, *before).map(drop),
            InputGate::Drops(_) => take_data(socket),
        }
    }

    /// Whether it has dropped data.
    pub(super) fn has_dropped(&self, account: &ConnectionWork) -> bool {
        matches!(self, InputGate::Drops(before) if account.dropped != *before)
    }

    /// Whether the process may be waiting for the rest of a request. For drops, only the count is known: while a
    /// request is in progress, a client sends nothing but its rest.
    pub(super) fn is_in_the_way(&self, account: &ConnectionWork, now: Instant) -> bool {
        match self {
            InputGate::LowWater(_) => account.misses_something(),
            InputGate::Drops(_) => self.has_dropped(account) && account.is_begun_for(STARVED, now),
        }
    }
}
