//! Where configuration, state and runtime files live.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use handoff_protocol::ids::{HandoffId, ServiceName};

/// The three directories, all absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// Service files.
    pub config: PathBuf,
    /// What survives a reboot: journals and logs.
    pub state: PathBuf,
    /// What does not: the control socket.
    pub runtime: PathBuf,
}

/// Directories that the user named on the command line or in `HANDOFF_CONFIG_DIR`, `HANDOFF_STATE_DIR` and
/// `HANDOFF_RUNTIME_DIR`. Relative ones mean the working directory.
#[derive(Clone, Debug, Default)]
pub struct DirOverrides {
    /// Instead of the default configuration directory.
    pub config: Option<PathBuf>,
    /// Instead of the default state directory.
    pub state: Option<PathBuf>,
    /// Instead of the default runtime directory.
    pub runtime: Option<PathBuf>,
}

/// Why the directories cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirsError {
    /// Neither the variable nor `HOME` says where.
    #[error(
        "the {0} directory is unknown: neither {1} nor HOME is an absolute path; set HOME or use --{0}-dir"
    )]
    Unknown(&'static str, &'static str),
    /// The working directory is gone, so that a relative path means nothing.
    #[error("{path:?} is relative and the working directory cannot be found: {error}")]
    NoWorkingDir {
        /// The relative path.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// A directory could not be made.
    #[error("the directory {path:?} cannot be created: {error}; check the permissions above it")]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Under `/tmp` anybody may have made the directory first.
    #[error("{path:?} is not safe to use: {cause}; set XDG_RUNTIME_DIR or use --runtime-dir")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        cause: &'static str,
    },
}

impl Dirs {
    /// Finds the directories for this process: overrides first, then the system's places for root, then the XDG
    /// ones of the user. Creates nothing, but refuses a runtime directory under `/tmp` that is somebody else's.
    pub fn resolve(overrides: DirOverrides) -> Result<Dirs, DirsError> {
        let uid = rustix::process::geteuid().as_raw();
        let dirs = Dirs::choose(overrides, uid, &|name| std::env::var_os(name))?;
        if dirs.runtime == shared_fallback(uid) {
            check_private(&dirs.runtime, uid)?;
        }
        Ok(dirs)
    }

    /// Creates the state and runtime directories, for the owner alone, where they are missing.
    pub fn create(&self) -> Result<(), DirsError> {
        for path in [&self.state, &self.runtime, &self.adopt_dir()] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| DirsError::Create { path: path.clone(), error })?;
        }
        // Again, for somebody may have been faster.
        let uid = rustix::process::geteuid().as_raw();
        if self.runtime == shared_fallback(uid) { check_private(&self.runtime, uid) } else { Ok(()) }
    }

    /// The socket on which the daemon takes requests.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// The directory of the sockets at which the processes of services wait for another daemon.
    pub fn adopt_dir(&self) -> PathBuf {
        self.runtime.join("adopt")
    }

    /// The socket at which the process that was started in this handoff waits for another daemon.
    pub fn adopt_socket(&self, handoff: HandoffId) -> PathBuf {
        self.adopt_dir().join(handoff.to_string())
    }

    /// The file that the one daemon of this state directory locks.
    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// The file of a service.
    pub fn service_file(&self, service: &ServiceName) -> PathBuf {
        self.config.join("services").join(format!("{service}.toml"))
    }

    /// The directory of the states of all services.
    pub fn services_state(&self) -> PathBuf {
        self.state.join("services")
    }

    /// The directory of a service's state.
    pub fn service_state(&self, service: &ServiceName) -> PathBuf {
        self.services_state().join(service.as_str())
    }

    /// The journal of a service.
    pub fn journal(&self, service: &ServiceName) -> PathBuf {
        self.service_state(service).join("journal")
    }

    /// The store of its versions.
    pub fn versions(&self, name: &ServiceName) -> PathBuf {
        self.service_state(name).join("versions")
    }

    /// The directory of a service's log: `current`, and the rotated files `1` (newest), `2` and so on.
    pub fn log_dir(&self, service: &ServiceName) -> PathBuf {
        self.service_state(service).join("log")
    }

    fn choose(
        overrides: DirOverrides,
        uid: u32,
        var: &dyn Fn(&'static str) -> Option<OsString>,
    ) -> Result<Dirs, DirsError> {
        let root = uid == 0;
        let pick =
            |given: Option<PathBuf>, system: &str, user: &dyn Fn() -> Result<PathBuf, DirsError>| match given
            {
                Some(path) => {
                    std::path::absolute(&path).map_err(|error| DirsError::NoWorkingDir { path, error })
                }
                None if root => Ok(PathBuf::from(system)),
                None => user(),
            };
        let home = |what, variable, below: &str| {
            let xdg = absolute_var(var, variable).map(|base| base.join("handoff"));
            xdg.or_else(|| Some(absolute_var(var, "HOME")?.join(below).join("handoff")))
                .ok_or(DirsError::Unknown(what, variable))
        };
        let runtime = || absolute_var(var, "XDG_RUNTIME_DIR").map(|base| base.join("handoff"));
        Ok(Dirs {
            config: pick(overrides.config, "/etc/handoff", &|| home("config", "XDG_CONFIG_HOME", ".config"))?,
            state: pick(overrides.state, "/var/lib/handoff", &|| {
                home("state", "XDG_STATE_HOME", ".local/state")
            })?,
            runtime: pick(overrides.runtime, "/run/handoff", &|| {
                Ok(runtime().unwrap_or_else(|| shared_fallback(uid)))
            })?,
        })
    }
}

