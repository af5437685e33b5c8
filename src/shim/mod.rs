//! The shim: a small process that speaks the protocol for a program that does not.
//!
//! The daemon starts it in place of the service. It embeds [`crate::service`] like any other service, so machines,
//! journal, leases and recovery are the same for every adapter, even without the daemon. It runs the program as its
//! child:
//!
//! - `Prepared`: in overlap mode the program runs and is as ready as it can report; in exclusive mode nothing is
//!   started yet, or (`warm`) the program is held in its first bind;
//! - `Ready`: it runs, has bound its listeners if that is visible, and has reported ready if it does that;
//! - `Drained`: in overlap mode its queue is empty, and its connections are closed or its long requests answered; in
//!   exclusive mode, in which it still gets new connections, no long request is in progress;
//! - `Sealed`: it was asked to end, and is gone with all its descendants;
//! - `Resumed`: it runs again, at the slot where connections wait.
//!
//! ```text
//!  daemon ── channel ── shim ─┬─ driver of the library: hears the daemon, gives signs of life
//!                             ├─ main thread: starts the program, drains, seals, resumes
//!                             ├─ reaper: knows when the program ends
//!                             ├─ inject: answers its bind and listen   (adapter inject)
//!                             └─ notify: hears READY=1                 (notify)
//! ```
//!
//! The end of a shim is the end of its program: the kernel kills the program (PR_SET_PDEATHSIG), and the next shim or
//! the daemon kills its descendants (see `files.rs`). If the program ends by itself, the shim ends in the same way, as
//! if it were the program.

/// Writes a message to the log of the service, on its own line.
macro_rules! log_line {
    ($($text:tt)*) => { $crate::shim::own::log_line(format_args!($($text)*)) };
}

mod bounded;
mod current_listeners;
mod drain;
pub mod exec;
mod files;
mod frozen;
mod idle_period;
pub mod inject;
pub(crate) mod killed;
mod leftovers;
mod life;
mod listeners;
pub(crate) mod lost;
mod notify;
mod own;
mod program;
mod quiescence;
mod receivers;
mod runner;
pub mod shim_config;
pub mod trial;
mod unmatched;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use handoff_protocol::message::Mode;

use crate::control::api::Connections;
use crate::crash_points::crash_point;
use crate::service;
use crate::slots::Side;
use crate::sys::descriptor::read;
use crate::sys::own_process::{leave_no_core, set_name};
use crate::sys::poll::{PollFd, PollFlags, poll, poll_one};
use crate::sys::process::{Exit, Signal};
use crate::sys::signal_fd::signal_fd;
use crate::sys::signals::die_by;
pub(crate) use files::{end_what_is_left, named};
use listeners::Listeners;
pub(crate) use listeners::{active_side, forget_sides, note_joined};
pub(crate) use own::is_own_error;
use program::{Program, ProgramState};
use runner::Runner;
use shim_config::ShimConfig;

/// The first argument of the process. The second, for people, is the service name.
pub const VERB: &str = "shim";
/// Extension of the file with the program's pid.
pub(crate) const PID: &str = "pid";
/// Extension of that file while it is written.
const NEXT_PID: &str = "pid-new";
/// Extension of the file that all descendants of a shim have open.
pub(crate) const TRACE: &str = "tree";

/// Extension of the file with the side on which a program was started.
const SIDE: &str = "side";

/// The side recorded by a shim; `own_path` is that of its configuration. The directory is not writable for services.
pub(crate) fn used_side(own_path: &Path) -> Option<Side> {
    serde_json::from_slice(&std::fs::read(own_path.with_extension(SIDE)).ok()?).ok()
}

/// Extension of the file with the connections of the program when it received its stop signal.
const LEFT: &str = "left";

/// Extension of the file with the reason why a program has not bound its listeners.
const WAITS: &str = "waits";
/// Extension of the file with the last ignored `MAINPID`.
const REFUSED: &str = "refused";
/// Extension of the file with the requests for which a drain waits.
const DRAINS: &str = "drains";
/// Extension of the file that says how the main process has ended, while others of the program are still ending.
const MAIN_EXIT: &str = "over";
/// Maximum number of bytes to read of these.
const TEXT_MAX_BYTES: u64 = 4096;

/// Why a shim's program has not bound its listeners, a clause; `own_path` is that of its configuration.
pub(crate) fn waits_for(own_path: &Path) -> Option<String> {
    read_text(&own_path.with_extension(WAITS))
}

