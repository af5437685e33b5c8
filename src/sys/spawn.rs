//! Starts a process that inherits nothing but what is meant.
//!
//! `posix_spawn` shares the parent's memory until the exec (so its time does not grow with the parent), and gives the
//! error of a failed exec back directly, not through a pipe that a descriptor shuffle could clobber. The channel keeps its
//! number, only its close-on-exec flag goes, in the child alone. So no other thread's child can inherit it. Listeners, if
//! there are any, are copied to fixed numbers, from numbers above all of those.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_short};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::ptr;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::process::{Pid, Resource, Signal, WaitOptions, getrlimit, kill_process, waitpid};

use super::files;
use super::inherit::CHANNEL_VARIABLE;
use super::process::pidfd_open;

/// The number of the first inherited listener, as in sd_listen_fds(3).
pub const FIRST_LISTENER: c_int = 3;

/// What to start. Standard input is `/dev/null`. The descriptors are closed in this process when [`spawn`] returns.
#[derive(Debug)]
pub struct SpawnSpec {
    /// The program; an absolute path.
    pub binary: PathBuf,
    /// The arguments after the program's name, which is `binary`.
    pub args: Vec<OsString>,
    /// The whole environment; nothing of this process's own is added.
    pub env: Vec<(OsString, OsString)>,
    /// The directory that the process starts in.
    pub working_dir: PathBuf,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// A descriptor that the process inherits at the number it has here, told to it in [`CHANNEL_VARIABLE`].
    pub channel: Option<OwnedFd>,
    /// How many files the process may have open (the soft `RLIMIT_NOFILE`), if not as many as this one. At most the hard
    /// limit.
    pub files_limit: Option<u64>,
}

/// A started process: a child of this one, leader of a session of its own, with default signal handling.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid, good until it is reaped.
    pub pid: u32,
    /// Its pidfd, close-on-exec: readable when it has ended; for [`super::process::reap`].
    pub pidfd: OwnedFd,
}

/// Starts a process. Blocks until its program is executed, about a millisecond; whatever is wrong with the program
/// (missing, not executable, a directory, no such interpreter, being written to, arguments too long) is the error.
pub fn spawn(spec: SpawnSpec) -> io::Result<Spawned> {
    spawn_with_listeners(spec, &[])
}

