//! The service file as it was when the listeners were bound.
//!
//! The addresses and the mode of a service that runs cannot change under it. So they must not change either because
//! somebody edited, broke or removed its file while no daemon was there: the text is kept beside the journal, from the
//! bind to the close. It is of use only while the processes live, so it need not reach the disk.

use std::io;
use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;

use super::service::Service;
use crate::config::{self, Dirs, Listener};

const FILE: &str = "running.toml";

/// The services of which something may run.
pub(super) fn names(dirs: &Dirs) -> Vec<ServiceName> {
    let Ok(entries) = std::fs::read_dir(dirs.services_state()) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    names.filter(|name| path(dirs, name).exists()).collect()
}

/// What was bound, unless nothing is or it cannot be read.
pub(super) fn read(dirs: &Dirs, name: &ServiceName) -> Option<config::Service> {
    let text = std::fs::read_to_string(path(dirs, name)).ok()?;
    config::Service::parse(name.clone(), &dirs.service_file(name), &text).ok()
}

impl Service {
    /// Called when the listeners are bound.
    pub(super) fn remember_running(&self) {
        let path = path(&self.shared.dirs, &self.name);
        let beside = path.with_extension("new");
        let written =
            std::fs::write(&beside, &self.config.text).and_then(|()| std::fs::rename(&beside, &path));
        if let Err(error) = written {
            tracing::warn!(service = %self.name, %error, "a new daemon will rely on the service file alone");
        }
    }

    /// Called when the listeners are closed.
    pub(super) fn forget_running(&self) {
        match std::fs::remove_file(path(&self.shared.dirs, &self.name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(service = %self.name, %error, "it still looks as if it ran");
            }
            _ => {}
        }
    }

    /// Goes by what was bound, whatever the file says by now.
    pub(super) fn go_by_running(&mut self) {
        let Some(running) = read(&self.shared.dirs, &self.name) else { return };
        let is_foreign = |config: &config::Service| config.adapter.is_foreign();
        if running.mode != self.config.mode
            || bound(&running) != bound(&self.config)
            || is_foreign(&running) != is_foreign(&self.config)
        {
            tracing::warn!(
                service = %self.name,
                "its [listen] table, mode or adapter has changed; that counts from its next start"
            );
            self.config.mode = running.mode;
            self.config.adapter = running.adapter;
            self.config.listeners = running.listeners;
        }
    }

    /// Whether what was bound is what the file asks for now.
    pub(super) fn is_as_running(&self) -> bool {
        read(&self.shared.dirs, &self.name).is_none_or(|running| bound(&running) == bound(&self.config))
    }
}

/// What a service listens on.
pub(super) fn bound(config: &config::Service) -> Vec<(&str, &config::ListenAddress)> {
    config.listeners.iter().map(|Listener { name, address, .. }| (name.as_str(), address)).collect()
}

fn path(dirs: &Dirs, name: &ServiceName) -> PathBuf {
    dirs.service_state(name).join(FILE)
}
