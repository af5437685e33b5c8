//! The version that a service is started from if it has no current one yet, or has lost it; and starts that no client
//! waits for.

use std::io;
use std::path::{Path, PathBuf};

use handoff_protocol::reason::Reason;
use handoff_protocol::record::{Binary, Current, Fact};
use handoff_protocol::supervisor::{Incumbent, Phase, Request, Target};
use tokio::task::spawn_local;

use super::FirstProgram;
use super::binary::{Hashes, hex};
use super::install::{import_into, import_of, rejected};
use super::origin::Origin;
use super::phases::Phases;
use super::preparation::Preparation;
use super::staging::check_staged;
use super::versions::unfinished;
use crate::config;
use crate::control::{Error, api};
use crate::history;
use crate::store::{self, Import, Imported};
use crate::supervisor::daemon::operation;
use crate::supervisor::input::Input;
use crate::supervisor::lane::Lane;
use crate::supervisor::process::Token;
use crate::supervisor::requests::unusable;
use crate::supervisor::service::{Handle, START_LIMIT, Service};

/// Takes in the first version of a service that has no current version, or has lost it.
pub(in crate::supervisor) async fn import_first(
    handle: &Handle,
    config: &config::Service,
) -> Result<(), Error> {
    if handle.read(|service| service.versions.staged.is_some()) {
        return Ok(());
    }
    if !config.update.store {
        return register_in_place(handle, config).await;
    }
    if !handle.read(|service| service.needs_first(config)) {
        return Ok(());
    }
    check_owner(handle, config).await?;
    let _turn = handle.import_lock().lock_owned().await;
    let preparation = Preparation::begin(None);
    let import = import_of(config, &config.binary, &api::Claims::default(), None);
    let import = Import { called_off: preparation.flag(), ..import };
    let bring = import_into(handle, import, Phases::new(&config.name, &None));
    let Imported { version, path, .. } = preparation.guard(handle, bring).await?;
    let binary = Binary { path: path.to_string_lossy().into_owned(), sha256: version.metadata.id.0 };
    remember(handle, binary, Some(config.binary.clone()), config).await;
    handle.with(|service| match &service.journal.standing().current {
        Some(Current { binary, .. }) if binary.sha256 != version.metadata.id.0 => {
            let cause = format!(
                "the version that ran last ({}) is not kept any more, and this is another",
                hex(&binary.sha256)
            );
            let hint = "put that version at this path, or move the journal away to begin with a new one";
            Err(Error::rejected(&config.name, format!("{}: {cause}", config.binary.display()), hint))
        }
        _ => {
            service.versions.first =
                Some(FirstProgram { named: config.binary.clone(), is_stored: true, path });
            Ok(())
        }
    })
}

/// A program that runs in place is started by a path without links: what a link leads to later is another version.
async fn register_in_place(handle: &Handle, config: &config::Service) -> Result<(), Error> {
    check_owner(handle, config).await?;
    let committed = handle.read(|service| service.current_binary().map(|binary| PathBuf::from(&binary.path)));
    let named = config.binary.clone();
    let committed_at = committed.clone();
    let (lane, hashes) =
        handle.read(|service| (service.lanes.imports.clone(), service.shared.hashes.clone()));
    let looked = lane.run_within(START_LIMIT, named.display().to_string(), move || {
        let path = config::resolve(&named);
        (committed_at.is_some_and(|path| !path.exists()), hashes.identify(&path).ok(), path)
    });
    let (is_gone, binary, path) =
        looked.await.map_err(|error| unfinished(&config.name, &config.binary, &error))?;
    if committed.is_some() && !is_gone {
        return Ok(());
    }
    if let Some(binary) = binary {
        remember(handle, binary, Some(config.binary.clone()), config).await;
    }
    handle.with(|service| {
        if let Some(committed) = committed {
            let (gone, instead) = (committed.display(), path.display());
            tracing::warn!(service = %service.name, "{gone} is gone; {instead} is started instead");
            service.versions.trying = Some(path.clone());
        }
        service.versions.first = Some(FirstProgram { named: config.binary.clone(), is_stored: false, path });
    });
    Ok(())
}

