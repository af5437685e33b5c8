//! The shim: a small process that speaks the protocol for a program that does not.
//!
//! It is started by the daemon in the place of the service and embeds [`crate::service`] like any other service, so
//! machines, journal, leases and recovery are the same for every adapter, also when the daemon is gone. What it serves with is
//! a foreign program, which it runs as its child:
//!
//! - `Prepared`: in overlap mode the program runs and is as ready as it can say; in exclusive mode nothing was started yet, or
//!   (`warm`) the program waits in its first bind;
//! - `Ready`: it runs, has bound its listeners where that can be seen, has said so where it does;
//! - `Drained`: its queue is empty, and its connections are closed or its requests answered;
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

pub mod exec;
mod files;
pub mod inject;
mod listeners;
mod notify;
pub mod plan;
mod program;
mod runner;
mod swap;
pub mod trial;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use handoff_protocol::message::Mode;
use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};

use crate::crash_points::crash_point;
use crate::service;
use crate::sys::process::Exit;
use crate::sys::signal_fd::signal_fd;
pub(crate) use files::end_what_is_left;
use listeners::Listeners;
use plan::Plan;
use program::Program;
use runner::Runner;

/// The first argument of the process; the second, for people, is the name of the service.
pub const VERB: &str = "shim";
/// The ending of the file that holds the pid of the program.
pub(crate) const PID: &str = "pid";
/// The ending of the file that everything has open that a shim has started.
pub(crate) const TRACE: &str = "tree";

/// How long a program has that is to end because somebody ends its shim.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Runs the shim process: what the daemon starts. Blocks until its end.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("handoff: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let plan = Plan::of_this_process()?;
    let told = |error: service::Error| error.to_string();
    let system = |error: std::io::Error| error.to_string();
    // Started as /proc/self/exe, it would be known as "exe".
    rustix::thread::set_name(c"handoff-shim").map_err(|error| error.to_string())?;
    // Before there are threads, which inherit the mask.
    let terminate = signal_fd(Signal::TERM).map_err(system)?;
    let mut starting = service::start().map_err(told)?;
    let program = Program::new(plan.clone()).map_err(system)?;
    watch_for_the_end(&program).map_err(system)?;
    end_when_told(terminate, &program).map_err(system)?;
    let leaving = Arc::clone(&program);
    starting.before_exit(move || {
        let _ = leaving.kill();
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
    program.kill()?;
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
    let begun = starting.begin(data).map_err(told)?;
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
        let (exit, is_whole) = program.await_unwanted_end();
        if !is_whole {
            let _ = program.kill();
        }
        program.forget();
        eprintln!("handoff: the program {exit}");
        end_like(exit);
    })?;
    Ok(())
}

/// Ends this process in the way in which the program has ended.
fn end_like(exit: Exit) -> ! {
    if let Some(signal) = exit.signal.and_then(Signal::from_named_raw) {
        // Its own memory is of no interest.
        let hard = getrlimit(Resource::Core).maximum;
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: hard });
        let _ = kill_process(getpid(), signal);
    }
    std::process::exit(exit.code.unwrap_or(1))
}

/// SIGTERM is for the program: it ends in order, and the shim with it.
fn end_when_told(terminate: std::os::fd::OwnedFd, program: &Arc<Program>) -> std::io::Result<()> {
    let program = Arc::clone(program);
    std::thread::Builder::new().name("handoff-term".to_owned()).spawn(move || {
        let mut fds = [rustix::event::PollFd::new(&terminate, rustix::event::PollFlags::IN)];
        while rustix::event::poll(&mut fds, None).is_err() {}
        let code = if program.end(END_WITHIN).is_ok() { 0 } else { 1 };
        program.forget();
        std::process::exit(code);
    })?;
    Ok(())
}
