//! The shim: a small process that speaks the protocol for a program that does not.
//!
//! It is started by the daemon in the place of the service and embeds [`crate::service`] like any other service, so
//! machines, journal, leases and recovery are the same for every adapter, also when the daemon is gone. What it serves with is
//! a foreign program, which it runs as its child:
//!
//! - `Prepared`: in overlap mode the program runs and is as ready as it can say; in exclusive mode nothing was started yet, or
//!   (`warm`) the program waits in its first bind;
//! - `Ready`: it runs, has bound its listeners where that can be seen, has said so where it does;
//! - `Drained`: in overlap mode its queue is empty, and its connections are closed or its long requests answered; in exclusive
//!   mode, where it still gets new connections, no request is under way that takes long;
//! - `Sealed`: it was asked to end, and it and everything that it started is gone;
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
//! The end of a shim is the end of its program: the kernel kills the program (PR_SET_PDEATHSIG), and whoever comes next what
//! that has started (see `files.rs`). If the program ends by itself, the shim ends in the same way, as if it were the program.

/// Says something in the log of the service, on a line of its own.
macro_rules! say {
    ($($told:tt)*) => { $crate::shim::own::say(format_args!($($told)*)) };
}

mod elsewhere;
pub mod exec;
mod files;
pub mod inject;
pub(crate) mod killed;
mod left;
mod life;
mod listeners;
pub(crate) mod lost;
mod moment;
mod notify;
mod own;
pub mod plan;
mod program;
mod receivers;
mod runner;
mod swap;
pub mod trial;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
pub(crate) use own::is_own_trouble;
use plan::Plan;
use program::{Known, Program};
use runner::Runner;

/// The first argument of the process; the second, for people, is the name of the service.
pub const VERB: &str = "shim";
/// The ending of the file that holds the pid of the program.
pub(crate) const PID: &str = "pid";
/// The ending of the file that everything has open that a shim has started.
pub(crate) const TRACE: &str = "tree";

/// The ending of the file that tells at which side of its pairs a program was started.
const SIDE: &str = "side";

/// What a shim says of that; `own_path` is that of its plan. In a directory that no service has a part in.
pub(crate) fn used_side(own_path: &Path) -> Option<Side> {
    serde_json::from_slice(&std::fs::read(own_path.with_extension(SIDE)).ok()?).ok()
}

/// The ending of the file that holds what the program had when it was told to end.
const LEFT: &str = "left";

/// The ending of the file that tells what keeps a program from its listeners.
const WAITS: &str = "waits";
/// The ending of the file that tells who was not believed.
const REFUSED: &str = "refused";
/// So much of these is read.
const TOLD_MAX_BYTES: u64 = 4096;

/// What a shim says that keeps its program from its listeners, a clause; `own_path` is that of its plan.
pub(crate) fn waits_for(own_path: &Path) -> Option<String> {
    told_in(&own_path.with_extension(WAITS))
}

/// What a shim says that was refused last of what somebody said in the name of its program, a clause.
pub(crate) fn refused_by(own_path: &Path) -> Option<String> {
    told_in(&own_path.with_extension(REFUSED))
}

fn told_in(path: &Path) -> Option<String> {
    let is_short =
        std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() <= TOLD_MAX_BYTES);
    let told = is_short.then(|| std::fs::read_to_string(path).ok()).flatten()?;
    Some(told.chars().filter(|it| !it.is_control()).collect())
}

/// What a shim says that its program had when it was told to end; `own_path` is that of its plan.
pub(crate) fn connections_left(own_path: &Path) -> Option<Connections> {
    serde_json::from_slice(&std::fs::read(own_path.with_extension(LEFT)).ok()?).ok()
}

/// The signals that mean something to a program and nothing to its shim, whose pid people and the daemon know as well.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];

/// Runs the shim process: what the daemon starts. Blocks until its end.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let plan = Plan::of_this_process()?;
    let told = |error: service::Error| error.to_string();
    let system = |error: std::io::Error| error.to_string();
    // Started as /proc/self/exe, it would be known as "exe".
    set_name(c"handoff-shim").map_err(|error| error.to_string())?;
    // Before there are threads, which inherit the mask.
    let terminate = signal_fd(Signal::SIGTERM).map_err(system)?;
    let others = PASSED_ON.map(|signal| signal_fd(signal).map(|fd| (signal, fd)));
    let others = others.into_iter().collect::<Result<Vec<_>, _>>().map_err(system)?;
    let mut starting = service::start().map_err(told)?;
    let program = Program::new(plan.clone()).map_err(system)?;
    watch_for_the_end(&program).map_err(system)?;
    end_when_told(terminate, &program, plan.stop_grace).map_err(system)?;
    pass_signals_on(others, &program).map_err(system)?;
    let leaving = Arc::clone(&program);
    starting.before_exit(move || {
        let _ = leaving.end_or_kill();
        leaving.forget();
    });

    let mode = starting.mode();
    let ended = Listeners::new(&plan, mode, starting.all_listeners())
        .and_then(|listeners| Runner::new(plan.clone(), mode, Arc::clone(&program), listeners));
    let ended = match ended {
        Ok(runner) => serve(starting, runner, mode, &plan),
        Err(error) => Err(starting.unhealthy(&error).to_string()),
    };
    crash_point!("shim/successor/{}", if ended.is_ok() { "ended" } else { "failed" });
    // It may still serve: one that leaves does so also if it could not seal.
    program.end_or_kill()?;
    program.forget();
    ended
}

