//! The services that a daemon knows: those with a valid file, those that run, and, only to be shown, those whose
//! files are wrong. If the file of a stopped service is gone, the next request that reads the files removes the
//! service. The same file brings it back; another file of its name is another service.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;

use handoff_protocol::ids::{Generation, ServiceName};
use handoff_protocol::supervisor::Phase;

use super::daemon::Daemon;
use super::reload::SeenFile;
use super::running::mark_removed;
use super::service::{Handle, Service};
use super::service_files::{Files, ServiceFileContent, ServiceFileStamp, ServiceFileStamps, silent};
use super::status::listener_status;
use crate::config::{self, PartialService, judge};
use crate::control::{Error, Kind, api};

/// A service whose file is wrong keeps what was read before.
const UNTIL_RIGHT: &str = "Until it is right, what was read before counts.";

/// A service file that cannot be used, of a service that was never known.
#[derive(Debug)]
pub(super) struct BrokenService {
    /// What is wrong, and where.
    pub(super) cause: String,
    readable: PartialService,
    /// Whether its addresses are reserved for it. Not if one of them is the mistake.
    keeps_addresses: bool,
}

/// The new service files: the services that they describe, and what is wrong with the others.
#[derive(Debug, Default)]
pub(super) struct NewServices {
    pub(super) services: Vec<config::Service>,
    pub(super) broken: BTreeMap<ServiceName, BrokenService>,
    pub(super) errors: Vec<config::Error>,
}

impl NewServices {
    /// `is_known` is true for services that exist already, `was_known` for those that an earlier daemon knew. If two
    /// services want the same address, one of the latter gets it.
    pub(super) fn judge(
        dirs: &config::Dirs,
        files: Files,
        is_known: impl Fn(&ServiceName) -> bool,
        was_known: impl Fn(&ServiceName) -> bool,
    ) -> Self {
        let Files { found, errors, .. } = files;
        let names: Vec<ServiceName> = found.keys().cloned().collect();
        let mut seen: BTreeMap<ServiceName, PartialService> = BTreeMap::new();
        let (mut read, mut right) = (Vec::new(), BTreeSet::new());
        let (before, new): (Vec<_>, Vec<_>) = found.into_iter().partition(|(name, _)| was_known(name));
        for (name, found) in before.into_iter().chain(new) {
            match found {
                _ if is_known(&name) => {}
                ServiceFileContent::Absent | ServiceFileContent::Same => {}
                ServiceFileContent::Silent(cause) => {
                    read.push(Err(vec![silent(&dirs.service_file(&name), cause)]))
                }
                ServiceFileContent::File(_, Ok(service)) => {
                    right.insert(name.clone());
                    seen.insert(name, PartialService::from(&*service));
                    read.push(Ok(*service));
                }
                ServiceFileContent::File(_, Err((errors, glimpse))) => {
                    seen.insert(name, glimpse);
                    read.push(Err(errors));
                }
            }
        }
        let loaded = judge(read, |name| names.contains(name) || is_known(name));
        let broken = first_mistakes(&loaded.errors).into_iter().map(|(name, cause)| {
            let (seen, keeps_addresses) = (seen.remove(&name).unwrap_or_default(), !right.contains(&name));
            (name, BrokenService { cause, readable: seen, keeps_addresses })
        });
        let broken = broken.collect();
        let errors = errors.into_iter().chain(loaded.errors).collect();
        Self { services: loaded.services.into_values().collect(), broken, errors }
    }
}

impl Daemon {
    /// Takes in the services whose files are new since the daemon started, and forgets those whose files are gone.
    async fn discover(&self) {
        let looks =
            self.services.borrow().iter().map(|(name, handle)| (name.clone(), handle.stamp())).collect();
        let files = self.read_files(looks, true).await;
        let known: Vec<ServiceName> = self.services.borrow().keys().cloned().collect();
        let mut newcomers = files;
        for name in &known {
            if let Some(found) = newcomers.found.remove(name) {
                self.learn(name, found, newcomers.is_there);
            }
        }
        // What was known a moment ago, or was taken in by another task meanwhile, is no newcomer.
        let is_known = |name: &ServiceName| known.contains(name) || self.is_known(name);
        // A service whose file is right now has kept its addresses while the file was wrong.
        let before = self.broken.take();
        let kept = |name: &ServiceName| before.get(name).is_some_and(|broken| broken.keeps_addresses);
        let NewServices { services, broken, .. } =
            NewServices::judge(&self.shared.dirs, newcomers, is_known, kept);
        self.broken.replace(broken);
        for config in services {
            self.add_service(config);
        }
    }

    /// Adds a new service, unless another service has its address.
    fn add_service(&self, config: config::Service) {
        if let Err(error) = self.refuse_conflicts(&config) {
            self.refuse_newcomer(&config, &error);
        } else {
            self.add(config);
        }
    }

