//! The directories of configuration, state and runtime files.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use handoff_protocol::ids::{HandoffId, ServiceName};

use crate::sys::user::effective_user;

/// The three directories, all absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// Service files.
    pub config: PathBuf,
    /// What survives a reboot: journals and logs.
    pub state: PathBuf,
    /// What does not survive a reboot: the control socket.
    pub runtime: PathBuf,
}

/// Directories from the command line or from `HANDOFF_CONFIG_DIR`, `HANDOFF_STATE_DIR` and `HANDOFF_RUNTIME_DIR`.
/// Relative ones are relative to the working directory.
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
    /// Neither the variable nor `HOME` is an absolute path.
    #[error(
        "the {0} directory is unknown: neither {1} nor HOME is an absolute path; set HOME or use --{0}-dir"
    )]
    Unknown(&'static str, &'static str),
    /// The working directory is gone, so a relative path has no meaning.
    #[error("{path:?} is relative and the working directory cannot be found: {error}")]
    NoWorkingDir {
        /// The relative path.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
    /// A directory could not be created.
    #[error("the directory {path:?} cannot be created: {error}; check the permissions above it")]
    Create {
        /// The directory.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
    /// Another user could create a socket there.
    #[error(
        "{path:?} is not safe to use as or above the runtime directory: {cause}; use another --runtime-dir"
    )]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

impl Dirs {
    /// Finds the directories for this process: overrides first, then the system directories for root, then the XDG
    /// directories of the user. Creates nothing, but refuses a runtime directory in which another user could answer.
    pub fn resolve(overrides: DirOverrides) -> Result<Dirs, DirsError> {
        let uid = effective_user();
        let dirs = Dirs::choose(overrides, uid, &|name| std::env::var_os(name))?;
        check_runtime(&dirs.runtime, uid)?;
        Ok(dirs)
    }

    /// Creates the state and runtime directories where missing, for the owner alone. Programs of root may drop their
    /// privileges, and must still reach the socket at which they report that they are ready. So other users may pass
    /// through the runtime directory of root, but not list it.
    pub fn create(&self) -> Result<(), DirsError> {
        for path in [&self.state, &self.runtime, &self.adopt_dir(), &self.commands_dir()] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| DirsError::Create { path: path.clone(), error })?;
        }
        // Check again: another process may have created it first.
        let uid = effective_user();
        check_runtime(&self.runtime, uid)?;
        if uid == 0 {
            let_pass(&self.runtime, uid)
                .map_err(|error| DirsError::Create { path: self.runtime.clone(), error })?;
        }
        Ok(())
    }

    /// Lets members of groups pass through the runtime directory to the control socket.
    pub fn let_others_pass(&self) -> io::Result<()> {
        let_pass(&self.runtime, effective_user())
    }

    /// The socket on which the daemon takes requests.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// The directory with a file for each running command: see [`crate::hooks`].
    pub fn commands_dir(&self) -> PathBuf {
        self.runtime.join("commands")
    }

    /// The directory of the sockets at which service processes wait for another daemon.
    pub fn adopt_dir(&self) -> PathBuf {
        self.runtime.join("adopt")
    }

    /// The socket at which the process that this handoff started waits for another daemon.
    pub fn adopt_socket(&self, handoff: HandoffId) -> PathBuf {
        self.adopt_dir().join(handoff.to_string())
    }

    /// The directory of the directories of single processes.
    pub fn processes_dir(&self) -> PathBuf {
        self.runtime.join("processes")
    }

    /// The directory of the process that this handoff started, if it needs one.
    pub fn process_dir(&self, handoff: HandoffId) -> PathBuf {
        self.processes_dir().join(handoff.to_string())
    }

    /// Lets a group reach the stored versions of a service. Others may pass through the directories above, but not
    /// list them, and reach nothing else there. Blocks.
    pub fn open_store_to(&self, service: &ServiceName, group: u32) -> io::Result<()> {
        const PASS_GROUP: u32 = 0o010;
        let owner = effective_user();
        let own = self.service_state(service);
        if !own.is_dir() {
            return Ok(());
        }
        let_pass(&self.state, owner)?;
        let_pass(&self.services_state(), owner)?;
        match let_pass(&self.versions(service), owner) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::chown(&own, None, Some(group))?;
        let mode = std::fs::metadata(&own)?.mode() & 0o7777;
        std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(mode | PASS_GROUP))
    }

    /// The file that the only daemon of this state directory locks.
    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// The service file of a service.
    pub fn service_file(&self, service: &ServiceName) -> PathBuf {
        self.config.join("services").join(format!("{service}.toml"))
    }

    /// The directory of the service files that do not survive a restart of the machine.
    pub fn ephemeral(&self) -> PathBuf {
        self.runtime.join("services")
    }

    /// The service file of such a service.
    pub fn ephemeral_file(&self, service: &ServiceName) -> PathBuf {
        self.ephemeral().join(format!("{service}.toml"))
    }

    /// The directory of the states of all services.
    pub fn services_state(&self) -> PathBuf {
        self.state.join("services")
    }

    /// The state directory of a service.
    pub fn service_state(&self, service: &ServiceName) -> PathBuf {
        self.services_state().join(service.as_str())
    }

    /// The journal of a service.
    pub fn journal(&self, service: &ServiceName) -> PathBuf {
        self.service_state(service).join("journal")
    }

    /// The store of a service's versions.
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