/// Like [`spawn`]; the process inherits copies of `listeners` as well, with the numbers from [`FIRST_LISTENER`] on.
pub fn spawn_with_listeners(spec: SpawnSpec, listeners: &[BorrowedFd<'_>]) -> io::Result<Spawned> {
    if !spec.binary.is_absolute() {
        let text = format!("cannot start {:?}: the path is not absolute", spec.binary);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let path = c_string(spec.binary.clone().into_os_string())?;
    let working_dir = c_string(spec.working_dir.clone().into_os_string())?;
    let first_free = FIRST_LISTENER + listeners.len() as c_int;
    let above_all = |fd: &BorrowedFd<'_>| fcntl_dupfd_cloexec(fd, first_free);
    let listeners = listeners.iter().map(above_all).collect::<Result<Vec<_>, _>>()?;
    let channel = spec.channel.as_ref().map(|fd| from(first_free, fd)).transpose()?;
    let (stdout, stderr) = (from(FIRST_LISTENER, &spec.stdout)?, from(FIRST_LISTENER, &spec.stderr)?);

    let mut actions = FileActions::new()?;
    actions.open_null(0)?;
    actions.duplicate(stdout.as_fd(), 1)?;
    actions.duplicate(stderr.as_fd(), 2)?;
    if let Some(channel) = &channel {
        actions.duplicate(channel.as_fd(), channel.as_fd().as_raw_fd())?;
    }
    for (listener, number) in listeners.iter().zip(FIRST_LISTENER..) {
        actions.duplicate(listener.as_fd(), number)?;
    }
    actions.change_dir(&working_dir)?;
    let attributes = Attributes::clean_session()?;

    let args = std::iter::once(Ok(path.clone())).chain(spec.args.iter().cloned().map(c_string));
    let args = args.collect::<io::Result<Vec<_>>>()?;
    let env = environment(&spec.env, channel.as_ref().map(|channel| channel.as_fd()))?;
    let lowered = spec.files_limit.map(Lowered::to).transpose()?;
    let pid = exec(&path, &actions, &attributes, &args, &env)
        .map_err(|error| explain(&spec.binary, &spec.working_dir, error))?;
    drop(lowered);
    match pidfd_open(pid.as_raw_nonzero().get() as u32) {
        Ok(pidfd) => Ok(Spawned { pid: pid.as_raw_nonzero().get() as u32, pidfd }),
        Err(error) => {
            // A process that cannot be watched is not left behind.
            let _ = kill_process(pid, Signal::KILL);
            let _ = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
            Err(error)
        }
    }
}

/// A lower limit as long as this lives: for a child that is started meanwhile. Files that are open stay open.
struct Lowered {
    before: Option<u64>,
}

impl Lowered {
    fn to(limit: u64) -> io::Result<Self> {
        let before = getrlimit(Resource::Nofile).current;
        files::set(Some(limit))?;
        Ok(Self { before })
    }
}

impl Drop for Lowered {
    fn drop(&mut self) {
        // It was so before, and no privilege is needed up to the hard limit.
        let _ = files::set(self.before);
    }
}

/// Marks every open descriptor of this process above the standard streams close-on-exec. For the start of a daemon,
/// which may itself have been started by a careless parent. Call it before other threads exist.
pub fn close_all_on_exec() -> io::Result<()> {
    let numbers: Vec<c_int> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        // SAFETY: only the flag of whatever has this number is changed, and to the value that Rust's own have anyway. The
        // descriptor that listed the directory is closed by now: EBADF.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        match fcntl_getfd(fd) {
            Ok(flags) => fcntl_setfd(fd, flags | FdFlags::CLOEXEC)?,
            Err(rustix::io::Errno::BADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A descriptor with a lower number would be overwritten while those of the child are laid out.
fn from(least: c_int, fd: &OwnedFd) -> io::Result<Kept<'_>> {
    if fd.as_raw_fd() >= least {
        Ok(Kept::As(fd.as_fd()))
    } else {
        Ok(Kept::Moved(fcntl_dupfd_cloexec(fd, least)?))
    }
}

enum Kept<'a> {
    As(BorrowedFd<'a>),
    Moved(OwnedFd),
}

impl AsFd for Kept<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Kept::As(fd) => *fd,
            Kept::Moved(fd) => fd.as_fd(),
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

/// A text for the kernel.
pub(crate) fn c_string(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec()).map_err(|error| {
        let text = String::from_utf8_lossy(&error.into_vec()).replace('\0', "\\0");
        io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} has a zero byte in it"))
    })
}

/// ENOENT and EACCES do not say which file they mean.
pub(crate) fn explain(binary: &Path, working_dir: &Path, error: io::Error) -> io::Error {
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

fn exec(
    path: &CStr,
    actions: &FileActions,
    attributes: &Attributes,
    args: &[CString],
    env: &[CString],
) -> io::Result<Pid> {
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(ptr::null())).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    let mut pid: c_int = 0;
    // SAFETY: both objects are initialised; every pointer is to a zero-terminated string that lives until the call
    // returns, and each array ends with a null pointer. The callee only reads them.
    check(unsafe {
        posix_spawn(&mut pid, path.as_ptr(), &actions.0, &attributes.0, argv.as_ptr(), envp.as_ptr())
    })?;
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("posix_spawn gave no pid"))
}

/// These functions return the error instead of setting errno.
fn check(returned: c_int) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(returned)) }
}

/// `posix_spawn_file_actions_t`: what the child does to its descriptors, in order.
struct FileActions(Opaque);

impl FileActions {
    fn new() -> io::Result<FileActions> {
        let mut object = Opaque(MaybeUninit::uninit());
        // SAFETY: there is more room than the object needs (see `Opaque`), and it is initialised here.
        check(unsafe { posix_spawn_file_actions_init(&mut object) })?;
        Ok(FileActions(object))
    }

    fn open_null(&mut self, number: c_int) -> io::Result<()> {
        const O_RDONLY: c_int = 0;
        // SAFETY: the object is initialised; the path is static and copied.
        check(unsafe {
            posix_spawn_file_actions_addopen(&mut self.0, number, c"/dev/null".as_ptr(), O_RDONLY, 0)
        })
    }

