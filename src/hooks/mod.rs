//! The commands of a service file that run around an upgrade: the preflight and the hooks.
//!
//! A command is a program with its arguments, never a shell line. It has a time limit and its own process group, and
//! the end of its output is kept.

mod group;
mod tail;
mod trace;

use std::ffi::OsString;
use std::future::{Future, pending};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use handoff_protocol::reason::Exit;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::format_duration_ms;
use crate::supervisor::inherited_environment;
use crate::sys::exposed::{Exposed, FileUse, check_exposure};
use crate::sys::spawn::SpawnSpec;
use group::ProcessGroup;
use tail::Tail;
pub(crate) use trace::{Trace, keep_traces_in};

/// The placeholder for the new binary's path in the arguments of a command.
pub const BINARY: &str = "{binary}";
/// Maximum number of output bytes in an error.
const OUTPUT_MAX_BYTES: usize = 400;

/// A command of a service file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The absolute path of the program, or [`BINARY`], and its arguments.
    pub argv: Vec<String>,
    /// Time limit in milliseconds.
    pub limit_ms: u64,
}

/// The output of a command: the last 16 KiB of each stream, with invalid UTF-8 replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
}

/// Why a command failed. `Display` is a clause that names the command.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The path of its program is not absolute, so the environment would decide what runs.
    #[error("{0:?} is not the absolute path of a command")]
    NotAbsolute(String),
    /// It contains [`BINARY`], but there is no new binary.
    #[error("{0:?} cannot be filled in: there is no new binary at this point")]
    NoBinary(String),
    /// Other users could have changed it.
    #[error("refusing to run {}: {cause}", program.display())]
    Unsafe {
        /// The program.
        program: PathBuf,
        /// The cause.
        cause: Exposed,
    },
    /// Starting it failed.
    #[error("cannot run {command}: {cause}")]
    Spawn {
        /// The program and its arguments.
        command: String,
        /// The error of the kernel.
        cause: std::io::Error,
    },
    /// Its exit status is not 0.
    #[error("{command} {exit}{}", as_clause(.output_tail))]
    Failed {
        /// The program and its arguments.
        command: String,
        /// The exit status.
        exit: Exit,
        /// The last lines of its output.
        output_tail: String,
    },
    /// It exceeded its time limit and was killed with its process group.
    #[error("{command} did not end within {} and was killed{}", format_duration_ms(*limit_ms), as_clause(.output_tail))]
    TooLong {
        /// The program and its arguments.
        command: String,
        /// Its limit.
        limit_ms: u64,
        /// The last lines of its output.
        output_tail: String,
    },
    /// It did not start within its time limit: its program or its directory is on a file system that does not answer.
    #[error("{command} did not start within {}: {cause}", format_duration_ms(*limit_ms))]
    NotStarted {
        /// The program and its arguments.
        command: String,
        /// Its limit.
        limit_ms: u64,
        /// What did not answer.
        cause: String,
    },
    /// Its result was no longer needed, and it was killed with all its descendants.
    #[error("{0} was called off")]
    CalledOff(String),
}

impl HookError {
    /// What the user can do about it, one clause.
    pub fn hint(&self) -> String {
        match self {
            Self::NotAbsolute(_) => "write [\"/absolute/path/of/command\", \"argument\"]".to_owned(),
            Self::NoBinary(_) => format!("remove {BINARY} from this command"),
            Self::Unsafe { cause, .. } => cause.hint(),
            Self::Spawn { .. } => "is it there, executable, and made for this machine?".to_owned(),
            Self::Failed { .. } => "run it by hand to see more".to_owned(),
            Self::TooLong { .. } => "give it more time, or find out what it waits for".to_owned(),
            Self::NotStarted { .. } => "check the file system that holds them".to_owned(),
            Self::CalledOff(_) => "nothing has changed".to_owned(),
        }
    }
}

/// Runs a command, and waits until it has exited with 0. `binary` replaces [`BINARY`]. Its environment is `env` plus
/// the ten variables that every service gets from the daemon. It has no input. After its end, the rest of its process
/// group is killed. At its time limit, and when this future is dropped, all its descendants are killed.
pub async fn run(
    command: &Command,
    binary: Option<&Path>,
    env: &[(String, String)],
    working_dir: &Path,
) -> Result<Output, HookError> {
    run_until(command, binary, env, working_dir, pending()).await
}