/// From the start to the end of the program.
fn serve(starting: service::Starting, mut runner: Runner, mode: Mode, plan: &Plan) -> Result<(), String> {
    let told = |error: service::Error| error.to_string();
    let warm = plan.program.warm && mode == Mode::Exclusive;
    let prepared = match mode {
        Mode::Overlap => runner.start(false).and_then(|()| runner.await_ready()),
        Mode::Exclusive if warm => runner.start(true).and_then(|()| runner.await_parked()),
        Mode::Exclusive => Ok(()),
    };
    if let Err(error) = prepared {
        return Err(starting.unhealthy(&error).to_string());
    }
    let data: Option<&Path> = (mode == Mode::Exclusive).then_some(&plan.shared_dir);
    let waits = Arc::new(AtomicBool::new(warm));
    if warm {
        watch_parked(runner.program(), Arc::clone(&waits)).map_err(|error| error.to_string())?;
    }
    let begun = starting.begin(data).map_err(told)?;
    runner.program().learn(|_| waits.store(false, Ordering::SeqCst));
    let ready = match mode {
        Mode::Overlap => Ok(()),
        Mode::Exclusive => begin(&mut runner, warm),
    };
    match ready {
        Ok(()) => begun.ready().map_err(told)?.run(runner).map(drop).map_err(told),
        Err(error) => Err(begun.unhealthy(&error).to_string()),
    }
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

/// A program that ends by itself takes its shim with it. Until it was ready, whoever waits for that tells why.
fn watch_for_the_end(program: &Arc<Program>) -> std::io::Result<()> {
    let program = Arc::clone(program);
    std::thread::Builder::new().name("handoff-end".to_owned()).spawn(move || {
        let exit = program.await_failure();
        program.forget();
        say!("the program {exit}");
        end_like(exit);
    })?;
    Ok(())
}

/// A program that ends while it waits in its first bind is not begun with: the version that serves is not sealed for it.
fn watch_parked(program: &Arc<Program>, waits: Arc<AtomicBool>) -> std::io::Result<()> {
    let program = Arc::clone(program);
    std::thread::Builder::new().name("handoff-parked".to_owned()).spawn(move || {
        let Some(ended) = program.await_early_end(|| !waits.load(Ordering::SeqCst)) else { return };
        say!("{ended}");
        let _ = program.kill();
        program.forget();
        std::process::exit(1);
    })?;
    Ok(())
}

/// Ends this process in the way in which the program has ended.
fn end_like(exit: Exit) -> ! {
    if let Some(signal) = exit.signal {
        // Its own memory is of no interest.
        let _ = leave_no_core();
        die_by(signal);
    }
    std::process::exit(exit.code.unwrap_or(1))
}

/// SIGTERM is for the program: it ends in order, and the shim with it.
fn end_when_told(
    terminate: std::os::fd::OwnedFd,
    program: &Arc<Program>,
    grace: Duration,
) -> std::io::Result<()> {
    let program = Arc::clone(program);
    std::thread::Builder::new().name("handoff-term".to_owned()).spawn(move || {
        while poll_one(&terminate, PollFlags::POLLIN, None).is_err() {}
        let ended = program.end(grace);
        program.forget();
        // What ended the program is what is told, as if the signal had gone there.
        match (ended, program.wait(Some(Duration::ZERO), Known::ended)) {
            (Ok(_), Some(exit)) => end_like(exit),
            (Ok(_), None) => std::process::exit(0),
            (Err(error), _) => {
                say!("{error}");
                std::process::exit(1)
            }
        }
    })?;
    Ok(())
}

/// Hands on what is for the program.
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
                // As many as have come are one, as for any process. Nothing to read is no signal.
                if read(fd, &mut [0; 1024]).is_ok_and(|length| length > 0) {
                    program.pass_on(*signal);
                }
            }
        }
    })?;
    Ok(())
}
