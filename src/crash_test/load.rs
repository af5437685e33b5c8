//! The load, which the author of a service provides.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Error;
use super::workspace::Workspace;
use crate::sys::process::{Signal, kill, pidfd_open};

/// Time limit for the load to read back its writes.
const LIMIT: Duration = Duration::from_secs(60);

/// The last line that a load prints. It exits with 0 if all is well: nothing refused, lost or wrong. The harness
/// judges reset or cut connections and error answers, because only it can tell whether their process was killed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct LoadResult {
    /// Whether all is well, except for reset or cut connections and error answers.
    pub(super) ok: bool,
    /// Number of writes that were acknowledged.
    pub(super) acknowledged: u64,
    /// Number of acknowledged writes that are gone.
    pub(super) lost: u64,
    /// Answers that contradict what was written.
    pub(super) wrong: u64,
    /// Connects that were refused.
    pub(super) refused: u64,
    /// Connections that were reset.
    pub(super) reset: u64,
    /// Connections that ended before the answer did.
    pub(super) cut: u64,
    /// Answers that report an error of the service.
    pub(super) errors: u64,
    /// The longest time without an answer to any client, in milliseconds.
    pub(super) longest_gap_ms: Option<f64>,
    /// For people: the first failure.
    pub(super) first: Option<String>,
}

impl LoadResult {
    /// The problems, in one sentence. Reset or cut connections and error answers are excused if a process with
    /// connections was killed.
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
    pub(super) fn start(workspace: &Workspace, command: &[OsString]) -> std::result::Result<Self, Error> {
        let mut words = command.iter().map(|word| workspace.fill_in(word));
        let program = words.next().ok_or("the load command is empty")?;
        let errors = std::fs::File::options().create(true).append(true).open(workspace.path("load.log"))?;
        let mut child = Command::new(&program)
            .args(words)
            .envs(&workspace.addresses)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("cannot start the load {program:?}: {error}"))?;
        let mut stdout = child.stdout.take().ok_or("the load has no output")?;
        let output = std::thread::spawn(move || {
            let mut text = Vec::new();
            // The text before an error counts.
            let _ = stdout.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Ok(Self { child, output: Some(output) })
    }

    /// Ends the load, and returns its result.
    pub(super) fn finish(mut self) -> std::result::Result<LoadResult, Error> {
        if let Ok(pidfd) = pidfd_open(self.child.id()) {
            let _ = kill(&pidfd, Signal::SIGTERM);
        }
        let status = self.wait()?;
        let text = self.output.take().and_then(|output| output.join().ok()).unwrap_or_default();
        let line = text.lines().rfind(|line| !line.trim().is_empty());
        let line = line.ok_or_else(|| format!("the load ended with {status} and printed nothing"))?;
        let mut result: LoadResult = serde_json::from_str(line)
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