/// The same, until `called_off` completes. When this returns, nothing of the command is left.
pub async fn run_until(
    command: &Command,
    binary: Option<&Path>,
    env: &[(String, String)],
    working_dir: &Path,
    called_off: impl Future<Output = ()>,
) -> Result<Output, HookError> {
    let argv = fill_in(&command.argv, binary)?;
    let program = Path::new(argv.first().map_or("", String::as_str));
    let shown = argv.join(" ");
    let unable = |cause| HookError::Spawn { command: shown.clone(), cause };
    let (mut stdout, out) = Tail::pipe().map_err(unable)?;
    let (mut stderr, err) = Tail::pipe().map_err(unable)?;
    let until = Instant::now() + Duration::from_millis(command.limit_ms);
    let not_started = || {
        let cause = format!("its program or the directory {} does not answer", working_dir.display());
        HookError::NotStarted { command: shown.clone(), limit_ms: command.limit_ms, cause }
    };
    let mut starting = group::start(SpawnSpec {
        binary: program.to_owned(),
        args: argv[1..].iter().map(OsString::from).collect(),
        env: environment(env),
        working_dir: working_dir.to_owned(),
        stdout: out,
        stderr: err,
        channel: None,
        files_limit: None,
    })
    .map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => not_started(),
        _ => unable(error),
    })?;
    let mut called_off = pin!(called_off);
    let started = tokio::select! {
        started = timeout_at(until, starting.started()) => started,
        () = &mut called_off => {
            starting.give_up().await;
            return Err(HookError::CalledOff(shown));
        }
    };
    let started = match started {
        Ok(Some(started)) => started?,
        Ok(None) => return Err(unable(io::ErrorKind::BrokenPipe.into())),
        Err(_) => return Err(not_started()),
    };
    let mut group = ProcessGroup::of(started).map_err(unable)?;

    let end = tokio::select! {
        ended = group.ended() => WaitResult::ByItself(ended),
        () = sleep_until(until) => WaitResult::TooLate,
        () = &mut called_off => WaitResult::CalledOff,
        never = stdout.fill() => match never {},
        never = stderr.fill() => match never {},
    };
    let exit = match &end {
        WaitResult::ByItself(_) => group.end().await,
        WaitResult::TooLate | WaitResult::CalledOff => group.end_all().await,
    };
    let output = Output { stdout: stdout.finish(), stderr: stderr.finish() };
    let output_tail = last_output_lines(&output);
    match (end, exit) {
        (WaitResult::TooLate, _) => {
            Err(HookError::TooLong { command: shown, limit_ms: command.limit_ms, output_tail })
        }
        (WaitResult::CalledOff, _) => Err(HookError::CalledOff(shown)),
        (WaitResult::ByItself(Err(cause)), _) => Err(unable(cause)),
        (WaitResult::ByItself(Ok(())), Exit::Code(0)) => Ok(output),
        (WaitResult::ByItself(Ok(())), exit) => Err(HookError::Failed { command: shown, exit, output_tail }),
    }
}

/// The variables of this command come last.
fn environment(env: &[(String, String)]) -> Vec<(OsString, OsString)> {
    let is_set = |name: &OsString| env.iter().any(|(variable, _)| name == variable.as_str());
    let inherited = inherited_environment().filter(|(name, _)| !is_set(name));
    inherited.chain(env.iter().map(|(name, value)| (name.into(), value.into()))).collect()
}

/// Why the wait for a command ended.
enum WaitResult {
    ByItself(io::Result<()>),
    TooLate,
    CalledOff,
}

/// Whether this may run as the program of a command: an absolute path that only trusted users can change. Returns the
/// path. Accesses the file system.
pub fn check_program(program: &str) -> Result<&Path, HookError> {
    let path = Path::new(program);
    if !path.is_absolute() {
        return Err(HookError::NotAbsolute(program.to_owned()));
    }
    match check_exposure(path, FileUse::InPlace) {
        Ok(_) => Ok(path),
        Err(Exposed::Unreadable(_, cause)) => Err(HookError::Spawn { command: program.to_owned(), cause }),
        Err(cause) => Err(HookError::Unsafe { program: path.to_owned(), cause }),
    }
}

fn fill_in(argv: &[String], binary: Option<&Path>) -> Result<Vec<String>, HookError> {
    let fill = |word: &String| match binary {
        _ if !word.contains(BINARY) => Ok(word.clone()),
        Some(binary) => Ok(word.replace(BINARY, &binary.to_string_lossy())),
        None => Err(HookError::NoBinary(word.clone())),
    };
    argv.iter().map(fill).collect()
}

/// The last lines of standard error, or of standard output if that is empty, as one line.
fn last_output_lines(output: &Output) -> String {
    let text = if output.stderr.trim().is_empty() { &output.stdout } else { &output.stderr };
    let start = text.ceil_char_boundary(text.len().saturating_sub(OUTPUT_MAX_BYTES));
    let lines: Vec<&str> = text[start..].lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    last.join("; ").chars().filter(|character| !character.is_control()).collect()
}

fn as_clause(told: &str) -> String {
    if told.is_empty() { String::new() } else { format!(": {told}") }
}

#[cfg(test)]
mod tests;