/// The last ignored `MAINPID` for a shim's program, a clause.
pub(crate) fn refused_by(own_path: &Path) -> Option<String> {
    read_text(&own_path.with_extension(REFUSED))
}

/// The requests for which the last drain of a shim's program waits, or has waited, a clause.
pub(crate) fn drains_for(own_path: &Path) -> Option<String> {
    read_text(&own_path.with_extension(DRAINS))
}

/// How the main process of a shim's program has ended, if others of it are still ending, a clause.
pub(crate) fn main_exit(own_path: &Path) -> Option<String> {
    read_text(&own_path.with_extension(MAIN_EXIT))
}

fn read_text(path: &Path) -> Option<String> {
    let is_short =
        std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() <= TEXT_MAX_BYTES);
    let text = is_short.then(|| std::fs::read_to_string(path).ok()).flatten()?;
    let text: String = text.chars().filter(|it| !it.is_control()).collect();
    // It may be about to be written.
    Some(text).filter(|text| !text.is_empty())
}

/// The connections of a shim's program when it received its stop signal; `own_path` is that of its configuration.
pub(crate) fn connections_left(own_path: &Path) -> Option<Connections> {
    serde_json::from_slice(&std::fs::read(own_path.with_extension(LEFT)).ok()?).ok()
}

/// Signals for the program that the shim forwards, since users and the daemon also know the shim's pid.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];

/// Runs the shim process, which the daemon has started. Blocks until its end.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log_line!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let config = ShimConfig::of_this_process()?;
    let text = |error: service::Error| error.to_string();
    let system = |error: std::io::Error| error.to_string();
    // Started as /proc/self/exe, its name would be "exe".
    set_name(c"handoff-shim").map_err(|error| error.to_string())?;
    // Before there are threads, which inherit the mask.
    let terminate = signal_fd(Signal::SIGTERM).map_err(system)?;
    let others = PASSED_ON.map(|signal| signal_fd(signal).map(|fd| (signal, fd)));
    let others = others.into_iter().collect::<Result<Vec<_>, _>>().map_err(system)?;
    let mut starting = service::start().map_err(text)?;
    let program = Program::new(config.clone()).map_err(system)?;
    end_on_request(terminate, &program).map_err(system)?;
    pass_signals_on(others, &program).map_err(system)?;
    let leaving = Arc::clone(&program);
    starting.before_exit(move || {
        let _ = leaving.end_or_kill();
        leaving.forget();
    });

    let (committed, commit) = std::sync::mpsc::channel();
    starting.on_commit(move || _ = committed.send(()));
    watch_for_the_end(&program, config.is_oneshot.then_some(commit)).map_err(system)?;

    let mode = starting.mode();
    let ended = Listeners::new(&config, mode, starting.all_listeners())
        .and_then(|listeners| Runner::new(config.clone(), mode, Arc::clone(&program), listeners));
    let ended = match ended {
        Ok(runner) => serve(starting, runner, mode, &config),
        Err(error) => Err(starting.unhealthy(&error).to_string()),
    };
    crash_point!("shim/successor/{}", if ended.is_ok() { "ended" } else { "failed" });
    // It may still serve, since a process must leave even if its seal failed.
    program.end_or_kill()?;
    program.forget();
    ended
}

/// From the start to the end of the program.
fn serve(
    starting: service::Starting,
    mut runner: Runner,
    mode: Mode,
    config: &ShimConfig,
) -> Result<(), String> {
    let text = |error: service::Error| error.to_string();
    let warm = config.program.warm && mode == Mode::Exclusive;
    if mode == Mode::Exclusive
        && let Err(error) = own::look_at_files(config)
    {
        return Err(starting.unhealthy(&error).to_string());
    }
    let prepared = match mode {
        Mode::Overlap => runner.start(false).and_then(|()| runner.await_ready()),
        Mode::Exclusive if warm => runner.start(true).and_then(|()| runner.await_parked()),
        Mode::Exclusive => Ok(()),
    };
    if let Err(error) = prepared {
        return Err(starting.unhealthy(&end_unfit(runner.program(), error)).to_string());
    }
    let data: Option<&Path> = (mode == Mode::Exclusive).then_some(&config.shared_dir);
    let waits = Arc::new(AtomicBool::new(warm));
    if warm {
        watch_parked(runner.program(), Arc::clone(&waits)).map_err(|error| error.to_string())?;
    }
    let begun = starting.begin(data).map_err(text)?;
    runner.program().learn(|_| waits.store(false, Ordering::SeqCst));
    let ready = match mode {
        Mode::Overlap => Ok(()),
        Mode::Exclusive => begin(&mut runner, warm),
    };
    match ready {
        Ok(()) => begun.ready().map_err(text)?.run(runner).map(drop).map_err(text),
        Err(error) => Err(begun.unhealthy(&end_unfit(runner.program(), error)).to_string()),
    }
}

