//! What a process gets besides its program: read, looked up and made for each start, in a lane.

use std::path::PathBuf;

use handoff_protocol::ids::{HandoffId, ServiceName};

use super::directory::ProcessDirectory;
use super::environment::{Environment, EnvironmentSources};
use crate::config::{self, Adapter, Dirs, ProcessIdentity, ProcessSettings};
use crate::supervisor::lane::Lane;
use crate::supervisor::service::START_LIMIT;
use crate::sys::attributes::Attributes;
use crate::sys::user::effective_user;

/// Where it comes from.
pub(super) struct StartSources {
    environment: EnvironmentSources,
    settings: ProcessSettings,
    adapter: Adapter,
    credentials: Vec<config::Credential>,
    dirs: Dirs,
    name: ServiceName,
    id: HandoffId,
}

/// What the process gets.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct StartContext {
    pub(super) environment: Environment,
    /// The user, the limits and the like.
    pub(super) attributes: Attributes,
    /// Where it waits for another daemon, if that is not the usual place.
    pub(super) adoption_path: Option<PathBuf>,
    /// Its own directory, if it has one.
    pub(super) directory: Option<ProcessDirectory>,
}

impl StartSources {
    pub(super) fn of(config: &config::Service, dirs: &Dirs, id: HandoffId) -> Self {
        Self {
            environment: EnvironmentSources::of(config),
            settings: config.process.clone(),
            adapter: config.adapter,
            credentials: config.credentials.clone(),
            dirs: dirs.clone(),
            name: config.name.clone(),
            id,
        }
    }

    /// Prepares the start. A start that needs no file takes no lane. The error names each mistake, and no value.
    pub(super) async fn prepare_in(self, lane: &Lane) -> Result<StartContext, String> {
        let is_plain = self.settings.is_empty() && self.credentials.is_empty();
        if is_plain && !self.environment.has_files() {
            return self.prepare();
        }
        let what = format!("a file that the start of {} needs", self.name);
        let prepared = lane.run_within(START_LIMIT, what, move || self.prepare()).await;
        prepared.map_err(|error| error.to_string())?
    }

    fn prepare(self) -> Result<StartContext, String> {
        let system = |error: std::io::Error| error.to_string();
        let reads_memory = self.adapter == Adapter::Inject;
        let identity = match self.settings.is_empty() {
            true => ProcessIdentity::default(),
            false => self.settings.permitted(reads_memory).map_err(system)?,
        };
        let mut environment = self.environment.read(identity.account.as_ref())?;
        let ids = identity.attributes.ids.as_ref();
        let is_other = ids.is_some_and(|ids| ids.user != effective_user());
        if let Some(ids) = ids.filter(|_| is_other) {
            self.dirs.open_store_to(&self.name, ids.group).map_err(system)?;
        }
        let waits_itself = is_other && self.adapter == Adapter::Handoff;
        let mut directory = None;
        if waits_itself || !self.credentials.is_empty() {
            let made = ProcessDirectory::make(&self.dirs, self.id, ids.filter(|_| is_other))?;
            if !self.credentials.is_empty() {
                let path = made.add_credentials(&self.credentials)?;
                environment.insert("CREDENTIALS_DIRECTORY".into(), path.into());
            }
            directory = Some(made);
        }
        let own = directory.as_ref().filter(|_| waits_itself);
        let adoption_path = own.map(ProcessDirectory::link_adoption_socket).transpose()?;
        directory.as_ref().map_or(Ok(()), |directory| directory.open_to_process(waits_itself))?;
        Ok(StartContext { environment, attributes: identity.attributes, adoption_path, directory })
    }
}
