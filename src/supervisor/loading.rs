//! How services become known to the daemon: at its start, and later.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use handoff_protocol::ids::ServiceName;
use handoff_protocol::record::Standing;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout_at};

use super::daemon::Daemon;
use super::lane::Lanes;
use super::registry::{NewServices, set_aside};
use super::rollout::import_all_staged;
use super::running;
use super::service::{Handle, lacks_adoption_socket};
use super::service_files::ServiceFileStamps;
use super::state::{self, OpenedState, STATE_TIMEOUT};
use crate::config;
use crate::control::{Error, Kind};
use crate::journal::Journal;

/// How long the start of the daemon waits for the states of all services that were bound, and then for those of all
/// others.
const OPENED_WITHIN: Duration = Duration::from_secs(2);
/// The pause before another attempt to reach the state of a service.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How long the daemon waits for the sockets of processes. A process without a supervisor checks its socket once a
/// second, and restores it.
const ADOPTION_SOCKET_TIMEOUT: Duration = Duration::from_millis(1_500);
const ADOPTION_SOCKET_TICK: Duration = Duration::from_millis(20);

/// A service whose state is being opened.
struct OpeningService {
    name: ServiceName,
    file: ServiceFile,
    /// Its service file, and what its state says; `None` if nothing of it can run.
    opened: JoinHandle<Option<(config::Service, OpenedState)>>,
}

/// The service file of a service that an earlier daemon has left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ServiceFile {
    Right,
    Wrong,
    Missing,
}

/// What an earlier daemon has left.
#[derive(Default)]
struct PreviousServices {
    /// All services that have a state.
    names: BTreeSet<ServiceName>,
    /// Those that were bound, with the service file of that time.
    bound: BTreeMap<ServiceName, config::Service>,
    /// Those for which this is not known yet.
    unknown: BTreeSet<ServiceName>,
}

impl Daemon {
    /// Takes over what runs, and starts what is to run: after the loss of a daemon what ran then, otherwise what
    /// starts by itself. What runs comes first: it has its addresses, whatever the files say now.
    pub(super) async fn load_all(self: &Rc<Self>, was_lost: bool) {
        self.load_known(was_lost).await;
        // Not before all are known: each waits for those that it depends on.
        self.start_in_order();
    }

    async fn load_known(self: &Rc<Self>, was_lost: bool) {
        let files = self.read_files(ServiceFileStamps::new(), true).await;
        let is_listed: BTreeSet<ServiceName> = files.found.keys().cloned().collect();
        let PreviousServices { names, bound, unknown: silent } = self.previous_services().await;
        let judged = NewServices::judge(&self.shared.dirs, files, |_| false, |name| names.contains(name));
        let NewServices { services, broken, errors } = judged;
        for error in &errors {
            tracing::error!("{error}");
        }
        self.broken.replace(broken);
        let mut services: BTreeMap<ServiceName, config::Service> =
            services.into_iter().map(|config| (config.name.clone(), config)).collect();
        let unusable = |name: &ServiceName| {
            if is_listed.contains(name) { ServiceFile::Wrong } else { ServiceFile::Missing }
        };
        let mut first = Vec::new();
        for (name, running) in bound {
            first.push(match services.remove(&name) {
                Some(config) => self.begin(config),
                None => self.begin_without_file(&name, unusable(&name), Some(running)),
            });
        }
        self.load_these(first, was_lost).await;
        for name in silent.iter().filter(|name| !services.contains_key(name)) {
            self.load_later(self.begin_without_file(name, unusable(name), None), was_lost);
        }
        let mut rest = Vec::new();
        for config in services.into_values() {
            let was_known = names.contains(&config.name);
            if let Err(error) = self.refuse_conflicts_of(&config, was_known) {
                tracing::error!(service = %config.name, "{error}");
                self.refuse_newcomer(&config, &error);
            } else if silent.contains(&config.name) {
                // It was waited for already.
                self.load_later(self.begin(config), was_lost);
            } else {
                rest.push(self.begin(config));
            }
        }
        self.load_these(rest, was_lost).await;
        self.broken.borrow_mut().retain(|name, _| !self.is_known(name));
        for name in names.iter().filter(|name| !is_listed.contains(name)) {
            self.find_removed(name);
        }
    }

