//! The trampoline: a process between the shim and the program, which becomes the program.
//!
//! Some steps must run in the process itself right before its exec: tie its life to its parent, learn its pid, place
//! descriptors at fixed numbers, and install a seccomp filter. `posix_spawn` supports none of them, and code between
//! fork and exec is unsafe code. So the shim starts this program again under [`VERB`]; that process receives its order
//! over a channel, performs these steps, and executes the program.
//!
//! The channel is close-on-exec: its end proves that the program is executed. An earlier failure arrives as a message.

use std::convert::Infallible;
use std::env::set_current_dir;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use handoff_protocol::frame::FDS_MAX;
use serde::{Deserialize, Serialize};

use crate::sys::attributes::Attributes;
use crate::sys::channel::Channel;
use crate::sys::descriptor::{duplicate_from, set_close_on_exec};
use crate::sys::errno::Errno;
use crate::sys::exec::{FIRST, execute, place};
use crate::sys::files::set_files_limit;
use crate::sys::inherit::take_channel;
use crate::sys::own_process::hear_end_of_parent;
use crate::sys::path::first_closed;
use crate::sys::process::{Signal, kill, reap_blocking};
use crate::sys::sealed::memory_file;
use crate::sys::seccomp::{self, Calls};
use crate::sys::spawn::{SpawnSpec, Spawned, c_string, close_all_on_exec, explain, spawn};
use crate::sys::traced::out_of_the_way;

/// The first argument of the process.
pub const VERB: &str = "shim-exec";

/// A program to start. Its standard input is `/dev/null`. [`start`] closes these descriptors in this process.
#[derive(Debug)]
pub struct Spec {
    /// The program; an absolute path.
    pub binary: PathBuf,
    /// The arguments after the program's name, which is `binary`.
    pub args: Vec<OsString>,
    /// The whole environment. The variables of sd_listen_fds(3) are removed, or set from `listeners`.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory.
    pub working_dir: PathBuf,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// Named descriptors that the program gets from number 3 on, as in sd_listen_fds(3). If empty, the program gets
    /// none of those variables.
    pub listeners: Vec<(String, OwnedFd)>,
    /// Descriptors that stay open in the program, at high numbers, without a variable that names them.
    pub inherited: Vec<OwnedFd>,
    /// The system calls to intercept: see [`StartedProgram::notify`].
    pub seccomp: Option<Calls>,
    /// The limit of open files (the soft `RLIMIT_NOFILE`), if different from this process's. At most the hard limit.
    pub files_limit: Option<u64>,
}

/// A started program: a child of this process, leader of its own session, with default signal handling.
#[derive(Debug)]
pub struct StartedProgram {
    /// Its pid, valid until it is reaped.
    pub pid: u32,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
    /// The notify descriptor for [`super::inject::Injector`], if [`Spec::seccomp`] is set.
    pub notify: Option<OwnedFd>,
}

/// Starts a program. Blocks until it is executed, a few milliseconds. The error covers everything wrong with the
/// program, and attributes that this process cannot give.
///
/// The kernel kills the program (SIGKILL) when the calling **thread** ends, and so also when this process does: call it
/// from a thread that lives as long as the process.
pub fn start(spec: Spec, attributes: &Attributes) -> io::Result<StartedProgram> {
    start_with(Path::new("/proc/self/exe"), spec, Some(std::process::id()), attributes)
}

/// Like [`start`], but the program outlives this process.
pub fn start_untied(spec: Spec, attributes: &Attributes) -> io::Result<StartedProgram> {
    start_with(Path::new("/proc/self/exe"), spec, None, attributes)
}

/// Like [`start`] without attributes, for a process that is not `handoff`. `handoff` is the path of that program.
pub fn start_by(handoff: &Path, spec: Spec) -> io::Result<StartedProgram> {
    start_with(handoff, spec, Some(std::process::id()), &Attributes::default())
}

fn start_with(
    handoff: &Path,
    spec: Spec,
    parent: Option<u32>,
    attributes: &Attributes,
) -> io::Result<StartedProgram> {
    check(&spec)?;
    let (channel, theirs) = Channel::pair()?;
    let (request, named) = ExecRequest::split(&spec, parent, attributes);
    let request = request.write()?;
    let fds = std::iter::once(request.as_fd()).chain(named).chain(spec.inherited.iter().map(AsFd::as_fd));
    // The channel accepts the message before the reader exists.
    channel.send(&[ORDER], &fds.collect::<Vec<_>>())?;
    let spawned = spawn(SpawnSpec {
        binary: handoff.to_owned(),
        args: vec![VERB.into()],
        env: Vec::new(),
        working_dir: "/".into(),
        stdout: spec.stdout,
        stderr: spec.stderr,
        channel: Some(theirs),
        files_limit: None,
    })?;
    match wait_for_exec(&channel, spec.seccomp.is_some()) {
        Ok(notify) => Ok(StartedProgram { pid: spawned.pid, pidfd: spawned.pidfd, notify }),
        Err(error) => {
            end(&spawned);
            Err(error)
        }
    }
}

