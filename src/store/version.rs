//! What a program says its version is.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::sys::process::pidfd_open;
use crate::sys::readable::is_readable_by;

/// A program that has not answered by then is not asked any more.
const LIMIT: Duration = Duration::from_secs(5);
/// One that has said everything ends by itself within this time.
const SOON: Duration = Duration::from_secs(1);
/// As much of a line is kept, in characters.
const LINE_MAX: usize = 128;
/// As much of what it says is read.
const READ_MAX: usize = 4096;

/// Starts the program with `args` in `directory`, and gives the first line that it writes, standard output first. It gets no
/// more than PATH of the environment, and is killed with all that it started when it has answered or when the time is over.
/// Nothing if it fails: a program need not know its version. Blocks, at most 5 s.
pub(super) fn ask(program: &Path, args: &[String], directory: &Path) -> Option<String> {
    let (output, output_end) = pipe_with(PipeFlags::CLOEXEC).ok()?;
    rustix::fs::fcntl_setfl(&output, rustix::fs::OFlags::NONBLOCK).ok()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.args(args).current_dir(directory).env_clear().env("PATH", path).process_group(0);
    let mut child =
        command.stdin(Stdio::null()).stdout(output_end.try_clone().ok()?).stderr(output_end).spawn().ok()?;
    // With it go this process's ends of the pipe, so that the end of the program is the end of its output.
    drop(command);
    let said = read_until(output, Instant::now() + LIMIT);
    let ended_by_itself = match said {
        Some(_) => ends_soon(&mut child),
        None => None,
    };
    if let Some(group) = Pid::from_raw(child.id() as i32) {
        // Whatever it started is in its group.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = ended_by_itself.or_else(|| child.wait().ok())?;
    said.filter(|_| status.success()).and_then(|said| first_line(&said))
}

/// What was said until the end, if it came in time.
fn read_until(output: OwnedFd, until: Instant) -> Option<Vec<u8>> {
    let mut output = File::from(output);
    let mut said = Vec::new();
    let mut buffer = [0; READ_MAX];
    while said.len() < READ_MAX {
        match output.read(&mut buffer) {
            Ok(0) => return Some(said),
            Ok(n) => said.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                is_readable_by(&output, until).ok().filter(|readable| *readable)?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(said)
}

/// Its output is at its end, so it is about to end.
fn ends_soon(child: &mut std::process::Child) -> Option<std::process::ExitStatus> {
    let pidfd = pidfd_open(child.id()).ok()?;
    is_readable_by(&pidfd, Instant::now() + SOON).ok()?;
    child.try_wait().ok()?
}

fn first_line(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(LINE_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(script: &str) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        ask(Path::new("/bin/sh"), &["-c".into(), script.into()], directory.path())
    }

    #[test]
    fn the_first_line_counts_wherever_it_is_written() {
        assert_eq!(says("echo; echo ' s3 1.2.3 '; echo more").as_deref(), Some("s3 1.2.3"));
        assert_eq!(says("echo s3 1.2.3 >&2").as_deref(), Some("s3 1.2.3"));
        assert_eq!(says("head -c 300 /dev/zero | tr '\\0' x").unwrap().len(), LINE_MAX);
        assert_eq!(says("printf 'a\\033[1mb'").as_deref(), Some("a[1mb"));
    }

    #[test]
    fn a_program_that_fails_or_says_nothing_or_floods_is_no_error() {
        assert_eq!(says("exit 0"), None);
        assert_eq!(says("echo usage; exit 2"), None);
        assert_eq!(says("while echo yes; do :; done"), None);
        assert_eq!(ask(Path::new("/no/such"), &[], Path::new("/")), None);
    }

    /// The end of a child is told to the thread that started it.
    #[test]
    fn the_end_of_another_child_meanwhile_changes_nothing() {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Who handles it is interrupted by it; who does not is not.
        let _handled = runtime.block_on(async { signal(SignalKind::child()) }).unwrap();
        let mut other = Command::new("/bin/sleep").arg("0.1").spawn().unwrap();
        assert_eq!(says("sleep 0.5; echo s3 1.2.3").as_deref(), Some("s3 1.2.3"));
        other.wait().unwrap();
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_all_that_it_started() {
        let began = Instant::now();
        let directory = tempfile::tempdir().unwrap();
        let script = format!("echo $$ > {0}/pid; sleep 1000 & wait", directory.path().display());
        assert_eq!(says(&script), None);
        assert!(began.elapsed() >= LIMIT);
        let group: i32 =
            std::fs::read_to_string(directory.path().join("pid")).unwrap().trim().parse().unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        while rustix::process::test_kill_process_group(Pid::from_raw(group).unwrap()).is_ok() {
            assert!(Instant::now() < until, "the group is gone soon");
            std::thread::yield_now();
        }
    }
}
