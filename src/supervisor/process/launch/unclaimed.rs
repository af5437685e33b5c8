//! The start of a process, off the daemon's thread.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::config::check_binary;
use crate::shim::exec;
use crate::sys::attributes::Attributes;
use crate::sys::inherit::CHANNEL_VARIABLE;
use crate::sys::process::{Signal, kill, reap_blocking};
use crate::sys::spawn::{SpawnSpec, Spawned, spawn_logged, spawn_with_listeners};
use crate::sys::traced::OUT_OF_THE_WAY;

/// Starts a process. Blocks, perhaps forever, on the program and on its working directory. A shim would only report
/// later that the program at `checked` cannot be executed.
pub(super) fn start(
    checked: Option<PathBuf>,
    spec: SpawnSpec,
    listeners: Vec<(String, OwnedFd)>,
    attributes: Option<Attributes>,
    marks_streams: bool,
) -> io::Result<UnclaimedProcess> {
    if let Some(path) = checked {
        check_binary(&path).map_err(|error| io::Error::other(format!("{error}; {}", error.hint())))?;
    }
    if let Some(attributes) = attributes {
        return start_as(spec, listeners, &attributes);
    }
    let listeners: Vec<_> = listeners.iter().map(|(_, fd)| fd.as_fd()).collect();
    let spawn = if marks_streams { spawn_logged } else { spawn_with_listeners };
    Ok(UnclaimedProcess(Some(spawn(spec, &listeners)?)))
}

/// Starts a process that gives itself attributes before it executes its program.
fn start_as(
    spec: SpawnSpec,
    listeners: Vec<(String, OwnedFd)>,
    attributes: &Attributes,
) -> io::Result<UnclaimedProcess> {
    let SpawnSpec { binary, args, mut env, working_dir, stdout, stderr, channel, files_limit } = spec;
    env.retain(|(name, _)| name != CHANNEL_VARIABLE);
    env.push((CHANNEL_VARIABLE.into(), OUT_OF_THE_WAY.to_string().into()));
    let inherited = channel.into_iter().collect();
    let spec = exec::Spec {
        binary,
        args,
        env,
        working_dir,
        stdout,
        stderr,
        listeners,
        inherited,
        seccomp: None,
        files_limit,
    };
    let exec::StartedProgram { pid, pidfd, .. } = exec::start_untied(spec, attributes)?;
    Ok(UnclaimedProcess(Some(Spawned { pid, pidfd })))
}

/// A process that is ended unless something takes it over.
pub(in crate::supervisor) struct UnclaimedProcess(Option<Spawned>);

impl UnclaimedProcess {
    /// Hands the process over: from now on something else ends it.
    pub(super) fn claim(mut self) {
        self.0 = None;
    }

    pub(super) fn copy(&self) -> io::Result<Spawned> {
        let Some(spawned) = &self.0 else { return Err(io::ErrorKind::NotFound.into()) };
        Ok(Spawned { pid: spawned.pid, pidfd: spawned.pidfd.try_clone()? })
    }
}

impl Drop for UnclaimedProcess {
    fn drop(&mut self) {
        if let Some(spawned) = &self.0 {
            let _ = kill(&spawned.pidfd, Signal::SIGKILL);
            let _ = reap_blocking(spawned.pidfd.as_fd());
        }
    }
}
