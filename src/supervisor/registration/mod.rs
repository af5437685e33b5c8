//! Services that are added and removed by requests.

mod files;

pub(super) use files::has_ephemeral;

use std::io;
use std::time::Duration;

use handoff_protocol::ids::ServiceName;
use tokio::time::{Instant, sleep};

use super::daemon::Daemon;
use super::service::{Handle, START_LIMIT};
use super::service_files::{ServiceFileContent, ServiceFileStamps};
use crate::config;
use crate::control::{Caller, Error, Handler, Kind, ProgressSink, api};

/// How long a service that has stopped may take to be forgotten: tasks that end may still hold it.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(5);
const FORGOTTEN_TICK: Duration = Duration::from_millis(10);
/// A large store takes long to delete.
const DELETED_WITHIN: Duration = Duration::from_secs(120);

/// How a service is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    /// Only if it was registered.
    Unregister,
    /// Its state stays.
    Remove,
    /// Its state is deleted.
    Destroy,
}

impl Daemon {
    /// Writes the file of a new service and starts it, or leaves no trace.
    pub(super) async fn register_service(
        &self,
        wanted: api::Register,
        by: Caller,
        progress: ProgressSink,
    ) -> Result<api::Outcome, Error> {
        let _turn = self.reloading.lock().await;
        let api::Register { service: name, text, ephemeral } = &wanted;
        self.check_answered(name)?;
        let dirs = self.shared.dirs.clone();
        let file = if *ephemeral { dirs.ephemeral_file(name) } else { dirs.service_file(name) };
        let invalid = |errors: Vec<config::Error>| Error::config_invalid(name, &errors);
        let config = config::Service::parse(name.clone(), &file, text).map_err(invalid)?;
        if let Some(same) = self.registered_before(name, text).await? {
            let unchanged = same.read(|service| service.current_outcome(api::Ending::Unchanged, 0));
            return Ok(unchanged);
        }
        // The files of others may be new.
        self.all().await;
        self.refuse_conflicts(&config)?;
        let checked = config.clone();
        let mistakes = self.in_lane(name, START_LIMIT, move || Ok(checked.check_files())).await?;
        if !mistakes.is_empty() {
            return Err(invalid(mistakes));
        }
        let (path, content, is_ephemeral, of) = (file.clone(), text.clone(), *ephemeral, dirs.clone());
        let write = move || {
            if is_ephemeral {
                files::prepare_ephemeral(&of)?;
            }
            files::write_new(&path, &content)
        };
        self.in_lane(name, START_LIMIT, write).await?;
        self.broken.borrow_mut().remove(name);
        let autostart = config.autostart;
        let (is_new, ended) = self.add_registered(config, by, progress).await;
        match ended {
            Ok(outcome) if outcome.outcome != api::Ending::Failed || !autostart => Ok(outcome),
            Ok(outcome) => {
                let message = format!("Service {:?} could not be started.", name.as_str());
                let cause = outcome.reason.unwrap_or_default();
                self.leave_no_trace(name, file, is_new).await;
                Err(Error::new(Kind::SpawnFailed, format!("{message} {cause}"), "Nothing is left of it."))
            }
            Err(error) => {
                self.leave_no_trace(name, file, is_new).await;
                let hint = format!("Nothing is left of it. {}", error.hint);
                Err(Error { hint, ..error })
            }
        }
    }

    /// The service, if its file says this already. An error if its file says something else.
    async fn registered_before(&self, name: &ServiceName, text: &str) -> Result<Option<Handle>, Error> {
        let stamps = ServiceFileStamps::from([(name.clone(), None)]);
        let found = self.read_files(stamps, false).await.found.remove(name);
        let is_same =
            matches!(&found, Some(ServiceFileContent::File(_, Ok(service))) if service.text == text);
        match found {
            _ if is_same => self.find(name).await.map(Some),
            Some(ServiceFileContent::Absent) | None if self.services.borrow().get(name).is_none() => Ok(None),
            Some(ServiceFileContent::Absent) | None => {
                let message = format!("Service {:?} runs, although its file is gone.", name.as_str());
                Err(Error::new(
                    Kind::ConfigInvalid,
                    message,
                    format!("Remove it first: handoff remove {name}"),
                ))
            }
            Some(_) => {
                let message = format!("Service {:?} has another service file.", name.as_str());
                let hint =
                    format!("Change that file, then: handoff reload. Or remove it: handoff remove {name}");
                Err(Error::new(Kind::ConfigInvalid, message, hint))
            }
        }
    }

    /// Returns whether nothing was known of the service before, and how its start ended.
    async fn add_registered(
        &self,
        config: config::Service,
        by: Caller,
        progress: ProgressSink,
    ) -> (bool, Result<api::Outcome, Error>) {
        let (name, autostart, text) = (config.name.clone(), config.autostart, config.text.clone());
        let handle = self.add(config);
        let is_new = handle.read(|service| service.journal.is_new());
        let (dirs, of) = (self.shared.dirs.clone(), name.clone());
        let marked =
            self.in_lane(&name, START_LIMIT, move || files::mark_registered(&dirs, &of, &text)).await;
        if let Err(error) = marked {
            return (is_new, Err(error));
        }
        if !autostart {
            return (is_new, Ok(handle.read(|service| service.current_outcome(api::Ending::Stopped, 0))));
        }
        drop(handle);
        let started = Box::pin(self.call(api::Request::Start(name), by, progress)).await;
        let outcome = started.and_then(|answer| match answer {
            api::Response::Outcome(outcome) => Ok(*outcome),
            other => Err(Error::internal(format!("not the answer to a start: {other:?}"))),
        });
        (is_new, outcome)
    }

