//! Keeps the paths of unix sockets leading to the service, even if the program, a cleanup tool or a user removes
//! them.
//!
//! The daemon watches the file of each slot with inotify(7): the kernel reports when the file loses or gets a name,
//! and when its mode changes. Other changes in the directory wake no process.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, spawn_local};

use super::{FIRST, Listening, PAIR};
use crate::config::ListenAddress;
use crate::shim;
use crate::slots::{Side, SlotId, UnixPathTarget, watched_name};
use crate::supervisor::input::{Input, Inputs};
use crate::supervisor::service::Service;
use crate::supervisor::state::STATE_TIMEOUT;
use crate::sys::inotify::{AddWatchFlags, Inotify};
use crate::sys::readable::readable;

const CHANGES: AddWatchFlags = AddWatchFlags::IN_ATTRIB
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_DONT_FOLLOW);
/// The minimum pause before another attempt at a watch that the kernel has refused.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// The watch over the paths of a service. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct SocketPaths {
    names: Vec<PathBuf>,
    /// `None` if the kernel has refused it.
    task: Option<AbortHandle>,
    since: Instant,
}

impl Drop for SocketPaths {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl SocketPaths {
    /// A watch that the kernel has refused is not requested at every event.
    fn is_good_for_now(&self) -> bool {
        self.task.is_some() || self.since.elapsed() < RETRY_PAUSE
    }
}

impl Listening {
    /// The file of each slot of a unix socket.
    fn watched(&self) -> Vec<PathBuf> {
        let of_group = |group: &crate::slots::Group| {
            let names = group.order().into_iter().map(|slot| watched_name(group.address(), slot));
            names.collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of_group).flatten().collect()
    }

    /// Restores each path that does not lead where it should. Returns these paths and the results.
    fn restore_paths(&self, active: SlotId) -> Vec<(ListenAddress, Result<(), String>)> {
        let mut mended = Vec::new();
        for group in self.groups.iter().filter(|group| matches!(group.address(), ListenAddress::Unix(_))) {
            let slot = if self.is_paired { active } else { group.steered() };
            let was_there =
                UnixPathTarget::of(group.address()).is_some_and(|place| place == UnixPathTarget::at(slot));
            let done = UnixPathTarget::at(slot).restore(group.address()).map_err(|error| error.to_string());
            if !was_there || done.is_err() {
                mended.push((group.address().clone(), done));
            }
        }
        mended
    }
}

impl Service {
    /// Watches the current paths of the service.
    pub(in crate::supervisor) fn adjust_socket_paths(&mut self) {
        if self.listening.is_none() {
            self.upkeep.paths = None;
            return;
        }
        if self.paths_answer().is_err() {
            // The next event tries again.
            return;
        }
        let names = self.listening.as_ref().map(Listening::watched).unwrap_or_default();
        if self.upkeep.paths.as_ref().map_or(&[][..], |watch| &watch.names) == names
            && self.upkeep.paths.as_ref().is_none_or(SocketPaths::is_good_for_now)
        {
            return;
        }
        self.upkeep.paths = None;
        if names.is_empty() {
            return;
        }
        let task = match watch(&names) {
            Ok(inotify) => Some(spawn_local(restore_always(self.inputs.clone(), inotify)).abort_handle()),
            Err(error) => {
                tracing::error!(%error, "paths that are removed will not be put back");
                None
            }
        };
        self.upkeep.paths = Some(SocketPaths { names, task, since: Instant::now() });
        // Restores what was lost before the watch began.
        self.restore_paths();
    }

    /// Restores each path that does not lead where it should.
    pub(in crate::supervisor) fn restore_paths(&mut self) {
        let Some(listening) = &self.listening else { return };
        if self.paths_answer().is_err() {
            return;
        }
        let state = self.shared.dirs.service_state(&self.name);
        let what = state.display().to_string();
        // While the active side is unknown, no socket is put at the path.
        let Ok(active) = self.lanes.history.wait(STATE_TIMEOUT, &what, move || shim::active_side(&state))
        else {
            return;
        };
        let active = if active == Some(Side::B) { PAIR[1] } else { FIRST };
        for (address, mended) in listening.restore_paths(active) {
            match mended {
                Ok(()) => {
                    tracing::warn!(%address, "the path was removed or replaced; it is back")
                }
                Err(error) => {
                    tracing::error!(%address, error, "the path cannot be put back");
                    self.problems.path_lost(&address, &error);
                }
            }
        }
    }
}

fn watch(names: &[PathBuf]) -> io::Result<AsyncFd<Inotify>> {
    let inotify = Inotify::new()?;
    for name in names {
        // A file that is gone has no name under which it could come back.
        let _ = inotify.add(name, CHANGES);
    }
    readable(inotify)
}

async fn restore_always(inputs: Inputs, inotify: AsyncFd<Inotify>) {
    while let Ok(mut ready) = inotify.readable().await {
        // The check finds what has happened, so any event is enough.
        inotify.get_ref().drain();
        ready.clear_ready();
        if !inputs.deliver(Input::PathsChanged).await {
            return;
        }
    }
}
