//! The environment of a process. Its files are read for each start.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::config::{self, Account, EnvFile, Inherit};

/// What a service inherits from the daemon's environment, unless its service file says otherwise.
const INHERITED: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_RUNTIME_DIR"];

pub(in crate::supervisor) type Environment = BTreeMap<OsString, OsString>;

/// Where the environment of a process comes from. A later source wins.
#[derive(Debug, Clone)]
pub(in crate::supervisor) struct EnvironmentSources {
    inherits: Inherit,
    inherited: Environment,
    files: Vec<EnvFile>,
    table: BTreeMap<String, String>,
    service_file: PathBuf,
}

impl EnvironmentSources {
    pub(in crate::supervisor) fn of(config: &config::Service) -> Self {
        let inherited = match &config.env_inherit {
            Inherit::Usual => inherited_environment().collect(),
            Inherit::All => std::env::vars_os().filter(|(name, _)| !is_own(name)).collect(),
            Inherit::Nothing => Environment::new(),
            Inherit::Only(names) => variables(names.iter().map(String::as_str)).collect(),
        };
        Self {
            inherits: config.env_inherit.clone(),
            inherited,
            files: config.env_files.clone(),
            table: config.env.clone(),
            service_file: config.file.clone(),
        }
    }

    pub(super) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// The environment, without the variables of the handoff. Blocks on the files. The error names each mistake, and no
    /// value.
    pub(super) fn read(self, account: Option<&Account>) -> Result<Environment, String> {
        let mut environment = self.inherited;
        if let Some(account) = account {
            // It is for the user of the daemon.
            environment.remove(OsStr::new("XDG_RUNTIME_DIR"));
            environment.extend(of_account(account).filter(|(name, _)| self.inherits.has(name)).map(pair));
        }
        for file in &self.files {
            let read = file.read(&self.service_file).map_err(|mistakes| {
                mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", and ")
            })?;
            environment.extend(read.into_iter().map(|(name, value)| (name.into(), value.into())));
        }
        environment.extend(self.table.into_iter().map(|(name, value)| (name.into(), value.into())));
        Ok(environment)
    }
}

/// The environment of a service that this process starts, without the variables of the handoff. Blocks on the files.
pub(crate) fn environment_of(config: &config::Service) -> Result<Vec<(OsString, OsString)>, String> {
    Ok(EnvironmentSources::of(config).read(None)?.into_iter().collect())
}

/// What a login as this user sets.
fn of_account(account: &Account) -> impl Iterator<Item = (&'static str, &str)> {
    let Account { name, home, shell, .. } = account;
    let all = [("USER", name), ("LOGNAME", name), ("HOME", home), ("SHELL", shell)];
    all.into_iter().map(|(variable, value)| (variable, value.as_str())).filter(|(_, value)| !value.is_empty())
}

fn pair((name, value): (&str, &str)) -> (OsString, OsString) {
    (name.into(), value.into())
}

/// What every command of a service file gets from this process's environment, and every service unless its file says
/// otherwise.
pub(crate) fn inherited_environment() -> impl Iterator<Item = (OsString, OsString)> {
    variables(INHERITED.into_iter())
}

fn variables<'a>(names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = (OsString, OsString)> {
    names.filter_map(|name| Some((name.into(), std::env::var_os(name)?)))
}

/// Variables that are for this process alone.
fn is_own(name: &OsStr) -> bool {
    name.to_str().is_some_and(config::is_reserved)
}