/// Ends a program that cannot serve, before the daemon learns of it: then the daemon kills this process, and with it the
/// program. One that a debugger has stopped cannot handle a signal, and is killed. Returns the error.
fn end_unfit(program: &Program, error: String) -> String {
    let ended = if program.is_held_by_debugger() { program.kill() } else { program.end_or_kill() };
    if let Err(left) = ended {
        log_line!("{left}");
    }
    error
}

fn begin(runner: &mut Runner, warm: bool) -> Result<(), String> {
    runner.take_over()?;
    crash_point!("shim/successor/took-over");
    match warm {
        true => runner.release(),
        false => runner.start(false)?,
    }
    runner.await_ready()
}

/// If the program ends by itself, the shim ends too. Before readiness, the code that waits for readiness reports the
/// end. A job may be done before the daemon has recorded its start, and would then be run again: its end waits for
/// `commit`.
fn watch_for_the_end(program: &Arc<Program>, commit: Option<Receiver<()>>) -> std::io::Result<()> {
    let program = Arc::clone(program);
    std::thread::Builder::new().name("handoff-end".to_owned()).spawn(move || {
        let exit = program.await_failure();
        program.forget();
        if let Some(commit) = commit {
            let _ = commit.recv();
        } else {
            log_line!("the program {exit}");
        }
        end_like(exit);
    })?;
    Ok(())
}

/// A program that ends while it is held in its first bind is reported, so that the serving version is not sealed for
/// it.
fn watch_parked(program: &Arc<Program>, waits: Arc<AtomicBool>) -> std::io::Result<()> {
    let program = Arc::clone(program);
    std::thread::Builder::new().name("handoff-parked".to_owned()).spawn(move || {
        let Some(ended) = program.await_early_end(|| !waits.load(Ordering::SeqCst)) else { return };
        log_line!("{ended}");
        let _ = program.kill();
        program.forget();
        std::process::exit(1);
    })?;
    Ok(())
}

/// Ends this process in the same way as the program.
fn end_like(exit: Exit) -> ! {
    if let Some(signal) = exit.signal {
        // A core dump of the shim is useless.
        let _ = leave_no_core();
        die_by(signal);
    }
    std::process::exit(exit.code.unwrap_or(1))
}

/// SIGTERM is for the program: it ends in order, and the shim with it. A program that is held in its first bind is killed.
fn end_on_request(terminate: std::os::fd::OwnedFd, program: &Arc<Program>) -> std::io::Result<()> {
    let program = Arc::clone(program);
    std::thread::Builder::new().name("handoff-term".to_owned()).spawn(move || {
        while poll_one(&terminate, PollFlags::POLLIN, None).is_err() {}
        let ended = program.end_or_kill();
        program.forget();
        // Reports the exit status of the program, as if the signal had gone to it.
        match (ended, program.wait(Some(Duration::ZERO), ProgramState::ended)) {
            (Ok(_), Some(exit)) => end_like(exit),
            (Ok(_), None) => std::process::exit(0),
            (Err(error), _) => {
                log_line!("{error}");
                std::process::exit(1)
            }
        }
    })?;
    Ok(())
}

/// Forwards signals to the program.
fn pass_signals_on(signals: Vec<(Signal, OwnedFd)>, program: &Arc<Program>) -> std::io::Result<()> {
    let program = Arc::clone(program);
    std::thread::Builder::new().name("handoff-signals".to_owned()).spawn(move || {
        loop {
            let fds = signals.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
            let mut fds: Vec<_> = fds.collect();
            if poll(&mut fds, None).is_err() {
                continue;
            }
            for (signal, fd) in &signals {
                // Several pending signals count as one, as in any process. No data means no signal.
                if read(fd, &mut [0; 1024]).is_ok_and(|length| length > 0) {
                    program.pass_on(*signal);
                }
            }
        }
    })?;
    Ok(())
}
