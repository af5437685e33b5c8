//! Receives a program's messages of the sd_notify(3) protocol.
//!
//! A datagram socket at a path or in the abstract namespace, named in `NOTIFY_SOCKET`. Only processes of the program
//! are trusted: the kernel reports the sender.
//! Supported fields: `READY`, `STATUS`, `MAINPID`, `STOPPING`, `RELOADING`, `EXTEND_TIMEOUT_USEC` (without effect: the
//! shim sends signs of life anyway, and an upgrade has a single deadline), `FDSTORE` with `FDNAME`, `FDSTOREREMOVE`,
//! and `BARRIER`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::{self};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::own;
use super::program::{Program, ProgramState};
use crate::config::NotifySocket;
use crate::sys::descriptor::is_duplicate;
use crate::sys::message::{Received, receive};
use crate::sys::socket::{AddressFamily, SockFlag, SockType, bind_name, bind_path, pass_credentials, socket};
use crate::sys::user::real_user;

/// Maximum number of descriptors that a program may store with its shim.
const STORE_MAX: usize = 64;
/// Maximum size of a datagram in bytes, as in systemd.
const DATAGRAM_MAX: usize = 4096;
/// The name of a descriptor stored without one, as in sd_pid_notify_with_fds(3).
const UNNAMED: &str = "stored";

/// The socket, and the stored descriptors.
pub(super) struct Notify {
    variable: OsString,
    /// Removed on drop.
    path: Option<PathBuf>,
    store: Arc<Mutex<Vec<(String, OwnedFd)>>>,
}

impl Notify {
    /// Listens at this unused path, or at an abstract name with its last component, in a thread that ends with the
    /// process.
    pub(super) fn listen(path: &Path, kind: NotifySocket, program: Arc<Program>) -> Result<Self, String> {
        let error =
            |at: &OsStr, error: io::Error| format!("cannot receive READY=1 at {}: {error}", at.display());
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::empty())
            .map_err(|errno| error(path.as_os_str(), errno.into()))?;
        // A program of root may give up its privileges first, and must reach the socket then.
        let is_shut_off = real_user() == 0 && !path.ancestors().skip(2).all(is_passable);
        let kind = if is_shut_off && kind == NotifySocket::Path {
            log_line!("other users cannot reach {}: READY=1 is expected at an abstract name", path.display());
            NotifySocket::Abstract
        } else {
            kind
        };
        let (variable, path) = match kind {
            NotifySocket::Path => {
                bind_for_all(&socket, path).map_err(|source| own::own_error(path, "made", &source))?;
                (path.as_os_str().to_owned(), Some(path.to_owned()))
            }
            NotifySocket::Abstract => {
                let mut name = OsString::from("handoff/");
                name.push(path.file_name().unwrap_or_default());
                // As in sd_notify(3).
                let mut variable = OsString::from("@");
                variable.push(&name);
                bind_name(&socket, name.as_bytes()).map_err(|errno| error(&variable, errno.into()))?;
                (variable, None)
            }
        };
        pass_credentials(&socket).map_err(|errno| error(&variable, errno.into()))?;
        let store = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&store);
        std::thread::Builder::new()
            .name("handoff-notify".to_owned())
            .spawn(move || {
                loop {
                    // An error affects one datagram; there may be no descriptors left for it.
                    let _ = take_one(&socket, &program, &kept);
                }
            })
            .map_err(|source| error(&variable, source))?;
        Ok(Self { variable, path, store })
    }

    /// The environment variable for the program.
    pub(super) fn variable(&self) -> (OsString, OsString) {
        ("NOTIFY_SOCKET".into(), self.variable.clone())
    }

    /// The stored descriptors for the program's next start, by name.
    pub(super) fn stored(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.iter().map(|(name, fd)| Ok((name.clone(), fd.try_clone()?))).collect()
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether every user may pass this directory.
fn is_passable(directory: &Path) -> bool {
    fs::metadata(directory).is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
}

/// Binds a path that every user can reach: a program may have dropped its privileges before it is ready. The kernel
/// reports the sender, and others are ignored.
fn bind_for_all(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(directory)?;
        // The umask of the daemon may have removed these bits.
        fs::set_permissions(directory, Permissions::from_mode(0o711))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    bind_path(socket, path)?;
    fs::set_permissions(path, Permissions::from_mode(0o666))
}

type DescriptorStore = Arc<Mutex<Vec<(String, OwnedFd)>>>;

fn take_one(socket: &OwnedFd, program: &Program, store: &DescriptorStore) -> io::Result<()> {
    let mut text = [0_u8; DATAGRAM_MAX];
    let Received { bytes, mut fds, sender, .. } = receive(socket, &mut text, STORE_MAX)?;
    let text = String::from_utf8_lossy(&text[..bytes]);
    let said = Notification::parse(&text);
    // A forking daemon names its main process.
    if let Some((pid, sender)) = said.main_pid.zip(sender) {
        program.name_main(pid, sender);
    }
    if !sender.is_some_and(|sender| program.tree().contains(&sender)) {
        return Ok(());
    }
    if said.barrier {
        // The sender waits until its descriptor is closed, which happens here.
        fds.clear();
    }
    keep(&said, fds, store);
    program.learn(|known| said.apply(known));
    Ok(())
}

fn keep(said: &Notification<'_>, fds: Vec<OwnedFd>, store: &DescriptorStore) {
    let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
    let name = said.fd_name.unwrap_or(UNNAMED);
    if said.store_remove {
        store.retain(|(known, _)| known != name);
    } else if said.store {
        for fd in fds {
            if store.len() < STORE_MAX && !store.iter().any(|(_, known)| is_duplicate(known, &fd)) {
                store.push((name.to_owned(), fd));
            }
        }
    }
}

/// One datagram.
#[derive(Debug, Default, PartialEq, Eq)]
struct Notification<'t> {
    ready: bool,
    reloading: bool,
    stopping: bool,
    status: Option<&'t str>,
    main_pid: Option<u32>,
    store: bool,
    store_remove: bool,
    fd_name: Option<&'t str>,
    barrier: bool,
}