/// Lets other users pass through a directory of this user.
fn let_pass(path: &Path, owner: u32) -> io::Result<()> {
    const PASS: u32 = 0o011;
    let found = std::fs::metadata(path)?;
    if found.uid() != owner || found.mode() & PASS == PASS {
        return Ok(());
    }
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(found.mode() & 0o7777 | PASS))
}

/// The XDG specification requires that relative paths in its variables are ignored.
fn absolute_var(var: &dyn Fn(&'static str) -> Option<OsString>, name: &'static str) -> Option<PathBuf> {
    var(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn shared_fallback(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/handoff-{uid}"))
}

/// Refuses a runtime directory in which a user other than root could create a socket: each directory of the path must
/// belong to root or to this user, and no one else may write to it. A shared one with the sticky bit, such as `/tmp`,
/// may be part of the path. A missing directory is fine: no one else has created it.
fn check_runtime(runtime: &Path, uid: u32) -> Result<(), DirsError> {
    let unsafe_because = |path: &Path, cause: String| Err(DirsError::Unsafe { path: path.to_owned(), cause });
    // Check the path as written and the resolved path.
    let real = runtime.ancestors().find_map(|path| path.canonicalize().ok()).unwrap_or_default();
    let by_name: Vec<&Path> = runtime.ancestors().collect();
    for path in by_name.into_iter().rev().chain(real.ancestors()) {
        let found = match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return unsafe_because(path, format!("it cannot be examined ({error})")),
            Ok(found) => found,
        };
        let is_last = path == runtime;
        if found.uid() != uid && found.uid() != 0 {
            return unsafe_because(path, format!("it belongs to another user (uid {})", found.uid()));
        }
        if found.is_symlink() && !is_last {
            continue;
        }
        if !found.is_dir() {
            return unsafe_because(path, "it is not a directory".to_owned());
        }
        let (is_shared, is_sticky) = (found.mode() & 0o022 != 0, found.mode() & 0o1000 != 0);
        if is_shared && (is_last || !is_sticky) {
            return unsafe_because(
                path,
                format!("others may write to it (mode {:o})", found.mode() & 0o7777),
            );
        }
    }
    Ok(())
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
    fn a_directory_in_which_others_could_answer_is_refused() {
        let uid = effective_user();
        let parent = tempfile::tempdir().unwrap();
        let (above, path) = (parent.path().join("above"), parent.path().join("above/run"));
        let mode =
            |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        let refused = |path: &Path| check_runtime(path, uid).unwrap_err().to_string();
        assert!(check_runtime(&path, uid).is_ok(), "missing");
        std::fs::create_dir_all(&path).unwrap();
        for allowed in [0o700, 0o711, 0o755] {
            mode(&path, allowed);
            assert!(check_runtime(&path, uid).is_ok(), "{allowed:o}");
        }
        for open in [0o777, 0o1777, 0o770] {
            mode(&path, open);
            assert!(refused(&path).contains(&format!("others may write to it (mode {open:o})")), "{open:o}");
        }
        mode(&path, 0o700);
        mode(&above, 0o777);
        assert!(refused(&path).contains("above\""), "{}", refused(&path));
        mode(&above, 0o1777);
        assert!(check_runtime(&path, uid).is_ok(), "as /tmp");
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&above, &link).unwrap();
        assert!(check_runtime(&link.join("run"), uid).is_ok());
        assert!(refused(&link).contains("not a directory"));
        mode(&above, 0o777);
        assert!(refused(&link.join("run")).contains("others may write to it"));
        mode(&above, 0o755);
        // Only root can give a directory away.
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_ok() {
            assert!(refused(&path).contains("another user (uid 12345)"));
        }
    }

    #[test]
    fn created_directories_are_private() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join("deep").join(name);
        let dirs = Dirs { config: at("c"), state: at("s"), runtime: at("r") };
        dirs.create().unwrap();
        dirs.create().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&dirs.state), mode(&dirs.adopt_dir())), (0o700, 0o700));
        let runtime = if effective_user() == 0 { 0o711 } else { 0o700 };
        assert_eq!(mode(&dirs.runtime), runtime);
        assert!(!dirs.config.exists());
        let name: ServiceName = "s3".parse().unwrap();
        assert_eq!(dirs.log_dir(&name), at("s").join("services/s3/log"));
    }
}