    /// Waits only a moment: what does not answer is taken in later.
    async fn previous_services(&self) -> PreviousServices {
        let until = Instant::now() + STATE_TIMEOUT;
        let dirs = self.shared.dirs.clone();
        let names = timeout_at(until, self.directory.run_anyway(move || running::names(&dirs))).await;
        let names = names.ok().and_then(Result::ok).unwrap_or_default();
        let mut left = PreviousServices { names: names.into_iter().collect(), ..PreviousServices::default() };
        let reads: Vec<_> = left.names.iter().map(|name| (name.clone(), self.read_running(name))).collect();
        for (name, read) in reads {
            match timeout_at(until, read).await {
                Ok(Ok(Some(config))) => _ = left.bound.insert(name, config),
                Ok(Ok(None)) => {}
                Ok(Err(_)) | Err(_) => _ = left.unknown.insert(name),
            }
        }
        left
    }

    /// The service file that a service was bound with, if it was bound.
    fn read_running(
        &self,
        name: &ServiceName,
    ) -> impl Future<Output = io::Result<Option<config::Service>>> + use<> {
        let (dirs, of) = (self.shared.dirs.clone(), name.clone());
        self.lanes_of(name).history.run(move || running::read(&dirs, &of))
    }

    fn begin(self: &Rc<Self>, config: config::Service) -> OpeningService {
        let (name, opened) = (config.name.clone(), self.open(&config.name, Some(config.text.clone())));
        self.opening(name, ServiceFile::Right, async move { Some((config, opened.await)) })
    }

    /// Opens a service whose file is missing or wrong: it uses the file that it was started with, if anything of it
    /// runs.
    fn begin_without_file(
        self: &Rc<Self>,
        name: &ServiceName,
        file: ServiceFile,
        running: Option<config::Service>,
    ) -> OpeningService {
        let (this, of) = (Rc::clone(self), name.clone());
        self.opening(name.clone(), file, async move {
            let running = match running {
                Some(config) => Some(config),
                None => this.retry_until_result(&of, || this.read_running(&of)).await,
            };
            let config = running?;
            tracing::warn!(service = %of, "its service file is missing or wrong; it goes by what it was started with");
            let opened = this.open(&of, None).await;
            Some((config, opened))
        })
    }

    fn opening(
        &self,
        name: ServiceName,
        file: ServiceFile,
        opened: impl Future<Output = Option<(config::Service, OpenedState)>> + 'static,
    ) -> OpeningService {
        let cause = format!("{} does not answer", self.shared.dirs.service_state(&name).display());
        self.not_taken_in.borrow_mut().insert(name.clone(), cause);
        OpeningService { name, file, opened: spawn_local(opened) }
    }

    /// Loads all at the same time: one that does not answer holds up no other.
    async fn load_these(self: &Rc<Self>, openings: Vec<OpeningService>, was_lost: bool) {
        let until = Instant::now() + OPENED_WITHIN;
        for mut opening in openings {
            match timeout_at(until, &mut opening.opened).await {
                Ok(opened) => {
                    self.not_taken_in.borrow_mut().remove(&opening.name);
                    self.load_one(opened.ok().flatten(), was_lost, opening.file == ServiceFile::Right);
                }
                Err(_) => self.load_later(opening, was_lost),
            }
        }
    }

    pub(super) fn is_known(&self, name: &ServiceName) -> bool {
        self.services.borrow().contains_key(name) || self.not_taken_in.borrow().contains_key(name)
    }

    /// Marks a service as removed if nothing of it runs: it has no file.
    fn find_removed(&self, name: &ServiceName) {
        if !self.is_known(name) {
            let (dirs, of) = (self.shared.dirs.clone(), name.clone());
            self.lanes_of(name).history.post(move || running::find_removed(&dirs, &of));
        }
    }

    /// Takes in one service once its state answers.
    fn load_later(self: &Rc<Self>, opening: OpeningService, was_lost: bool) {
        let OpeningService { name, file, opened } = opening;
        let cause = self.not_taken_in.borrow().get(&name).cloned().unwrap_or_default();
        tracing::error!(service = %name, "its state cannot be used yet: {cause}; it is taken in when it can");
        let this = Rc::clone(self);
        spawn_local(async move {
            let opened = opened.await.ok().flatten();
            this.not_taken_in.borrow_mut().remove(&name);
            this.load_one(opened, was_lost, file == ServiceFile::Right);
            this.start_in_order();
            if file == ServiceFile::Missing {
                this.find_removed(&name);
            }
        });
    }

    /// Takes in one service: with its file, or, if something of it runs, without one.
    fn load_one(&self, found: Option<(config::Service, OpenedState)>, was_lost: bool, has_file: bool) {
        let Some((config, opened)) = found else { return };
        if self.shared.is_leaving.get() {
            // The next daemon takes it in.
            return;
        }
        let name = config.name.clone();
        let handle = self.register(config, opened);
        let taken_over = handle.with(|service| {
            // A state that cannot be read yet may say that it is to run.
            let ran = |journal: &Journal| {
                let is_unknown = journal.refused().is_some() && *journal.standing() == Standing::default();
                journal.standing().wanted || is_unknown
            };
            // A service that is new has never been stopped.
            let decides = was_lost && !service.journal.is_new();
            let wanted = if decides { ran(&service.journal) } else { service.autostart().starts };
            let taken_over = service.take_over_left(wanted);
            // A damaged journal does not say which binary is to run.
            if !taken_over && has_file && wanted && !service.journal.is_damaged() {
                service.is_to_start = true;
            }
            taken_over
        });
        if !taken_over && !has_file {
            self.services.borrow_mut().remove(&name);
        } else {
            import_all_staged(handle);
        }
    }

