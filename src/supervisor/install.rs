//! How another binary comes to run: taken into the store, verified, tried by the commands of the service file, and only then
//! given to the machine. Whatever fails before that changes nothing, and is told as a refusal.
//!
//! One at a time for each service: whoever comes later waits for the turn, or is told that the service is busy.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use handoff_protocol::ids::{HandoffId, ServiceName};
use handoff_protocol::record::Current;
use handoff_protocol::supervisor::{Phase, Request, Target};
use tokio::sync::OwnedMutexGuard;

use super::daemon::Daemon;
use super::handler::{check, wait};
use super::hooking::{Told, afterwards, must_pass};
use super::preparation::Preparation;
use super::recording::Asked;
use super::service::{Handle, Service};
use super::timeline::progress;
use super::versions::{blocking, collect};
use crate::config;
use crate::control::{Caller, Error, Kind, ProgressSink, api};
use crate::history::{self, Operation};
use crate::store::{self, Import, Imported, Step, Version};

/// What is to run.
#[derive(Debug)]
pub(super) enum Wanted {
    /// What is at a path.
    Path(PathBuf, api::Claims, Option<String>),
    /// What is in the store.
    Kept(Box<Version>),
}

/// An upgrade before the machine is asked.
pub(super) struct Pipeline {
    handle: Handle,
    config: config::Service,
    asked: Asked,
    phases: Phases,
    progress: Option<ProgressSink>,
    _turn: OwnedMutexGuard<()>,
}

impl Daemon {
    /// A new version was put at a path: upgrades to it, unless it runs already. Waits for its turn and for an upgrade that is
    /// under way. An error of kind [`Kind::Rejected`] means that nothing was changed.
    pub(super) async fn install(
        &self,
        wanted: api::Install,
        by: Caller,
        progress: Option<ProgressSink>,
    ) -> Result<api::Outcome, Error> {
        let asked = Asked::new(Operation::Install, by);
        let (handle, _) = self.find_fresh(&wanted.service)?;
        let phases = Phases::new(&wanted.service, &progress);
        phases.enter("waiting");
        let turn = handle.with(|service| Arc::clone(&service.turn)).lock_owned().await;
        handle.settled().await;
        // What the file says may have changed meanwhile.
        let (handle, config) = self.find_fresh(&wanted.service)?;
        handle.compacted().await;
        let pipeline = Pipeline { handle, config, asked, phases, progress, _turn: turn };
        let api::Install { path, claims, version, .. } = wanted;
        pipeline.run(Wanted::Path(path, claims, version), true, (None, None)).await
    }

    /// Upgrades to a version that ran before.
    pub(super) async fn rollback(
        &self,
        wanted: api::Rollback,
        asked: Asked,
        progress: Option<ProgressSink>,
    ) -> Result<api::Outcome, Error> {
        let (handle, config) = self.find_fresh(&wanted.service)?;
        handle.compacted().await;
        let version = handle.with(|service| service.to_go_back_to(wanted.generation))?;
        let pipeline = Pipeline::now(handle, config, asked, progress)?;
        pipeline.run(Wanted::Kept(Box::new(version)), false, (None, None)).await
    }
}

/// Takes in what a service without a current version is started from, or whose current version is lost.
pub(super) async fn bring_first(handle: &Handle, config: &config::Service) -> Result<(), Error> {
    if !config.update.store || !handle.with(|service| service.needs_first()) {
        return Ok(());
    }
    let _turn = handle.with(|service| Arc::clone(&service.turn)).lock_owned().await;
    let preparation = Preparation::begin();
    let import = import_of(config, &config.binary, &api::Claims::default(), None);
    let import = Import { called_off: preparation.flag(), ..import };
    let bring = import_into(handle, import, Phases::new(&config.name, &None));
    let Imported { version, path, .. } = preparation.guard(handle, bring).await?;
    handle.with(|service| match &service.journal.standing().current {
        Some(Current { binary, .. }) if binary.sha256 != version.made.id.0 => {
            let cause = format!(
                "the version that ran last ({}) is not kept any more, and this is another",
                super::binary::hex(&binary.sha256)
            );
            let hint = "put that version at this path, or move the journal away to begin anew";
            Err(Error::rejected(&config.name, format!("{}: {cause}", config.binary.display()), hint))
        }
        _ => {
            service.first = Some(path);
            Ok(())
        }
    })
}

impl Pipeline {
    /// Begins at once; the error says that somebody else is at work.
    pub(super) fn now(
        handle: Handle,
        config: config::Service,
        asked: Asked,
        progress: Option<ProgressSink>,
    ) -> Result<Self, Error> {
        let turn = handle.with(|service| Arc::clone(&service.turn)).try_lock_owned();
        let busy = |_| Error::busy(&config.name, "another version is brought in");
        let turn = turn.map_err(busy)?;
        let phases = Phases::new(&config.name, &progress);
        Ok(Self { handle, config, asked, phases, progress, _turn: turn })
    }

