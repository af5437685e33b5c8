//! Starts a process that inherits only the intended descriptors.
//!
//! As with posix_spawn(3), the child shares this process's memory until the exec. So the time to start does not grow
//! with this process, and the error of a failed step returns directly. Two things exceed posix_spawn. The child closes
//! everything that it should not have before it touches a path, because a file system that hangs would otherwise let it
//! keep the listeners and locks of this process. And it sets its own limit of open files, which otherwise this process
//! would have to lower for itself in the meantime.
//!
//! The channel keeps its number; only the child clears its close-on-exec flag, so no other thread's child can inherit
//! it. Listeners are copied to fixed numbers, from numbers above all of those.

use std::ffi::{CString, OsString, c_char, c_int};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::ptr;

use nix::sys::signal::{Signal, kill};

use super::child::{Child, NONE, start};
use super::descriptor::{duplicate_from, is_close_on_exec, set_close_on_exec};
use super::errno::Errno;
use super::inherit::CHANNEL_VARIABLE;
use super::process::pidfd_open;
use super::reaping::await_end;

/// The number of the first inherited listener, as in sd_listen_fds(3).
pub const FIRST_LISTENER: c_int = 3;

/// A process to start. Its standard input is `/dev/null`. [`spawn`] closes these descriptors in this process.
#[derive(Debug)]
pub struct SpawnSpec {
    /// The program; an absolute path.
    pub binary: PathBuf,
    /// The arguments after the program's name, which is `binary`.
    pub args: Vec<OsString>,
    /// The whole environment; the process inherits no variables.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory.
    pub working_dir: PathBuf,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// A descriptor that the process inherits at its current number, passed in [`CHANNEL_VARIABLE`].
    pub channel: Option<OwnedFd>,
    /// The limit of open files (the soft `RLIMIT_NOFILE`), if different from this process's. At most the hard limit.
    pub files_limit: Option<u64>,
}

/// A started process: a child of this one, leader of its own session, with default signal handling.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid, valid until it is reaped.
    pub pid: u32,
    /// Its pidfd, close-on-exec; readable when the process has ended. For [`super::process::reap`].
    pub pidfd: OwnedFd,
}

/// Starts a process. Blocks until its program is executed, about a millisecond. The error covers everything wrong with
/// the program: missing, not executable, a directory, no such interpreter, being written to, arguments too long.
pub fn spawn(spec: SpawnSpec) -> io::Result<Spawned> {
    spawn_with_listeners(spec, &[])
}

