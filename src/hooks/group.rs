//! The process group of a command: its leader, and what it starts and leaves in the group.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use handoff_protocol::reason::Exit;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::sys::readable::readable;

/// One that was killed ends at once, unless the kernel holds it, as it does for a disk that does not answer.
const KILLED_WITHIN: Duration = Duration::from_secs(1);

/// A command that runs. Whoever drops this kills the whole group.
pub(super) struct Group {
    leader: Pid,
    /// Its number may be that of another group by now.
    is_reaped: bool,
    pidfd: AsyncFd<OwnedFd>,
    child: Child,
}

impl Group {
    /// Starts it as the leader of a group of its own. Holds the thread for about a millisecond.
    pub(super) fn spawn(mut command: Command) -> io::Result<Self> {
        let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
        // The descriptors that it was given are closed here.
        drop(command);
        let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let opened = leader
            .ok_or(io::ErrorKind::NotFound.into())
            .and_then(|leader| Ok((leader, readable(pidfd_open(leader, PidfdFlags::empty())?)?)));
        match opened {
            Ok((leader, pidfd)) => Ok(Self { leader, is_reaped: false, pidfd, child }),
            Err(error) => {
                child.start_kill()?;
                Err(error)
            }
        }
    }

    /// Completes when the leader has ended. It is not reaped by that, so the group is still its own. May be dropped.
    pub(super) async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(drop)
    }

    /// Kills what is left of the group, and says how the leader ended.
    pub(super) async fn end(&mut self) -> Exit {
        self.kill();
        if timeout(KILLED_WITHIN, self.ended()).await.is_err() {
            return Exit::Unknown;
        }
        let status = self.child.wait().await;
        self.is_reaped = true;
        match status.map(|status| (status.code(), status.signal())) {
            Ok((Some(code), _)) => Exit::Code(code),
            Ok((None, Some(signal))) => Exit::Signal(signal),
            Ok((None, None)) | Err(_) => Exit::Unknown,
        }
    }

    fn kill(&self) {
        // It may have no member any more.
        let _ = kill_process_group(self.leader, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_reaped {
            self.kill();
        }
    }
}