impl<'t> Notification<'t> {
    /// Ignores unknown fields, as the man page requires.
    fn parse(text: &'t str) -> Self {
        let mut said = Self::default();
        for line in text.lines() {
            match line.split_once('=') {
                Some(("READY", "1")) => said.ready = true,
                Some(("RELOADING", "1")) => said.reloading = true,
                Some(("STOPPING", "1")) => said.stopping = true,
                Some(("STATUS", status)) => said.status = Some(status),
                Some(("MAINPID", pid)) => said.main_pid = pid.parse().ok(),
                Some(("FDSTORE", "1")) => said.store = true,
                Some(("FDSTOREREMOVE", "1")) => said.store_remove = true,
                Some(("FDNAME", name)) => said.fd_name = Some(name).filter(|name| is_fd_name(name)),
                Some(("BARRIER", "1")) => said.barrier = true,
                _ => {}
            }
        }
        said
    }

    fn apply(&self, known: &mut ProgramState) {
        if self.reloading {
            known.ready = false;
        }
        known.ready |= self.ready;
        if let Some(status) = self.status {
            known.status = status.to_owned();
        }
    }
}

/// As in sd_pid_notify_with_fds(3): ASCII without control characters and colons, at most 255.
fn is_fd_name(name: &str) -> bool {
    name.len() <= 255 && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_unknown_ones_passed_over() {
        let said = Notification::parse(
            "READY=1\nSTATUS=Loading 1/2\nMAINPID=42\nWATCHDOG=1\nX_OTHER=a=b\n\ngarbage",
        );
        assert!(said.ready && !said.stopping && !said.store);
        assert_eq!((said.status, said.main_pid), (Some("Loading 1/2"), Some(42)));
        assert_eq!(Notification::parse("READY=0\nMAINPID=x"), Notification::default());
        let said = Notification::parse("FDSTORE=1\nFDNAME=web");
        assert!(said.store);
        assert_eq!(said.fd_name, Some("web"));
        assert_eq!(Notification::parse("FDNAME=a:b").fd_name, None);
        assert!(
            Notification::parse("BARRIER=1").barrier && Notification::parse("FDSTOREREMOVE=1").store_remove
        );
    }

    #[test]
    fn what_is_stored_again_is_stored_once() {
        let store = DescriptorStore::default();
        let said = Notification::parse("FDSTORE=1\nFDNAME=web");
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (reads, writes) = std::io::pipe().unwrap();
        let fds: [OwnedFd; 4] = [one.into(), other.into(), reads.into(), writes.into()];
        for _ in 0..100 {
            keep(&said, fds.iter().map(|fd| fd.try_clone().unwrap()).collect(), &store);
        }
        assert_eq!(store.lock().unwrap().len(), 4);
    }

    #[test]
    fn a_reload_takes_the_readiness_back_until_it_is_over() {
        let mut known = ProgramState::default();
        known.ready = true;
        Notification::parse("RELOADING=1\nSTATUS=reading").apply(&mut known);
        assert!(!known.ready);
        assert_eq!(known.status, "reading");
        Notification::parse("READY=1\nMAINPID=7").apply(&mut known);
        assert!(known.ready);
    }
}
