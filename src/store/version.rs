//! The version text that a program prints, if the service file asks for that: by default no code of a version runs
//! before its turn.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::error::Error;
use crate::hooks::{BINARY, HookError, Trace, check_program};
use crate::sys::descriptor::set_nonblocking;
use crate::sys::poll::{PollFd, PollFlags, poll};
use crate::sys::process::{Signal, pidfd_open};
use crate::sys::signals::send_to_group;

/// Time limit of a program to print its version.
const LIMIT: Duration = Duration::from_secs(5);
/// Interval of the check whether the result is still wanted.
const TICK: Duration = Duration::from_millis(20);
/// Maximum length of the line, in characters.
const LINE_MAX: usize = 128;
/// Maximum number of bytes to read from it.
const READ_MAX: usize = 4096;

/// Runs a command in `directory`, with `program` in place of [`BINARY`]. Returns the first line that it writes,
/// standard output first. Of the environment it gets PATH only. When it ends, at the time limit, or when `called_off`
/// is set, everything that it has started is killed. `None` if it fails: a program need not have a version. Blocks for
/// up to 5 s, and until the killed processes are gone.
pub(super) fn ask(
    command: &[String],
    program: &Path,
    directory: &Path,
    called_off: &AtomicBool,
) -> Option<String> {
    let words: Vec<String> =
        command.iter().map(|word| word.replace(BINARY, &program.to_string_lossy())).collect();
    let (output, output_end) = std::io::pipe().ok()?;
    set_nonblocking(&output, true).ok()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut command = Command::new(words.first()?);
    command.args(&words[1..]).current_dir(directory).env_clear().env("PATH", path).process_group(0);
    command.stdin(Stdio::null()).stdout(output_end.try_clone().ok()?).stderr(output_end);
    let trace = Trace::leave(&mut command).ok()?;
    let mut child = command.spawn().ok()?;
    // This closes this process's ends of the pipe.
    drop(command);
    let mut said = ProgramOutput { output: OwnedFd::from(output).into(), bytes: Vec::new() };
    let ended = pidfd_open(child.id()).is_ok_and(|pidfd| said.until_end_of(&pidfd, called_off));
    let status = if ended { child.try_wait().ok().flatten() } else { None };
    send_to_group(child.id(), Signal::SIGKILL);
    let killed = child.wait();
    trace.end_all();
    status.filter(|_| killed.is_ok()).filter(std::process::ExitStatus::success)?;
    first_line(&said.bytes)
}

/// Refuses a command whose program other users could have changed. The placeholder stands for a checked copy. Accesses
/// the file system.
pub(super) fn check(command: &[String], given: &Path) -> Result<(), Error> {
    let Some(program) = command.first().filter(|program| *program != BINARY) else { return Ok(()) };
    let refused = |error: HookError| {
        Error::refused(given, format!("version_command cannot run: {error}"), error.hint())
    };
    check_program(program).map(drop).map_err(refused)
}

/// The output of a program so far.
struct ProgramOutput {
    output: File,
    bytes: Vec<u8>,
}

impl ProgramOutput {
    /// Reads until the program has ended, even if other processes have its output open. `false` if it did not end in
    /// time.
    fn until_end_of(&mut self, pidfd: &OwnedFd, called_off: &AtomicBool) -> bool {
        let until = Instant::now() + LIMIT;
        while Instant::now() < until && !called_off.load(Ordering::Relaxed) {
            // The end is checked first: its output is complete then.
            let ended = is_readable(pidfd, Duration::ZERO);
            let more = self.read();
            if ended {
                return true;
            }
            match more {
                true => _ = wait_for_either(&self.output, pidfd),
                false => _ = is_readable(pidfd, TICK),
            }
        }
        false
    }

    /// Reads the available output. `false` at the end.
    fn read(&mut self) -> bool {
        let mut buffer = [0; READ_MAX];
        while self.bytes.len() < READ_MAX {
            match self.output.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => self.bytes.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        false
    }
}

fn is_readable(pidfd: &OwnedFd, limit: Duration) -> bool {
    wait_for(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], limit)
}