/// Like [`spawn`]; the process also inherits copies of `listeners` from number [`FIRST_LISTENER`] on.
pub fn spawn_with_listeners(spec: SpawnSpec, listeners: &[BorrowedFd<'_>]) -> io::Result<Spawned> {
    spawn_with(spec, listeners, None, false)
}

/// Like [`spawn_with_listeners`], for streams that are log pipes: each begins with a mark that names the pid, see
/// [`super::log_pipe::marked_pid`].
pub fn spawn_logged(spec: SpawnSpec, listeners: &[BorrowedFd<'_>]) -> io::Result<Spawned> {
    spawn_with(spec, listeners, None, true)
}

/// Like [`spawn`], without a channel. The process inherits `trace` at its current number, without a variable that names
/// it.
pub fn spawn_traced(spec: SpawnSpec, trace: Option<BorrowedFd<'_>>) -> io::Result<Spawned> {
    spawn_with(spec, &[], trace, false)
}

fn spawn_with(
    spec: SpawnSpec,
    listeners: &[BorrowedFd<'_>],
    trace: Option<BorrowedFd<'_>>,
    marks_streams: bool,
) -> io::Result<Spawned> {
    if !spec.binary.is_absolute() {
        let text = format!("cannot start {:?}: the path is not absolute", spec.binary);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let path = c_string(spec.binary.clone().into_os_string())?;
    let working_dir = c_string(spec.working_dir.clone().into_os_string())?;
    let first_free = FIRST_LISTENER + listeners.len() as c_int;
    let above_all = |fd: &BorrowedFd<'_>| duplicate_from(fd, first_free);
    let listeners = listeners.iter().map(above_all).collect::<Result<Vec<_>, _>>()?;
    let channel = spec.channel.as_ref().map(|fd| from(first_free, fd)).transpose()?;
    let (stdout, stderr) = (from(FIRST_LISTENER, &spec.stdout)?, from(FIRST_LISTENER, &spec.stderr)?);

    let null = OwnedFd::from(File::open("/dev/null")?);
    let null = from(FIRST_LISTENER, &null)?;
    let args = std::iter::once(Ok(path.clone())).chain(spec.args.iter().cloned().map(c_string));
    let args = args.collect::<io::Result<Vec<_>>>()?;
    let env = environment(&spec.env, channel.as_ref().map(|channel| channel.as_fd()))?;
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(ptr::null())).collect()
    };
    let (args_of_child, env_of_child) = (pointers(&args), pointers(&env));
    let numbers: Vec<c_int> = listeners.iter().map(|listener| listener.as_raw_fd()).collect();
    let child = Child {
        path: &path,
        args: &args_of_child,
        env: &env_of_child,
        working_dir: &working_dir,
        streams: [&null, &stdout, &stderr].map(|stream| stream.as_fd().as_raw_fd()),
        listeners: &numbers,
        kept: channel.as_ref().map(AsFd::as_fd).or(trace).map_or(NONE, |kept| kept.as_raw_fd()),
        files_limit: spec.files_limit,
        marks_streams,
    };
    let process = start(&child).map_err(|error| explain(&spec.binary, &spec.working_dir, error))?;
    let pid = process.as_raw().unsigned_abs();
    match pidfd_open(pid) {
        Ok(pidfd) => Ok(Spawned { pid, pidfd }),
        Err(error) => {
            // Kills a process that cannot be watched.
            let _ = kill(process, Signal::SIGKILL);
            await_end(process);
            Err(error)
        }
    }
}

/// Marks every descriptor of this process above the standard streams close-on-exec. For the start of a daemon, whose
/// parent may have leaked descriptors. Call it before other threads exist.
pub fn close_all_on_exec() -> io::Result<()> {
    let numbers: Vec<c_int> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        // SAFETY: this only sets close-on-exec, which Rust's own descriptors have anyway. The descriptor that listed
        // the directory is closed by now: EBADF.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        match is_close_on_exec(fd) {
            Ok(true) | Err(Errno::EBADF) => {}
            Ok(false) => set_close_on_exec(fd, true)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Laying out the child's descriptors would overwrite lower numbers.
fn from(least: c_int, fd: &OwnedFd) -> io::Result<InheritedFd<'_>> {
    if fd.as_raw_fd() >= least {
        Ok(InheritedFd::As(fd.as_fd()))
    } else {
        Ok(InheritedFd::Moved(duplicate_from(fd, least)?))
    }
}

enum InheritedFd<'a> {
    As(BorrowedFd<'a>),
    Moved(OwnedFd),
}

impl AsFd for InheritedFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            InheritedFd::As(fd) => *fd,
            InheritedFd::Moved(fd) => fd.as_fd(),
        }
    }
}

fn environment(env: &[(OsString, OsString)], channel: Option<BorrowedFd<'_>>) -> io::Result<Vec<CString>> {
    let channel = channel.map(|fd| (CHANNEL_VARIABLE.into(), OsString::from(fd.as_raw_fd().to_string())));
    let given = env.iter().filter(|(name, _)| name != CHANNEL_VARIABLE).cloned();
    given
        .chain(channel)
        .map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            c_string(variable)
        })
        .collect()
}

/// Converts a text for the kernel.
pub fn c_string(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec()).map_err(|error| {
        let text = String::from_utf8_lossy(&error.into_vec()).replace('\0', "\\0");
        io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} has a zero byte in it"))
    })
}

/// Adds the file: ENOENT and EACCES do not name it.
pub fn explain(binary: &Path, working_dir: &Path, error: io::Error) -> io::Error {
    let what = match (std::fs::metadata(working_dir), std::fs::metadata(binary)) {
        (Err(cause), _) => format!("its working directory {working_dir:?}: {cause}"),
        (Ok(dir), _) if !dir.is_dir() => {
            format!("its working directory {working_dir:?} is not a directory")
        }
        (_, Ok(file)) if file.is_dir() => "it is a directory".to_owned(),
        (_, Ok(_)) if error.kind() == io::ErrorKind::NotFound => {
            "the file exists, but the interpreter or loader that it names does not".to_owned()
        }
        (_, Ok(_)) if error.kind() == io::ErrorKind::PermissionDenied => "it is not executable".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("cannot start {binary:?}: {what}"))
}

#[cfg(test)]
#[path = "spawn_tests.rs"]
mod tests;