/// The binary at `path`, or, if that is gone, the one that `instead` leads to. Blocks on the file system.
pub(in crate::supervisor) fn find(
    hashes: &Hashes,
    path: &Path,
    instead: Option<&Path>,
) -> io::Result<Binary> {
    let gone = match (hashes.identify(path), instead) {
        (Err(error), Some(named)) if error.kind() == io::ErrorKind::NotFound => (error, named),
        (found, _) => return found,
    };
    let (error, named) = gone;
    let resolved = config::resolve(named);
    if resolved == path || !resolved.exists() {
        return Err(error);
    }
    store::check_named(named).map_err(|refused| io::Error::other(format!("{error}; {refused}")))?;
    tracing::warn!("{} is gone; {} is started instead", path.display(), resolved.display());
    hashes.identify(&resolved)
}

/// A program that runs in place, before another start of it.
#[derive(Debug, Clone)]
pub(in crate::supervisor) struct RunningInPlace {
    path: PathBuf,
    /// The path that the service file names.
    named: PathBuf,
    /// Whether it was brought in by that path, wherever the path leads now.
    is_from_file: bool,
}

impl RunningInPlace {
    /// Checks that only permitted users could have changed the program, if a service file names it: no caller has
    /// chosen it then. Blocks on the file system.
    pub(in crate::supervisor) fn check(&self) -> Result<(), store::Error> {
        let checked = if config::resolve(&self.named) == self.path {
            store::check_named(&self.named)
        } else if self.is_from_file {
            store::check_named(&self.path)
        } else {
            Ok(())
        };
        match checked {
            // The caller has a better message for a missing file.
            Err(store::Error::Binary(_)) => Ok(()),
            checked => checked,
        }
    }

    /// The same, for an error that begins with the path.
    pub(in crate::supervisor) fn check_start(&self) -> io::Result<()> {
        self.check().map_err(|error| match error {
            store::Error::Refused { cause, hint, .. } => io::Error::other(format!("{cause}; {hint}")),
            error => io::Error::other(format!("{error}; {}", error.hint())),
        })
    }
}

/// Checks whether a service may be restarted from what it runs.
pub(in crate::supervisor) async fn check_running(
    handle: &Handle,
    config: &config::Service,
) -> Result<(), Error> {
    let found = handle.read(|service| {
        let in_place = service.in_place(&service.path_of(Target::Committed), &config.binary);
        in_place.map(|in_place| (in_place, service.lanes.imports.clone()))
    });
    let Some((in_place, lane)) = found else { return Ok(()) };
    let what = in_place.path.display().to_string();
    let checked = lane.run_within(START_LIMIT, what, move || in_place.check()).await;
    checked
        .map_err(|error| Error::rejected(&config.name, error, "Nothing was changed; ask again."))?
        .map_err(|error| rejected(&config.name, &error))
}

/// Checks which users could have changed what a service file names, because it is started unattended.
pub(in crate::supervisor) async fn check_owner(
    handle: &Handle,
    config: &config::Service,
) -> Result<(), Error> {
    let path = config.binary.clone();
    let lane = handle.lanes().imports;
    let what = path.display().to_string();
    let checked = lane.run_within(START_LIMIT, what, move || store::check_named(&path)).await;
    let checked =
        checked.map_err(|error| Error::rejected(&config.name, error, "Nothing was changed; ask again."))?;
    match checked {
        // The caller has a better message for a missing file.
        Err(store::Error::Binary(_)) | Ok(()) => Ok(()),
        Err(error) => Err(rejected(&config.name, &error)),
    }
}

/// Checks whether the claims about a version can be verified.
pub(crate) fn check_claims(config: &config::Service, claims: &api::Claims) -> Result<(), Error> {
    if config.update.store || *claims == api::Claims::default() {
        return Ok(());
    }
    let cause = "with store = false what is verified need not be what runs";
    Err(Error::rejected(&config.name, cause, "Remove store = false, or verify it yourself."))
}

/// Records where a version came from.
pub(in crate::supervisor) async fn remember(
    handle: &Handle,
    binary: Binary,
    given: Option<PathBuf>,
    config: &config::Service,
) {
    let (lane, named) = (handle.lanes().comparisons, config.binary.clone());
    if let Some(origin) = origin_of(lane, binary, given, named).await {
        handle.with(|service| service.remember_origin(origin));
    }
}

/// Where a version comes from. `None` if that does not answer: an upgrade then goes on, and the version is not
/// compared with what the file names.
pub(in crate::supervisor) async fn origin_of(
    lane: Lane,
    binary: Binary,
    given: Option<PathBuf>,
    named: PathBuf,
) -> Option<Origin> {
    let what = named.display().to_string();
    lane.run_within(START_LIMIT, what, move || Origin::of(&binary, given, named)).await.ok()
}