fn check(spec: &Spec) -> io::Result<()> {
    let refused = |text| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if !spec.binary.is_absolute() {
        return refused(format!("cannot start {:?}: the path is not absolute", spec.binary));
    }
    let count = 1 + spec.listeners.len() + spec.inherited.len();
    if count > FDS_MAX {
        return refused(format!("cannot give {count} descriptors to {:?}: at most {FDS_MAX}", spec.binary));
    }
    Ok(())
}

/// Up to two messages arrive: that the process is about to execute, and then only that this failed.
fn wait_for_exec(channel: &Channel, seccomp: bool) -> io::Result<Option<OwnedFd>> {
    let mut buffer = Vec::new();
    let mut about_to = None;
    while let Some(packet) = channel.recv(&mut buffer)? {
        if packet.fds_lost {
            return Err(io::Error::other("the notify descriptor was lost: too many files are open"));
        }
        match serde_json::from_slice(&buffer[..packet.len]).map_err(io::Error::other)? {
            ExecReply::Executing => about_to = Some(packet.fds.into_iter().next()),
            ExecReply::Failed(failed) => return Err(failed.into()),
        }
    }
    match about_to {
        Some(notify) if notify.is_some() == seccomp => Ok(notify),
        _ => Err(io::Error::other("the process ended before it executed the program")),
    }
}

/// Cleans up after a failed start. Another thread that reaps the children of this process may have been faster.
fn end(spawned: &Spawned) {
    let _ = kill(&spawned.pidfd, Signal::SIGKILL);
    let _ = reap_blocking(spawned.pidfd.as_fd());
}

/// The byte of the packet that announces the order; the order itself may exceed a packet.
const ORDER: u8 = b'o';

/// The order for the trampoline, in an anonymous file. The descriptors follow that file in the same packet, the named
/// ones first.
#[derive(Serialize, Deserialize)]
struct ExecRequest {
    /// The process whose end is the end of the program.
    parent: Option<u32>,
    binary: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    working_dir: OsString,
    names: Vec<String>,
    seccomp: Option<Calls>,
    files_limit: Option<u64>,
    attributes: Attributes,
}

#[derive(Serialize, Deserialize)]
enum ExecReply {
    /// With the notify descriptor, if requested.
    Executing,
    Failed(ExecFailure),
}

#[derive(Serialize, Deserialize)]
struct ExecFailure {
    code: Option<i32>,
    text: String,
}

