//! The directory of one process in the runtime directory: its credentials, and its adoption socket if it has another
//! user than the daemon.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use handoff_protocol::ids::HandoffId;

use crate::config::{Credential, Dirs};
use crate::sys::attributes::Ids;
use crate::sys::regular;
use crate::sys::user::effective_user;

const CREDENTIALS: &str = "credentials";
const ADOPTION: &str = "adopt";
/// Maximum size of a credential, as in systemd.
const CREDENTIAL_MAX_BYTES: u64 = 1 << 20;

/// The directory. Removed on drop, unless the process has been started.
#[derive(Debug)]
pub(in crate::supervisor) struct ProcessDirectory {
    path: PathBuf,
    /// The place at which the daemon looks for the adoption socket.
    link: PathBuf,
    owner: Option<(u32, u32)>,
    is_kept: bool,
}

impl ProcessDirectory {
    /// Makes the directory, for a process of this user or of the daemon's own. It stays closed to that user until
    /// [`Self::open_to_process`]: in a directory that another user can change, a path may lead anywhere.
    pub(super) fn make(dirs: &Dirs, id: HandoffId, ids: Option<&Ids>) -> Result<Self, String> {
        let (path, above) = (dirs.process_dir(id), dirs.processes_dir());
        let owner = ids.map(|ids| (ids.user, ids.group));
        DirBuilder::new().recursive(true).mode(0o711).create(&above).map_err(failed("make", &above))?;
        DirBuilder::new().mode(0o700).create(&path).map_err(failed("make", &path))?;
        Ok(Self { path, link: dirs.adopt_socket(id), owner, is_kept: false })
    }

    /// Copies the credentials. Returns their directory. The error contains nothing of their contents.
    pub(super) fn add_credentials(&self, credentials: &[Credential]) -> Result<PathBuf, String> {
        let directory = self.path.join(CREDENTIALS);
        DirBuilder::new().mode(0o700).create(&directory).map_err(failed("make", &directory))?;
        if !regular::is_in_memory(&directory) {
            let place = directory.display();
            tracing::warn!("the credentials in {place} are on a disk: the runtime directory is on no tmpfs");
        }
        for Credential { name, path, .. } in credentials {
            let read = |error: io::Error| format!("credentials.{name}: {path:?} cannot be read: {error}");
            let content = read_bounded(path).map_err(read)?;
            let copy = directory.join(name);
            let written = File::options().write(true).create_new(true).mode(0o400).open(&copy);
            written
                .and_then(|mut file| file.write_all(&content))
                .and_then(|()| self.give_away(&copy))
                .map_err(failed("write", &copy))?;
        }
        fs::set_permissions(&directory, Permissions::from_mode(0o500))
            .map_err(failed("close", &directory))?;
        self.give_away(&directory).map_err(failed("give away", &directory))?;
        Ok(directory)
    }

    /// Lets the process wait for another daemon in its own directory: the usual one is open to the daemon's user alone.
    pub(super) fn link_adoption_socket(&self) -> Result<PathBuf, String> {
        let path = self.path.join(ADOPTION);
        symlink(&path, &self.link).map_err(failed("make", &self.link))?;
        Ok(path)
    }

    /// Lets the user of the process in, as the last step. The directory stays the daemon's, and is sticky if the process
    /// may make files there: so that user can neither move nor mount anything in its place.
    pub(super) fn open_to_process(&self, makes_files: bool) -> Result<(), String> {
        let Some((_, group)) = self.owner else { return Ok(()) };
        let mode = if makes_files { 0o1730 } else { 0o710 };
        let above = self.path.parent().unwrap_or(&self.path);
        // The umask of the daemon may have closed it.
        fs::set_permissions(above, Permissions::from_mode(0o711))
            .and_then(|()| chown(&self.path, None, Some(group)))
            .and_then(|()| fs::set_permissions(&self.path, Permissions::from_mode(mode)))
            .map_err(failed("open", &self.path))
    }

    /// Leaves the directory to the process.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }

    fn give_away(&self, path: &Path) -> io::Result<()> {
        self.owner.map_or(Ok(()), |(user, group)| chown(path, Some(user), Some(group)))
    }
}

impl Drop for ProcessDirectory {
    fn drop(&mut self) {
        if !self.is_kept {
            if self.link.is_symlink() {
                let _ = fs::remove_file(&self.link);
            }
            remove_directory(&self.path);
        }
    }
}

/// Removes the directory of a process that is gone. Blocks: its user may have put much there.
pub(in crate::supervisor) fn remove_directory(path: &Path) {
    // Root needs no permission, and must not follow a link that another user may have put there.
    if effective_user() != 0 {
        let _ = fs::set_permissions(path.join(CREDENTIALS), Permissions::from_mode(0o700));
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "cannot remove {}", path.display());
        }
        _ => {}
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    regular::open_to_read(path)?.take(CREDENTIAL_MAX_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > CREDENTIAL_MAX_BYTES {
        return Err(io::Error::other(format!("it is larger than {CREDENTIAL_MAX_BYTES} bytes")));
    }
    Ok(content)
}

fn failed<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> String + use<'a> {
    move |error| format!("cannot {what} {}: {error}", path.display())
}
