//! The load that the author of a service brings.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Error;
use super::place::Place;
use crate::sys::process::{Signal, kill, pidfd_open};

/// How long a load may take to read back what it wrote.
const LIMIT: Duration = Duration::from_secs(60);

/// The last line that a load prints. It exits with 0 if all is well: nothing refused, lost or wrong. What was reset or cut,
/// or failed, is for the harness to judge, which knows whether the process that had it was killed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Result {
    /// Whether all is well, apart from what was reset or cut, or failed.
    pub(super) ok: bool,
    /// Number of writes that were acknowledged.
    pub(super) acknowledged: u64,
    /// Of these, how many are not there any more.
    pub(super) lost: u64,
    /// Answers that contradict what was written.
    pub(super) wrong: u64,
    /// Connects that were refused.
    pub(super) refused: u64,
    /// Connections that were reset.
    pub(super) reset: u64,
    /// Connections that ended before the answer did.
    pub(super) cut: u64,
    /// Requests that the service answered by saying that it failed.
    pub(super) errors: u64,
    /// The longest time without an answer to anybody, in milliseconds.
    pub(super) longest_gap_ms: Option<f64>,
    /// For people: what went wrong first.
    pub(super) first: Option<String>,
}

impl Result {
    /// What is wrong with it, in one sentence. What was reset or cut, or failed, is excused if a process that had connections was
    /// killed.
    pub(super) fn problem(&self, excused: bool) -> Option<String> {
        let counts = [
            ("lost", self.lost, false),
            ("wrong", self.wrong, false),
            ("refused", self.refused, false),
            ("reset", self.reset, excused),
            ("cut", self.cut, excused),
            ("errors", self.errors, excused),
        ];
        let bad = counts.iter().filter(|(_, count, excused)| *count > 0 && !excused);
        let bad: Vec<String> = bad.map(|(what, count, _)| format!("{what} {count}")).collect();
        let first = self.first.clone().unwrap_or_default();
        match bad.is_empty() {
            false => {
                let acknowledged = self.acknowledged;
                Some(format!("the load saw {} ({acknowledged} acknowledged): {first}", bad.join(", ")))
            }
            true if !self.ok => Some(format!("the load says that it is not well: {first}")),
            true => None,
        }
    }
}

pub(super) struct Load {
    child: Child,
    output: Option<JoinHandle<String>>,
}

impl Load {
    pub(super) fn start(place: &Place, command: &[OsString]) -> std::result::Result<Self, Error> {
        let mut words = command.iter().map(|word| place.fill_in(word));
        let program = words.next().ok_or("the load command is empty")?;
        let errors = std::fs::File::options().create(true).append(true).open(place.path("load.log"))?;
        let mut child = Command::new(&program)
            .args(words)
            .envs(&place.addresses)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("cannot start the load {program:?}: {error}"))?;
        let mut stdout = child.stdout.take().ok_or("the load has no output")?;
        let output = std::thread::spawn(move || {
            let mut text = Vec::new();
            // What came before an error counts.
            let _ = stdout.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Ok(Self { child, output: Some(output) })
    }

    /// Lets the load end, and gives what it found.
    pub(super) fn finish(mut self) -> std::result::Result<Result, Error> {
        if let Ok(pidfd) = pidfd_open(self.child.id()) {
            let _ = kill(&pidfd, Signal::SIGTERM);
        }
        let status = self.wait()?;
        let text = self.output.take().and_then(|output| output.join().ok()).unwrap_or_default();
        let line = text.lines().rfind(|line| !line.trim().is_empty());
        let line = line.ok_or_else(|| format!("the load ended with {status} and printed nothing"))?;
        let mut result: Result = serde_json::from_str(line)
            .map_err(|error| format!("the load printed {line:?}, which is no result: {error}"))?;
        result.ok &= status.success();
        Ok(result)
    }

    fn wait(&mut self) -> std::result::Result<ExitStatus, Error> {
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("the load has not ended {LIMIT:?} after SIGTERM").into())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
