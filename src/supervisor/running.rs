//! The service file as it was when the listeners were bound.
//!
//! The addresses and the mode of a running service cannot change. An edited, broken or removed file must not change
//! them either while no daemon runs. So the text is kept beside the journal, from the bind to the close. It is only
//! useful while the processes live, so it need not reach the disk.
//!
//! After the close the text stays, under another name. It marks a service whose file is removed, so that the next
//! daemon can also tell whether a file of that name brings the service back or is another one.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use handoff_protocol::ids::ServiceName;

use super::registry::set_aside;
use super::service::Service;
use super::state::STATE_TIMEOUT;
use crate::config::{self, Dirs, Listener};
use crate::sys::regular;

const FILE: &str = "running.toml";
/// What was bound last.
const LAST: &str = "last.toml";
/// The text of the file of a service that was removed.
const REMOVED: &str = "removed.toml";

/// The services that have a state, which may be all that is left of them. Blocks on the file system.
pub(super) fn names(dirs: &Dirs) -> Vec<ServiceName> {
    let Ok(entries) = std::fs::read_dir(dirs.services_state()) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// What was bound; `None` if nothing is, or it cannot be read. Blocks on the file system.
pub(super) fn read(dirs: &Dirs, name: &ServiceName) -> Option<config::Service> {
    let text = regular::read_to_string(&path(dirs, name)).ok()?;
    config::Service::parse(name.clone(), &dirs.service_file(name), &text).ok()
}

/// Whether the listeners of the service were ever bound. Blocks on the file system.
pub(super) fn has_run(dirs: &Dirs, name: &ServiceName) -> bool {
    [FILE, LAST].iter().any(|file| dirs.service_state(name).join(file).exists())
}

/// Marks a stopped service as removed: its file is gone. Blocks on the file system.
pub(super) fn mark_removed(dirs: &Dirs, name: &ServiceName, text: &str) {
    let path = dirs.service_state(name).join(REMOVED);
    let written = regular::create(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    match written {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(service = %name, %error, "a new daemon may take another service of this name for this one");
        }
        _ => {}
    }
}

/// Marks a service that is not bound as removed: it has no file. An earlier mark stays. Blocks on the file system.
pub(super) fn find_removed(dirs: &Dirs, name: &ServiceName) {
    let at = |file: &str| dirs.service_state(name).join(file);
    if !at(REMOVED).exists() {
        let _ = std::fs::rename(at(LAST), at(REMOVED));
    }
}

/// Clears the mark of a removed service, because a file of its name exists. If that is another file, sets aside what
/// the removed service has left. Blocks on the file system.
pub(super) fn settle_removed(dirs: &Dirs, name: &ServiceName, text: &str) {
    let path = dirs.service_state(name).join(REMOVED);
    match regular::read_to_string(&path) {
        Ok(said) if said != text => set_aside(dirs, name),
        Ok(_) => drop(std::fs::remove_file(&path)),
        Err(_) => {}
    }
}

impl Service {
    /// Called when the listeners are bound.
    pub(super) fn remember_running(&mut self) {
        let path = path(&self.shared.dirs, &self.name);
        let (what, text) = (path.display().to_string(), self.config.text.clone());
        self.running_settings = Some(Rc::new(self.config.clone()));
        let written = self.lanes.history.wait(STATE_TIMEOUT, &what, move || write(&path, &text));
        if let Err(error) = written.and_then(|written| written) {
            tracing::warn!(%error, "a new daemon will rely on the service file alone");
        }
    }

    /// Called when another process serves. It may have been started with another file.
    pub(super) fn remember_settings(&mut self) {
        let Some(settings) = self.settings_in_use() else { return };
        if self.running_settings.as_ref().is_some_and(|known| known.text == settings.text) {
            return;
        }
        let (path, text) = (path(&self.shared.dirs, &self.name), settings.text.clone());
        self.running_settings = Some(settings);
        self.lanes.history.post(move || {
            if let Err(error) = write(&path, &text) {
                tracing::warn!(%error, "a new daemon will not know with which file the process was started");
            }
        });
    }

    /// Called when the listeners are closed.
    pub(super) fn forget_running(&mut self) {
        self.running_settings = None;
        let path = path(&self.shared.dirs, &self.name);
        let what = path.display().to_string();
        let last = path.with_file_name(LAST);
        let removed = self.lanes.history.wait(STATE_TIMEOUT, &what, move || std::fs::rename(path, last));
        match removed.and_then(|removed| removed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "it still looks as if it ran");
            }
            _ => {}
        }
    }

    /// Uses what was bound, whatever the file says now.
    pub(super) fn go_by_running(&mut self) {
        let Some(running) = self.running() else { return };
        self.running_settings = Some(Rc::new(running.clone()));
        let is_foreign = |config: &config::Service| config.adapter.is_foreign();
        if running.mode != self.config.mode
            || bound(&running) != bound(&self.config)
            || is_foreign(&running) != is_foreign(&self.config)
        {
            tracing::warn!(
                "its [listen] table, mode or adapter has changed; that counts from its next start"
            );
            self.config.mode = running.mode;
            self.config.adapter = running.adapter;
            self.config.listeners = running.listeners;
        }
    }

    /// Whether what was bound is what the file asks for now.
    pub(super) fn is_as_running(&self) -> bool {
        self.running().is_none_or(|running| bound(&running) == bound(&self.config))
    }

    fn running(&self) -> Option<config::Service> {
        let (dirs, name) = (self.shared.dirs.clone(), self.name.clone());
        let what = path(&dirs, &name).display().to_string();
        self.lanes.history.wait(STATE_TIMEOUT, &what, move || read(&dirs, &name)).ok().flatten()
    }
}

/// What a service listens on.
pub(super) fn bound(config: &config::Service) -> Vec<(&str, &config::ListenAddress)> {
    config.listeners.iter().map(|Listener { name, address, .. }| (name.as_str(), address)).collect()
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    regular::create(&beside)?.write_all(text.as_bytes())?;
    std::fs::rename(&beside, path)
}

fn path(dirs: &Dirs, name: &ServiceName) -> PathBuf {
    dirs.service_state(name).join(FILE)
}