    /// The copy is inherited. If `number` is that of `fd` itself, then only its close-on-exec flag is taken away.
    fn duplicate(&mut self, fd: BorrowedFd<'_>, number: c_int) -> io::Result<()> {
        // SAFETY: the object is initialised.
        check(unsafe { posix_spawn_file_actions_adddup2(&mut self.0, fd.as_raw_fd(), number) })
    }

    fn change_dir(&mut self, path: &CStr) -> io::Result<()> {
        // SAFETY: the object is initialised; the path is copied.
        check(unsafe { posix_spawn_file_actions_addchdir_np(&mut self.0, path.as_ptr()) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: the object is initialised, and not used again.
        unsafe { posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

/// `posix_spawnattr_t`.
struct Attributes(Opaque);

impl Attributes {
    /// A new session, every signal at its default, none blocked.
    fn clean_session() -> io::Result<Attributes> {
        const SETSIGDEF: c_short = 0x04;
        const SETSIGMASK: c_short = 0x08;
        const SETSID: c_short = 0x80;
        let mut object = Opaque(MaybeUninit::uninit());
        // SAFETY: there is more room than the object needs (see `Opaque`), and it is initialised here.
        check(unsafe { posix_spawnattr_init(&mut object) })?;
        let mut attributes = Attributes(object);
        let mut signals = SignalSet(MaybeUninit::uninit());
        // SAFETY: the attributes are initialised; a set has room for `sigset_t`, is filled before it is read, and is
        // copied.
        unsafe {
            sigfillset(&mut signals);
            check(posix_spawnattr_setsigdefault(&mut attributes.0, &signals))?;
            sigemptyset(&mut signals);
            check(posix_spawnattr_setsigmask(&mut attributes.0, &signals))?;
            check(posix_spawnattr_setflags(&mut attributes.0, SETSIGDEF | SETSIGMASK | SETSID))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: the object is initialised, and not used again.
        unsafe { posix_spawnattr_destroy(&mut self.0) };
    }
}

/// Room for one of the two objects. The largest there is has 336 bytes (the attributes, in glibc and in musl).
#[repr(C, align(16))]
struct Opaque(MaybeUninit<[u8; 512]>);

/// Room for a `sigset_t`: 128 bytes in glibc and in musl.
#[repr(C, align(16))]
struct SignalSet(MaybeUninit<[u8; 128]>);

unsafe extern "C" {
    fn posix_spawn(
        pid: *mut c_int,
        path: *const c_char,
        actions: *const Opaque,
        attributes: *const Opaque,
        argv: *const *const c_char,
        envp: *const *const c_char,
    ) -> c_int;
    fn posix_spawn_file_actions_init(actions: *mut Opaque) -> c_int;
    fn posix_spawn_file_actions_destroy(actions: *mut Opaque) -> c_int;
    fn posix_spawn_file_actions_addopen(
        actions: *mut Opaque,
        fd: c_int,
        path: *const c_char,
        flags: c_int,
        mode: u32,
    ) -> c_int;
    fn posix_spawn_file_actions_adddup2(actions: *mut Opaque, fd: c_int, number: c_int) -> c_int;
    fn posix_spawn_file_actions_addchdir_np(actions: *mut Opaque, path: *const c_char) -> c_int;
    fn posix_spawnattr_init(attributes: *mut Opaque) -> c_int;
    fn posix_spawnattr_destroy(attributes: *mut Opaque) -> c_int;
    fn posix_spawnattr_setflags(attributes: *mut Opaque, flags: c_short) -> c_int;
    fn posix_spawnattr_setsigdefault(attributes: *mut Opaque, signals: *const SignalSet) -> c_int;
    fn posix_spawnattr_setsigmask(attributes: *mut Opaque, signals: *const SignalSet) -> c_int;
    fn sigfillset(signals: *mut SignalSet) -> c_int;
    fn sigemptyset(signals: *mut SignalSet) -> c_int;
}

#[cfg(test)]
#[path = "spawn_tests.rs"]
mod tests;