/// The result of bringing in the first version of a service that no client waits for.
pub(in crate::supervisor) struct ImportResult {
    first: Result<(), Error>,
    /// Why the staged version is not started.
    refused: Option<Error>,
}

impl Service {
    /// The program at `path`, unless it is in the store.
    pub(in crate::supervisor) fn in_place(&self, path: &Path, named: &Path) -> Option<RunningInPlace> {
        let origin = self.versions.origins.iter().rev().find(|origin| origin.binary == path);
        let is_from_file = origin.is_some_and(|origin| origin.given.as_deref() == Some(named));
        self.stored_binary(path).is_none().then(|| RunningInPlace {
            path: path.to_owned(),
            named: named.to_owned(),
            is_from_file,
        })
    }

    /// What is started if a program that runs in place is gone: what its service file names.
    pub(in crate::supervisor) fn instead(&self, target: Target) -> Option<PathBuf> {
        let is_in_place = target == Target::Committed && !self.config.update.store;
        is_in_place.then(|| self.config.binary.clone())
    }

    /// The same hint as a clause for the status, for a service that does not serve.
    pub(in crate::supervisor) fn start_hint(&self, reason: &Reason) -> Option<String> {
        let serves = self.machine.incumbent() != Incumbent::Absent;
        self.adapter_hint(reason).filter(|_| !serves)?;
        Some(format!(
            "if it does not embed the library of handoff, its file needs the key adapter: handoff doctor {} says which",
            self.name
        ))
    }

    /// A hint for a program that does not seem to speak the protocol: it binds by itself, and finds the address in
    /// use.
    pub(in crate::supervisor) fn adapter_hint(&self, reason: &Reason) -> Option<String> {
        let said_hello = self.operations.timeline().phases().iter().any(|phase| phase.phase == "warming");
        let is_mute = matches!(reason, Reason::NoHello | Reason::SuccessorExited(_)) && !said_hello;
        (is_mute && !self.config.adapter.is_foreign()).then(|| {
            format!(
                "If it does not embed the library of handoff, its file needs the key adapter: handoff doctor {0} says which. \
                 See also: handoff logs {0}",
                self.name
            )
        })
    }

    /// Starts a service that no client waits for, as soon as there is something to start.
    pub(in crate::supervisor) fn start_when_imported(&mut self) {
        let was_refused = self.journal.refused().is_some();
        self.repair_journal_at_rest(true);
        let is_told = was_refused && self.journal.refused().is_none();
        if self.machine.phase() != Phase::Stopped || is_told && !self.is_known_to_be_wanted() {
            self.call_off_start();
            return;
        }
        if let Some(cause) = self.journal.refused() {
            let error = unusable(&self.name, cause, self.journal.is_damaged());
            return self.await_first(&error);
        }
        if !self.needs_first(&self.config) && self.versions.staged.is_none() {
            return self.start_alone();
        }
        // If this daemon is lost meanwhile, the next one continues.
        self.note(Fact::Wanted { up: true });
        let Some(handle) = self.handle() else { return };
        let config = self.config.clone();
        let (token, inputs) = (self.begin_awaited(), self.inputs.clone());
        spawn_local(async move {
            let refused = check_staged(&handle, &config).await.err();
            let first = import_first(&handle, &config).await;
            inputs.deliver(Input::FirstImported(token, ImportResult { first, refused })).await;
            // Held until here, so that the service counts as in use.
            drop(handle);
        });
    }

    /// Handles the result of bringing in the program of a start that no client waits for.
    pub(in crate::supervisor) fn first_imported(
        &mut self,
        token: Token,
        ImportResult { first, refused }: ImportResult,
    ) {
        if !self.awaits(token) || self.machine.phase() != Phase::Stopped {
            return;
        }
        match first {
            Ok(()) => {
                self.try_staged();
                self.start_alone();
            }
            Err(error) => self.await_first(&error),
        }
        if let Some(error) = refused {
            tracing::error!("{error}");
            self.problems.staged_refused(&error);
        }
    }

    /// Starts a service that no client waits for.
    pub(in crate::supervisor) fn start_alone(&mut self) {
        if self.shared.is_leaving.get() {
            self.call_off_start();
            return;
        }
        if let Err(error) = self.open_listeners() {
            return self.await_address(&error);
        }
        self.call_off_start();
        let (operation, answer) = operation(history::Operation::Start, "the daemon starts");
        self.ask(Request::Start, None, operation);
        spawn_local(async move {
            if let Ok(Err(error)) = answer.await {
                tracing::error!("{error}");
            }
        });
    }
}