    /// Goes all the way. `once`: not if it runs already. The limits are those of the machine: deadline and drain grace.
    pub(super) async fn run(
        mut self,
        wanted: Wanted,
        once: bool,
        limits: (Option<u64>, Option<u64>),
    ) -> Result<api::Outcome, Error> {
        let preparation = Preparation::begin();
        let handle = self.handle.clone();
        let prepared = preparation.guard(&handle, self.prepare(&wanted, once, preparation.flag())).await;
        self.asked.before = self.phases.ended();
        let outcome = match prepared {
            Ok(Some((path, told))) => self.upgrade(&path, told, limits).await,
            Ok(None) => return Ok(self.unchanged()),
            Err(error) => {
                if error.kind == Kind::Rejected {
                    self.record_refusal(&wanted, &error);
                }
                Err(error)
            }
        };
        if let Err(error) = collect(&self.handle).await {
            tracing::warn!("{error}");
        }
        outcome
    }

    /// Everything before the machine is asked. Gives the file to start; nothing if it runs already.
    async fn prepare(
        &mut self,
        wanted: &Wanted,
        once: bool,
        called_off: Arc<AtomicBool>,
    ) -> Result<Option<(PathBuf, Told)>, Error> {
        self.handle.with(|service| {
            service.may_take_over(&self.config)?;
            match service.machine.phase() {
                Phase::Stopped => Err(Error::not_running(&self.config.name)),
                _ => Ok(()),
            }
        })?;
        let path = match wanted {
            Wanted::Kept(version) => self.handle.with(|service| service.store.path_of(version)),
            Wanted::Path(path, claims, version) => {
                self.bring_in(path, claims, version.as_deref(), called_off).await?
            }
        };
        if once && self.runs(&path).await {
            return Ok(None);
        }
        let told = self.handle.with(|service| service.told(&path, self.asked.what.as_str()));
        if let Some(command) = &self.config.hooks.preflight {
            self.phases.enter("preflight");
            must_pass(command, &told, &path, &self.config).await?;
        }
        if let Some(command) = &self.config.hooks.pre_upgrade {
            self.phases.enter("hook");
            must_pass(command, &told, &path, &self.config).await?;
        }
        Ok(Some((path, told)))
    }

    async fn bring_in(
        &mut self,
        path: &Path,
        claims: &api::Claims,
        version: Option<&str>,
        called_off: Arc<AtomicBool>,
    ) -> Result<PathBuf, Error> {
        if !self.config.update.store {
            if *claims != api::Claims::default() {
                let cause = "with store = false what is verified need not be what runs";
                return Err(Error::rejected(
                    &self.config.name,
                    cause,
                    "Remove store = false, or verify it yourself.",
                ));
            }
            check(&self.config.name, path)?;
            return Ok(path.to_owned());
        }
        let import = Import { called_off, ..import_of(&self.config, path, claims, version) };
        let imported = import_into(&self.handle, import, self.phases.clone()).await?;
        self.asked.version = imported.version.made.version.clone();
        Ok(imported.path)
    }

    /// Whether the process that serves was started from the same content.
    async fn runs(&self, path: &Path) -> bool {
        let hashes = self.handle.with(|service| service.shared.hashes.clone());
        let binary = match self.handle.with(|service| service.stored_binary(path)) {
            Some(binary) => Some(binary),
            None => hashes.identify(path).await.ok(),
        };
        self.handle.with(|service| {
            let serves = service.incumbent.is_some() && service.machine.phase() == Phase::Serving;
            serves && binary.is_some() && service.current_binary() == binary.as_ref()
        })
    }

    async fn upgrade(
        &self,
        path: &Path,
        told: Told,
        (deadline_ms, drain_grace_ms): (Option<u64>, Option<u64>),
    ) -> Result<api::Outcome, Error> {
        if self.asked.what == Operation::Install {
            self.handle.settled().await;
        }
        self.handle.with(|service| {
            if service.is_open_to_upgrades() {
                service.take_over(self.config.clone())?;
                service.candidate = Some(path.to_owned());
            }
            Ok::<_, Error>(())
        })?;
        let waited_us = self.asked.elapsed_us();
        let request = Request::Upgrade { target: Target::Candidate, deadline_ms, drain_grace_ms };
        let mut outcome =
            wait(&self.handle, request, Some(self.asked.clone()), self.progress.clone()).await?;
        outcome.took_us += waited_us;
        let later = outcome
            .phases
            .into_iter()
            .map(|phase| api::PhaseTime { started_us: phase.started_us + waited_us, ..phase });
        outcome.phases = self.asked.before.iter().cloned().chain(later).collect();
        self.handle.with(|service| service.last = Some(outcome.clone()));
        afterwards(&self.handle, &self.config, told, &outcome, path).await;
        Ok(outcome)
    }

    fn unchanged(&self) -> api::Outcome {
        let took_us = self.asked.elapsed_us();
        let outcome = self.handle.with(|service| service.as_it_is(api::Ending::Unchanged, took_us));
        api::Outcome { phases: self.asked.before.clone(), ..outcome }
    }

