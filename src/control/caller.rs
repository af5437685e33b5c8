//! The callers of the control socket.

use std::fs::File;
use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::sys::user::effective_user;

/// Maximum length of a command line that is kept.
const COMMAND_MAX_BYTES: u64 = 200;

/// A process that sent a request, as it was when it connected: `SO_PEERCRED` of unix(7), and its command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its process; 0 if the kernel does not report it, as for a process of another pid namespace.
    pub pid: u32,
    /// The beginning of its command line, in one line; empty if the process was already gone.
    pub command: String,
}

impl Caller {
    /// A process of this machine. Reads `/proc`.
    pub fn of(uid: u32, pid: u32) -> Caller {
        Caller { uid, pid, command: command_of(pid).unwrap_or_default() }
    }

    /// This process, for a purpose.
    pub fn own(purpose: impl Into<String>) -> Caller {
        Caller { uid: effective_user(), pid: std::process::id(), command: purpose.into() }
    }
}

/// A process may write anything into its command line, so control characters are replaced.
fn command_of(pid: u32) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(format!("/proc/{pid}/cmdline")).ok()?;
    file.take(COMMAND_MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Some(plain.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_command_line() {
        let own = Caller::of(7, std::process::id());
        let program = std::env::args().next().unwrap();
        assert!(own.command.starts_with(&program[..program.len().min(100)]), "{own:?}");
        assert!(own.command.len() <= COMMAND_MAX_BYTES as usize && !own.command.contains('\0'));
        assert_eq!(Caller::of(7, 0).command, "");
    }
}