    /// Refuses a service whose state was requested at the start, and has not answered yet.
    pub(super) fn check_answered(&self, name: &ServiceName) -> Result<(), Error> {
        let Some(cause) = self.not_taken_in.borrow().get(name).cloned() else { return Ok(()) };
        let message = format!("The state of service {:?} cannot be used: {cause}.", name.as_str());
        Err(Error::new(Kind::StorageFailed, message, "It is taken in as soon as that is over."))
    }

    /// Takes in a service that is new to this daemon, with everything of it that runs: an earlier daemon may have
    /// left it while its file or its journal could not be used. Blocks only for a moment.
    pub(super) fn add(&self, config: config::Service) -> Handle {
        let name = config.name.clone();
        let what = self.shared.dirs.service_state(&name).display().to_string();
        let lane = self.lanes_of(&name).journal;
        let (dirs, opens, of) = (self.shared.dirs.clone(), lane.clone(), name.clone());
        let text = config.text.clone();
        let is_another = self.removed.borrow_mut().remove(&name).is_some_and(|text| text != config.text);
        let opened = lane.wait(STATE_TIMEOUT, &what, move || {
            if is_another {
                set_aside(&dirs, &of);
            }
            state::open(&dirs, &of, Some(&text), &opens)
        });
        let opened = opened.unwrap_or_else(|error| state::without(&self.shared.dirs, &name, error));
        let handle = self.register(config, opened);
        handle.with(|service| service.take_over_late(false));
        handle
    }

    /// `text` is its service file, if it exists.
    fn open(
        self: &Rc<Self>,
        name: &ServiceName,
        text: Option<String>,
    ) -> impl Future<Output = OpenedState> + use<> {
        let (lane, dirs, of) = (self.lanes_of(name).journal, self.shared.dirs.clone(), name.clone());
        let (this, name) = (Rc::clone(self), name.clone());
        let open = move || {
            let (dirs, opens, of, text) = (dirs.clone(), lane.clone(), of.clone(), text.clone());
            lane.run(move || state::open(&dirs, &of, text.as_deref(), &opens))
        };
        async move {
            let opened = this.retry_until_result(&name, open).await;
            let until = Instant::now() + ADOPTION_SOCKET_TIMEOUT;
            while lacks_adoption_socket(&this.shared.dirs, opened.journal.standing())
                && Instant::now() < until
            {
                sleep(ADOPTION_SOCKET_TICK).await;
            }
            opened
        }
    }

    /// Tries until there is a result: that no thread can be started says nothing about what exists.
    async fn retry_until_result<T, F: Future<Output = io::Result<T>>>(
        &self,
        name: &ServiceName,
        look: impl Fn() -> F,
    ) -> T {
        loop {
            match look().await {
                Ok(found) => return found,
                Err(error) => self.report_late(name, &error),
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Notes what keeps a service from being taken in.
    fn report_late(&self, name: &ServiceName, error: &io::Error) {
        tracing::debug!(service = %name, %error, "its state cannot be looked at; trying again in {RETRY_PAUSE:?}");
        if let Some(cause) = self.not_taken_in.borrow_mut().get_mut(name) {
            *cause = error.to_string();
        }
    }

    pub(super) fn lanes_of(&self, name: &ServiceName) -> Lanes {
        self.lanes.borrow_mut().entry(name.clone()).or_insert_with(Lanes::new).clone()
    }

    /// Makes a service known, with what its journal says. If its journal or store cannot be used, that is its
    /// problem.
    fn register(&self, config: config::Service, opened: OpenedState) -> Handle {
        let name = config.name.clone();
        let handle = Handle::new(config, opened, self.lanes_of(&name), Rc::clone(&self.shared));
        handle.with(|service| {
            if let Some(problem) = service.problems.last() {
                tracing::error!(service = %service.name, "{problem}");
            }
            service.sweep_store();
            if service.journal.standing().reverted {
                // An earlier daemon may not have come to it.
                service.note_undone();
            }
            service.note_generation();
            service.adjust_path_watch();
        });
        self.services.borrow_mut().insert(name, handle.clone());
        handle
    }
}
