//! The side that serves the connections of a service, recorded by the shims for each other and for the daemon.

use std::fs;
use std::io;
use std::path::Path;

use crate::shim::own;
use crate::slots::{PairState, Side};
use crate::sys::regular;

/// The file with the pair's state, in the directory that the shims of a service share.
pub(super) const STATE: &str = "pair";

/// The side that serves the connections of a service. `None` if no shim has recorded one.
pub(crate) fn active_side(shared_dir: &Path) -> Option<Side> {
    read_state(&shared_dir.join(STATE)).ok()?.map(|state| state.active())
}

/// `None` if nothing was recorded.
pub(super) fn read_state(file: &Path) -> io::Result<Option<PairState>> {
    match regular::read(file) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// An error if the recorded state cannot be read. It need not be writable: a crashed program is started all the same, and
/// a serving one finds out before it ends.
pub(in crate::shim) fn check_sides(shared_dir: &Path) -> Result<(), String> {
    let file = shared_dir.join(STATE);
    read_state(&file).map(drop).map_err(|error| own::own_error(&file, "read", &error))
}

/// Records that a new socket of a side has joined the group of an address, replacing one that a program has ended.
pub(crate) fn note_joined(shared_dir: &Path, at: usize, side: Side) -> io::Result<()> {
    let file = shared_dir.join(STATE);
    let Some(state) = read_state(&file)? else { return Ok(()) };
    write_state(&file, &state.joined(at, side))
}

/// Must survive processes, not the machine: no sync.
pub(super) fn write_state(file: &Path, state: &PairState) -> io::Result<()> {
    let beside = file.with_extension("new");
    fs::write(&beside, serde_json::to_vec(state)?)?;
    fs::rename(&beside, file)
}

/// Removes the recorded state, which describes old listeners.
pub(crate) fn forget_sides(shared_dir: &Path) {
    let _ = fs::remove_file(shared_dir.join(STATE));
}