/// The XDG specification says that relative paths in its variables are to be ignored.
fn absolute_var(var: &dyn Fn(&'static str) -> Option<OsString>, name: &'static str) -> Option<PathBuf> {
    var(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn shared_fallback(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/handoff-{uid}"))
}

/// Refuses a directory that somebody else made or may write to. A missing one is fine: nobody made it.
fn check_private(path: &Path, uid: u32) -> Result<(), DirsError> {
    let unsafe_because = |cause| Err(DirsError::Unsafe { path: path.to_owned(), cause });
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => unsafe_because("it cannot be examined"),
        Ok(found) if !found.is_dir() => unsafe_because("it is not a directory"),
        Ok(found) if found.uid() != uid => unsafe_because("it belongs to another user"),
        Ok(found) if found.mode() & 0o077 != 0 => unsafe_because("others may enter it"),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn choose(uid: u32, vars: &[(&str, &str)], overrides: DirOverrides) -> Result<Dirs, DirsError> {
        Dirs::choose(overrides, uid, &|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    fn dirs(config: &str, state: &str, runtime: &str) -> Dirs {
        Dirs { config: config.into(), state: state.into(), runtime: runtime.into() }
    }

    #[test]
    fn root_user_and_overrides() {
        let none = DirOverrides::default;
        let system = dirs("/etc/handoff", "/var/lib/handoff", "/run/handoff");
        assert_eq!(choose(0, &[("XDG_CONFIG_HOME", "/x")], none()).unwrap(), system);

        let home = dirs("/home/u/.config/handoff", "/home/u/.local/state/handoff", "/tmp/handoff-7");
        assert_eq!(choose(7, &[("HOME", "/home/u"), ("XDG_STATE_HOME", "relative")], none()).unwrap(), home);

        let xdg = [("XDG_CONFIG_HOME", "/c"), ("XDG_STATE_HOME", "/s"), ("XDG_RUNTIME_DIR", "/r")];
        assert_eq!(choose(7, &xdg, none()).unwrap(), dirs("/c/handoff", "/s/handoff", "/r/handoff"));

        let given =
            DirOverrides { config: Some("/a".into()), state: Some("/b".into()), runtime: Some("r".into()) };
        let here = std::env::current_dir().unwrap().join("r");
        assert_eq!(choose(7, &[], given).unwrap(), dirs("/a", "/b", here.to_str().unwrap()));

        let error = choose(7, &[], none()).unwrap_err().to_string();
        assert!(error.contains("XDG_CONFIG_HOME") && error.contains("--config-dir"), "{error}");
    }

    #[test]
    fn a_private_directory_is_told_from_others() {
        let uid = rustix::process::geteuid().as_raw();
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("d");
        assert!(check_private(&path, uid).is_ok(), "missing");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o750)).unwrap();
        assert!(check_private(&path, uid).unwrap_err().to_string().contains("others may enter"));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        assert!(check_private(&path, uid).is_ok());
        assert!(check_private(&path, uid + 1).unwrap_err().to_string().contains("another user"));
        let link = parent.path().join("l");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(check_private(&link, uid).unwrap_err().to_string().contains("not a directory"));
    }

    #[test]
    fn created_directories_are_private() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join("deep").join(name);
        let dirs = Dirs { config: at("c"), state: at("s"), runtime: at("r") };
        dirs.create().unwrap();
        dirs.create().unwrap();
        for path in [&dirs.state, &dirs.runtime] {
            assert_eq!(std::fs::metadata(path).unwrap().mode() & 0o7777, 0o700);
        }
        assert!(!dirs.config.exists());
        let name: ServiceName = "s3".parse().unwrap();
        assert_eq!(dirs.log_dir(&name), at("s").join("services/s3/log"));
    }
}