    pub(super) fn refuse_newcomer(&self, config: &config::Service, cause: &Error) {
        let broken = BrokenService {
            cause: cause.to_string(),
            readable: PartialService::from(config),
            keeps_addresses: false,
        };
        self.broken.borrow_mut().insert(config.name.clone(), broken);
    }

    /// Handles what is at the path of a known service's file. If the file is gone and the service is stopped, the
    /// service is removed.
    pub(super) fn learn(&self, name: &ServiceName, found: ServiceFileContent, is_there: bool) {
        let Some(handle) = self.services.borrow().get(name).cloned() else { return };
        if matches!(found, ServiceFileContent::Absent) && is_there && handle.is_idle() {
            tracing::info!(service = %name, "its service file is gone: it is forgotten");
            let (text, lane) =
                handle.read(|service| (service.config.text.clone(), service.lanes.history.clone()));
            let (dirs, of, said) = (self.shared.dirs.clone(), name.clone(), text.clone());
            lane.post(move || mark_removed(&dirs, &of, &said));
            self.removed.borrow_mut().insert(name.clone(), text);
            self.services.borrow_mut().remove(name);
            return;
        }
        let conflict = match &found {
            ServiceFileContent::File(_, Ok(config)) => self.refuse_conflicts(config).err(),
            _ => None,
        };
        handle.with(|service| service.learn_file(found, conflict));
    }

    pub(super) async fn all(&self) -> Vec<Handle> {
        self.discover().await;
        self.services.borrow().values().cloned().collect()
    }

    pub(super) async fn find(&self, name: &ServiceName) -> Result<Handle, Error> {
        self.check_answered(name)?;
        let look = self.services.borrow().get(name).map(Handle::stamp);
        if let Some(look) = look {
            let mut files = self.read_files(ServiceFileStamps::from([(name.clone(), look)]), false).await;
            if let Some(found) = files.found.remove(name) {
                self.learn(name, found, files.is_there);
            }
        }
        if !self.services.borrow().contains_key(name) {
            self.discover().await;
        }
        let services = self.services.borrow();
        if let Some(handle) = services.get(name) {
            return Ok(handle.clone());
        }
        match self.broken.borrow().get(name) {
            Some(broken) => {
                let message =
                    format!("The service file of {:?} cannot be used: {}", name.as_str(), broken.cause);
                Err(Error::new(
                    Kind::ConfigInvalid,
                    message,
                    format!("Correct it, then: handoff check {name}"),
                ))
            }
            None => Err(Error::unknown_service(name, services.keys().map(ServiceName::as_str))),
        }
    }

    /// The service with its current file. A file that is new since the daemon started is taken in.
    pub(super) async fn find_fresh(&self, name: &ServiceName) -> Result<(Handle, config::Service), Error> {
        self.check_answered(name)?;
        let mut files = self.read_files(ServiceFileStamps::from([(name.clone(), None)]), false).await;
        let config = match files.found.remove(name) {
            Some(ServiceFileContent::File(_, Ok(config))) => *config,
            Some(ServiceFileContent::File(_, Err((errors, _)))) => {
                return Err(Error::config_invalid(name, &errors));
            }
            Some(ServiceFileContent::Silent(cause)) => {
                return Err(Error::config_invalid(
                    name,
                    &[silent(&self.shared.dirs.service_file(name), cause)],
                ));
            }
            Some(ServiceFileContent::Absent | ServiceFileContent::Same) | None => {
                let handle = self.find(name).await?;
                let config = handle.config();
                return Ok((handle, config));
            }
        };
        if self.refuse_conflicts(&config).is_err() {
            // The file of the other service may be gone, or may have changed.
            self.discover().await;
            self.refuse_conflicts(&config)?;
        }
        let known = self.services.borrow().get(name).cloned();
        let handle = match known {
            Some(handle) => handle,
            None => self.add(config.clone()),
        };
        Ok((handle, config))
    }

    /// The statuses of the services whose files cannot be used.
    pub(super) fn broken_statuses(&self) -> Vec<api::ServiceStatus> {
        self.broken.borrow().iter().map(|(name, broken)| broken.status(name)).collect()
    }
}

impl BrokenService {
    /// The listeners whose addresses no later service gets, as far as they can be read.
    pub(super) fn kept_listeners(&self) -> &[config::Listener] {
        if self.keeps_addresses { &self.readable.listeners } else { &[] }
    }