fn wait_for_either(output: &File, pidfd: &OwnedFd) -> bool {
    wait_for(
        &mut [PollFd::new(output.as_fd(), PollFlags::POLLIN), PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
        TICK,
    )
}

/// A signal ends the wait early; the caller checks again.
fn wait_for(fds: &mut [PollFd<'_>], limit: Duration) -> bool {
    poll(fds, Some(limit)).is_ok_and(|ready| ready > 0)
}

fn first_line(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(LINE_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says_unless(script: &str, called_off: &AtomicBool) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let command = [BINARY, "-c", script].map(str::to_owned);
        ask(&command, Path::new("/bin/sh"), directory.path(), called_off)
    }

    fn says(script: &str) -> Option<String> {
        says_unless(script, &AtomicBool::new(false))
    }

    #[test]
    fn the_first_line_counts_wherever_it_is_written() {
        assert_eq!(says("echo; echo ' s3 1.2.3 '; echo more").as_deref(), Some("s3 1.2.3"));
        assert_eq!(says("echo s3 1.2.3 >&2").as_deref(), Some("s3 1.2.3"));
        assert_eq!(says("head -c 300 /dev/zero | tr '\\0' x").unwrap().len(), LINE_MAX);
        assert_eq!(says("printf 'a\\033[1mb'").as_deref(), Some("a[1mb"));
    }

    #[test]
    fn a_program_that_fails_or_says_nothing_is_no_error() {
        assert_eq!(says("exit 0"), None);
        assert_eq!(says("echo usage; exit 2"), None);
        assert_eq!(
            ask(&["/no/such".to_owned()], Path::new("/x"), Path::new("/"), &AtomicBool::new(false)),
            None
        );
    }

    #[test]
    fn what_it_leaves_behind_holds_nothing_up_and_is_ended() {
        let began = Instant::now();
        let directory = tempfile::tempdir().unwrap();
        let script = format!("sleep 1000 & echo $! > {}/pid; echo s3 1.2.3", directory.path().display());
        assert_eq!(says(&script).as_deref(), Some("s3 1.2.3"));
        assert!(began.elapsed() < LIMIT, "its child has the output open");
        assert_ends(&std::fs::read_to_string(directory.path().join("pid")).unwrap());
    }

    /// The thread that started a child gets SIGCHLD for it.
    #[test]
    fn the_end_of_another_child_meanwhile_changes_nothing() {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Only a thread that handles the signal is interrupted.
        let _handled = runtime.block_on(async { signal(SignalKind::child()) }).unwrap();
        let mut other = Command::new("/bin/sleep").arg("0.1").spawn().unwrap();
        assert_eq!(says("sleep 0.5; echo s3 1.2.3").as_deref(), Some("s3 1.2.3"));
        other.wait().unwrap();
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_all_that_it_started() {
        let began = Instant::now();
        let directory = tempfile::tempdir().unwrap();
        let script =
            format!("sleep 1000 & echo $! > {}/pid; while echo yes; do :; done", directory.path().display());
        assert_eq!(says(&script), None);
        assert!(began.elapsed() >= LIMIT);
        assert_ends(&std::fs::read_to_string(directory.path().join("pid")).unwrap());
    }

    #[test]
    fn nobody_waits_for_an_answer_that_is_not_wanted() {
        let began = Instant::now();
        assert_eq!(says_unless("sleep 1000", &AtomicBool::new(true)), None);
        assert!(began.elapsed() < LIMIT);
    }

    fn assert_ends(pid: &str) {
        let until = Instant::now() + Duration::from_secs(30);
        while std::fs::read(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|line| !line.is_empty()) {
            assert!(Instant::now() < until, "{pid} is gone soon");
            std::thread::yield_now();
        }
    }
}