    async fn leave_no_trace(&self, name: &ServiceName, file: std::path::PathBuf, is_new: bool) {
        let by = Caller::own("its registration has failed");
        let stopped = self.stop_service(name, by, ProgressSink::none()).await;
        let deleted = self.in_lane(name, START_LIMIT, move || files::delete(&file)).await;
        let forgotten = self.forget(name).await;
        let dirs = self.shared.dirs.clone();
        let of = name.clone();
        let cleared = match is_new && forgotten.is_ok() {
            true => {
                self.in_lane(name, DELETED_WITHIN, move || files::delete_state(&dirs, &of)).await.map(drop)
            }
            false => Ok(()),
        };
        self.removed.borrow_mut().remove(name);
        for error in [stopped.map(drop), deleted, forgotten, cleared].into_iter().filter_map(Result::err) {
            tracing::error!(service = %name, "something is left of its registration: {error}");
        }
    }

    /// [`Daemon::remove_service`], as an answer.
    pub(super) async fn remove_by(
        &self,
        name: &ServiceName,
        removal: Removal,
        by: Caller,
        progress: ProgressSink,
    ) -> Result<api::Response, Error> {
        let removed = self.remove_service(name, removal, by, progress).await?;
        Ok(api::Response::Removed(Box::new(removed)))
    }

    /// Stops a service, and takes its file away.
    async fn remove_service(
        &self,
        name: &ServiceName,
        removal: Removal,
        by: Caller,
        progress: ProgressSink,
    ) -> Result<api::Removed, Error> {
        let _turn = self.reloading.lock().await;
        self.check_answered(name)?;
        let (dirs, of) = (self.shared.dirs.clone(), name.clone());
        let (is_registered, has_traces) = self
            .in_lane(name, START_LIMIT, move || {
                Ok((files::is_registered(&dirs, &of), files::has_traces(&dirs, &of)))
            })
            .await?;
        let is_known = self.is_known(name) || self.broken.borrow().contains_key(name);
        if removal == Removal::Unregister && is_known && !is_registered {
            let message =
                format!("Service {:?} was not registered: its file was written by hand.", name.as_str());
            return Err(Error::new(
                Kind::ConfigInvalid,
                message,
                format!("To remove it: handoff remove {name}"),
            ));
        }
        let stopped = self.stop_service(name, by, progress).await?;
        let (dirs, of) = (self.shared.dirs.clone(), name.clone());
        let kept = self.in_lane(name, START_LIMIT, move || files::take_file_away(&dirs, &of)).await?;
        self.forget(name).await?;
        let mut removed = api::Removed {
            was_there: is_known || (removal == Removal::Destroy && has_traces),
            stopped,
            kept,
            ..api::Removed::default()
        };
        if removal == Removal::Destroy {
            let (dirs, of) = (self.shared.dirs.clone(), name.clone());
            let deletion =
                self.in_lane(name, DELETED_WITHIN, move || files::delete_state(&dirs, &of)).await?;
            self.removed.borrow_mut().remove(name);
            (removed.deleted, removed.foreign) = (deletion.deleted, deletion.foreign);
        }
        Ok(removed)
    }

    /// Stops a service. Returns whether it ran.
    async fn stop_service(
        &self,
        name: &ServiceName,
        by: Caller,
        progress: ProgressSink,
    ) -> Result<bool, Error> {
        self.stop_and_settle(name, by, progress).await.map(|stopped| stopped.is_some())
    }

    /// Forgets a stopped service. A later one of its name starts with what its file says.
    async fn forget(&self, name: &ServiceName) -> Result<(), Error> {
        self.broken.borrow_mut().remove(name);
        let until = Instant::now() + FORGOTTEN_WITHIN;
        while self.services.borrow().contains_key(name) {
            self.learn(name, ServiceFileContent::Absent, true);
            if Instant::now() > until {
                let message = format!("Service {:?} is still at work.", name.as_str());
                return Err(Error::new(Kind::Busy, message, "Its file is taken away; ask again."));
            }
            if self.services.borrow().contains_key(name) {
                sleep(FORGOTTEN_TICK).await;
            }
        }
        if let Some(text) = self.removed.borrow_mut().get_mut(name) {
            // No file says this.
            text.clear();
        }
        let (dirs, of) = (self.shared.dirs.clone(), name.clone());
        self.lanes_of(name).history.post(move || super::running::mark_removed(&dirs, &of, ""));
        Ok(())
    }

    /// Does work on the files of a service, in the lane of its history: after what was posted there before.
    async fn in_lane<T: Send + 'static>(
        &self,
        name: &ServiceName,
        limit: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let lane = self.lanes_of(name).history;
        let done =
            lane.run_within(limit, self.shared.dirs.service_state(name).display().to_string(), work).await;
        done.and_then(|done| done).map_err(|error| {
            let message = format!("The files of service {:?} cannot be changed: {error}.", name.as_str());
            Error::new(Kind::StorageFailed, message, "Mend that, then ask again.")
        })
    }
}