    pub(super) fn status(&self, name: &ServiceName) -> api::ServiceStatus {
        api::ServiceStatus {
            service: name.clone(),
            state: api::State::Failed,
            phase: None,
            detail: None,
            generation: Generation(0),
            pid: None,
            shim: None,
            binary: self.readable.binary.clone().unwrap_or_default(),
            stored: None,
            version: None,
            skew: None,
            named: None,
            staged: None,
            sha256: None,
            started_at: None,
            autostart: api::Autostart { starts: false, decided_by: api::DecidedBy::File },
            restarts: 0,
            last_exit: None,
            next_try_at: None,
            mode: self.readable.mode,
            listeners: self.readable.listeners.iter().map(listener_status).collect(),
            file: Some(api::FileStatus {
                is: api::FileChange::Broken,
                keys: Vec::new(),
                cost: api::Cost::Nothing,
            }),
            last_handoff: None,
            last_lines: None,
            problem: Some(format!("Its service file cannot be used: {}", self.cause)),
        }
    }
}

impl Service {
    /// Handles what is at the path of its file now.
    fn learn_file(&mut self, found: ServiceFileContent, conflict: Option<Error>) {
        let file = self.shared.dirs.service_file(&self.name);
        match &found {
            ServiceFileContent::File(_, Ok(config)) => self.compare_refused_start(Some(config)),
            ServiceFileContent::File(_, Err(_)) => self.compare_refused_start(None),
            ServiceFileContent::Same | ServiceFileContent::Absent | ServiceFileContent::Silent(_) => {}
        }
        self.file_seen = match &found {
            ServiceFileContent::Same => return,
            ServiceFileContent::File(_, Ok(config)) if conflict.is_none() => self.seen(config),
            ServiceFileContent::File(..) | ServiceFileContent::Silent(_) => Some(SeenFile::Broken),
            ServiceFileContent::Absent => Some(SeenFile::Gone),
        };
        let (look, mistake) = match found {
            ServiceFileContent::Same => return,
            ServiceFileContent::File(look, Ok(_)) => {
                let text = |error| format!("Its service file is wrong: {error} {UNTIL_RIGHT}");
                (Some(look), conflict.map(text))
            }
            ServiceFileContent::File(look, Err((errors, _))) => {
                let cause =
                    first_mistakes(&errors).into_iter().next().map(|(_, cause)| cause).unwrap_or_default();
                (Some(look), Some(format!("Its service file is wrong: {cause} {UNTIL_RIGHT}")))
            }
            ServiceFileContent::Absent => {
                let text = format!(
                    "Its service file {} is gone: the service runs until you stop it, and is then forgotten. Put the file back to \
                     keep the service.",
                    file.display()
                );
                (None, Some(text))
            }
            ServiceFileContent::Silent(cause) => {
                let text = format!(
                    "Its service file {} cannot be read: {cause}. Until it can, what was read before counts.",
                    file.display()
                );
                (None, Some(text))
            }
        };
        // The mistake may be in the directories above, so the file is read again even if it looks the same.
        self.file_look = look.filter(|_| mistake.is_none());
        self.problems.file_is(mistake);
    }
}

impl Handle {
    /// The state of its file when it was last read.
    fn stamp(&self) -> Option<ServiceFileStamp> {
        self.read(|service| service.file_look)
    }

    /// Whether nothing of it runs, and nothing works on it.
    fn is_idle(&self) -> bool {
        // One of the daemon, and one of the caller.
        self.holders() <= 2
            && self.read(|service| {
                service.machine.phase() == Phase::Stopped
                    && service.machine.outgoing().is_none()
                    && !service.versions.are_prepared()
            })
    }
}

/// The first mistake of each file, and how many more there are.
fn first_mistakes(errors: &[config::Error]) -> Vec<(ServiceName, String)> {
    let mut text: BTreeMap<ServiceName, (String, usize)> = BTreeMap::new();
    for error in errors {
        let Some(name) = error.file.file_stem().and_then(|stem| stem.to_str()?.parse().ok()) else {
            continue;
        };
        text.entry(name).and_modify(|(_, more)| *more += 1).or_insert_with(|| (error.to_string(), 0));
    }
    let in_words = |(cause, more)| match more {
        0 => format!("{cause}."),
        more => format!("{cause} (and {more} more)."),
    };
    text.into_iter().map(|(name, found)| (name, in_words(found))).collect()
}

/// Sets aside what a removed service has left: it is not for another service of the same name. Blocks on the file
/// system.
pub(super) fn set_aside(dirs: &config::Dirs, name: &ServiceName) {
    let place = dirs.state.join("removed");
    let names = std::iter::once(name.to_string()).chain((2_u32..).map(|number| format!("{name}.{number}")));
    let free = names.map(|name| place.join(name)).find(|path| std::fs::symlink_metadata(path).is_err());
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&place);
    let moved = made.and_then(|()| std::fs::rename(dirs.service_state(name), free.unwrap_or_default()));
    match moved {
        Ok(()) => {
            tracing::warn!(service = %name, "what a removed service of this name has left is in {}", place.display())
        }
        // It has left nothing.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::error!(service = %name, %error, "what a removed service of this name has left stays");
        }
    }
}