    fn record_refusal(&self, wanted: &Wanted, error: &Error) {
        let to = match wanted {
            Wanted::Path(path, _, version) => {
                history::Version { path: path.clone(), sha256: None, version: version.clone() }
            }
            Wanted::Kept(version) => history::Version {
                path: self.handle.with(|service| service.store.path_of(version)),
                sha256: Some(version.made.id.to_string()),
                version: version.made.version.clone(),
            },
        };
        self.handle.with(|service| {
            let mut entry = service.entry(&self.asked, history::Ending::Rejected, Some(&error.message));
            entry.id = HandoffId::from_uuid(uuid::Uuid::now_v7());
            entry.from = service.current_version();
            entry.to = Some(to);
            entry.took_us = self.asked.elapsed_us();
            entry.phases.clone_from(&self.asked.before);
            entry.accept_gap_us = None;
            service.recorder.append(entry);
        });
    }
}

impl Service {
    /// The version that a rollback means.
    fn to_go_back_to(&self, generation: Option<u64>) -> Result<Version, Error> {
        let current = self.current_binary().map(|binary| binary.sha256);
        let versions = self.store.versions();
        let ran = || versions.iter().filter(|it| it.used.last_generation().is_some());
        let found = match generation {
            Some(generation) => ran().find(|it| it.used.generations.contains(&generation)),
            None => ran().find(|it| Some(it.made.id.0) != current),
        };
        found.cloned().ok_or_else(|| {
            let mut kept: Vec<u64> = ran().flat_map(|it| it.used.generations.iter().copied()).collect();
            kept.sort_unstable();
            let kept: Vec<String> = kept.iter().map(u64::to_string).collect();
            let cause = match generation {
                Some(generation) => format!("the version of generation {generation} is not kept"),
                None => "no other version that ran is kept".to_owned(),
            };
            let kept = if kept.is_empty() { "none".to_owned() } else { kept.join(", ") };
            let hint =
                format!("Generations whose versions are kept: {kept}; see: handoff versions {}", self.name);
            Error::rejected(&self.name, cause, hint)
        })
    }
}

fn import_of(config: &config::Service, path: &Path, claims: &api::Claims, version: Option<&str>) -> Import {
    let path_of = |name: &str| config.env.get(name).map(Into::into).or_else(|| std::env::var_os(name));
    Import {
        path: path.to_owned(),
        member: claims.member.clone().or_else(|| config.update.member.clone()),
        tree: claims.tree.unwrap_or(config.update.tree),
        max_size_bytes: config.update.max_size_bytes,
        evidence: claims.evidence.clone(),
        trust: config.update.trust.clone(),
        version: version.map(str::to_owned),
        version_args: config.update.version_args.clone(),
        search: path_of("PATH"),
        called_off: Arc::default(),
    }
}

async fn import_into(handle: &Handle, import: Import, phases: Phases) -> Result<Imported, Error> {
    let (name, store) = handle.with(|service| (service.name.clone(), Arc::clone(&service.store)));
    let imported = blocking(move || {
        store.import(&import, &mut |step| {
            phases.enter(match step {
                Step::Copying => "importing",
                Step::Verifying => "verifying",
                Step::Storing => "storing",
            });
        })
    });
    imported.await?.map_err(|error| rejected(&name, &error))
}

/// What was wrong with a new version, for whoever asked.
pub(super) fn rejected(name: &ServiceName, error: &store::Error) -> Error {
    Error::rejected(name, error, error.hint())
}

/// The phases before the machine is asked; shown as they begin, also from another thread.
#[derive(Clone)]
struct Phases {
    service: ServiceName,
    since: Instant,
    began: Arc<Mutex<Vec<(&'static str, u64)>>>,
    progress: Option<ProgressSink>,
}

impl Phases {
    fn new(service: &ServiceName, progress: &Option<ProgressSink>) -> Self {
        let (service, progress) = (service.clone(), progress.clone());
        Self { service, since: Instant::now(), began: Arc::default(), progress }
    }

    fn age_us(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn enter(&self, phase: &'static str) {
        let at_us = self.age_us();
        self.began.lock().unwrap_or_else(PoisonError::into_inner).push((phase, at_us));
        if let Some(sink) = &self.progress {
            sink.send(progress(&self.service, HandoffId::NIL, phase, at_us, None));
        }
    }

    /// All of them; the last one ends now.
    fn ended(&self) -> Vec<api::PhaseTime> {
        let began = self.began.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = began.iter().skip(1).map(|(_, at_us)| *at_us).chain([self.age_us()]);
        let phase = |(&(phase, started_us), end): (&(&str, u64), u64)| api::PhaseTime {
            phase: phase.to_owned(),
            started_us,
            took_us: end.saturating_sub(started_us),
        };
        began.iter().zip(ends).map(phase).collect()
    }
}