impl ExecRequest {
    /// Returns the order and its descriptors.
    fn split<'s>(
        spec: &'s Spec,
        parent: Option<u32>,
        attributes: &Attributes,
    ) -> (ExecRequest, Vec<BorrowedFd<'s>>) {
        let request = ExecRequest {
            parent,
            attributes: attributes.clone(),
            binary: spec.binary.clone().into(),
            args: spec.args.clone(),
            env: spec.env.clone(),
            working_dir: spec.working_dir.clone().into(),
            names: spec.listeners.iter().map(|(name, _)| name.clone()).collect(),
            seccomp: spec.seccomp,
            files_limit: spec.files_limit,
        };
        (request, spec.listeners.iter().map(|(_, fd)| fd.as_fd()).collect())
    }

    fn write(&self) -> io::Result<File> {
        let mut file = File::from(memory_file("handoff-order")?);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.rewind()?;
        Ok(file)
    }

    fn read(mut file: File) -> io::Result<ExecRequest> {
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

impl From<io::Error> for ExecFailure {
    fn from(error: io::Error) -> Self {
        // Custom errors have no errno, but a kind that was derived from one.
        let code = match error.kind() {
            io::ErrorKind::NotFound => Some(Errno::ENOENT),
            io::ErrorKind::PermissionDenied => Some(Errno::EACCES),
            io::ErrorKind::ResourceBusy => Some(Errno::EBUSY),
            _ => None,
        };
        Self { code: error.raw_os_error().or(code.map(Errno::raw)), text: error.to_string() }
    }
}

impl From<ExecFailure> for io::Error {
    fn from(failed: ExecFailure) -> io::Error {
        let kind = failed.code.map_or(io::ErrorKind::Other, |code| io::Error::from_raw_os_error(code).kind());
        io::Error::new(kind, failed.text)
    }
}

/// Runs the trampoline, which [`start`] has started. Returns only if the program cannot be executed.
pub fn main() -> ExitCode {
    let Ok(Some(mut channel)) = take_channel() else {
        eprintln!("handoff {VERB} is an internal command of handoff.");
        return ExitCode::from(2);
    };
    let Err(error) = become_program(&mut channel);
    if let Ok(text) = serde_json::to_vec(&ExecReply::Failed(error.into())) {
        // If the shim is gone, the error has no reader.
        let _ = channel.send(&text, &[]);
    }
    ExitCode::from(127)
}

fn become_program(channel: &mut Channel) -> io::Result<Infallible> {
    let (request, fds) = receive(channel)?;
    let (binary, working_dir) = (Path::new(&request.binary), Path::new(&request.working_dir));
    let path = c_string(request.binary.clone())?;
    let args = std::iter::once(Ok(path.clone())).chain(request.args.iter().cloned().map(c_string));
    let args = args.collect::<io::Result<Vec<_>>>()?;
    let env = environment(&request)?;

    let _above = lay_out(channel, fds, request.names.len())?;
    if let Some(current) = request.files_limit {
        set_files_limit(current)?;
    }
    // Before the attributes: a process without privileges would have to give up setuid programs for it.
    let notify = request.seccomp.map(seccomp::install).transpose()?;
    request.attributes.apply()?;
    // A change of the user resets it.
    request.parent.map_or(Ok(()), die_with)?;
    // As the user of the program: it may reach directories that the daemon does not, and the reverse.
    set_current_dir(working_dir)
        .map_err(|error| explain_to(&request.attributes, binary, working_dir, error))?;
    let notify_fd: Vec<_> = notify.iter().map(AsFd::as_fd).collect();
    channel.send(&serde_json::to_vec(&ExecReply::Executing)?, &notify_fd)?;
    Err(explain_to(&request.attributes, binary, working_dir, execute(&path, &args, &env)))
}

/// Adds why the user of the program is refused what the daemon may do.
fn explain_to(attributes: &Attributes, binary: &Path, working_dir: &Path, error: io::Error) -> io::Error {
    let Some(ids) = attributes.ids.as_ref().filter(|_| error.kind() == io::ErrorKind::PermissionDenied)
    else {
        return explain(binary, working_dir, error);
    };
    let closed = [working_dir, binary].into_iter().find_map(first_closed);
    match closed {
        Some(closed) => {
            let text = format!(
                "cannot start {binary:?} as user {} with group {}: {closed:?} does not let this user pass; change \
                 its mode or owner",
                ids.user, ids.group
            );
            io::Error::new(io::ErrorKind::PermissionDenied, text)
        }
        None => explain(binary, working_dir, error),
    }
}

fn receive(channel: &Channel) -> io::Result<(ExecRequest, Vec<OwnedFd>)> {
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let mut buffer = Vec::new();
    let packet = channel.recv(&mut buffer)?.ok_or_else(gone)?;
    if packet.fds_lost {
        let text = "not all descriptors arrived: the limit of open files (RLIMIT_NOFILE) is too low for them";
        return Err(io::Error::other(text));
    }
    let mut fds = packet.fds.into_iter();
    let request = ExecRequest::read(File::from(fds.next().ok_or_else(gone)?))?;
    Ok((request, fds.collect()))
}

/// If the parent ended before the kernel registered the signal, nothing is started.
fn die_with(parent: u32) -> io::Result<()> {
    hear_end_of_parent(Signal::SIGKILL)?;
    if parent_id() == parent { Ok(()) } else { Err(io::Error::other("the shim has ended")) }
}

/// Places the descriptors at their numbers, and lets the program inherit nothing else. First moves all of them and the
/// channel to high numbers, so that none is overwritten. Returns the high copies, which are close-on-exec.
fn lay_out(channel: &mut Channel, mut fds: Vec<OwnedFd>, listeners: usize) -> io::Result<Vec<OwnedFd>> {
    close_all_on_exec()?;
    let end = FIRST + fds.len() as i32;
    *channel = Channel::from_fd(duplicate_from(channel.as_fd(), end)?)?;
    let unknown = fds.split_off(listeners.min(fds.len()));
    let above = |fd: OwnedFd| {
        if fd.as_raw_fd() >= end { Ok(fd) } else { Ok(duplicate_from(&fd, end)?) }
    };
    let mut kept = fds.into_iter().map(above).collect::<io::Result<Vec<_>>>()?;
    let unknown = unknown.into_iter().map(above).collect::<io::Result<Vec<_>>>()?;
    place(&kept)?;
    for fd in unknown {
        let fd = out_of_the_way(fd)?;
        set_close_on_exec(&fd, false)?;
        kept.push(fd);
    }
    Ok(kept)
}

fn environment(request: &ExecRequest) -> io::Result<Vec<CString>> {
    let known = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
    let values = [std::process::id().to_string(), request.names.len().to_string(), request.names.join(":")];
    let own = known.iter().zip(values).filter(|_| !request.names.is_empty());
    let own = own.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let given = request.env.iter().filter(|(name, _)| known.iter().all(|known| name != known)).cloned();
    given
        .chain(own)
        .map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            c_string(variable)
        })
        .collect()
}
