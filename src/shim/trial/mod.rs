//! Tries out whether a program gets on with an adapter: it is started as a shim would start it, with listeners that nobody
//! else has, looked at for some seconds, and ended with all that it has started.
//!
//! A trial is a process of its own, started by [`doctor`](crate::doctor), because it may move into another network, must be
//! a child subreaper, and gives the program its own environment. If whoever wants to know ends, so does the trial, and the
//! program.

mod listeners;
mod native;
mod program;
mod watch;

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use super::program::Program;
use crate::config::Adapter;
use crate::sys::channel::Channel;
use crate::sys::inherit::take_channel;
use crate::sys::network::enter_own_network;
use crate::sys::process::Exit;
use crate::sys::signal_fd::signal_fd;

/// The first argument of the process; the second is the [`Order`], as JSON.
pub const VERB: &str = "doctor-trial";

/// What to try.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// The process that wants to know.
    pub parent: u32,
    /// The program, and the adapter.
    pub plan: Plan,
    /// Whether to move into a network of its own first.
    pub own_network: bool,
    /// Whether to watch, with `listen-fds`, what the program binds by itself.
    pub watches: bool,
    /// Whether the channel of `handoff` is a stream.
    pub stream: bool,
    /// How long the program has.
    pub limit: Duration,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// This process may not have a network of its own.
    NoNetwork(String),
    /// It could not be tried.
    NotTried(String),
    /// It was tried.
    Tried(Tried),
}

/// What was seen of the program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Whether the adapter is for this program.
    pub works: bool,
    /// What shows that; a clause without a full stop.
    pub why: String,
    /// Whether it ended by itself before that was known.
    pub ended: bool,
    /// What the program bound besides its listeners, and why that is none of them.
    pub others: Vec<String>,
    /// Whether it said `READY=1`.
    pub says_ready: bool,
    /// How it ended when it was asked to. Only if the adapter works, and is not `handoff`.
    pub stopped: Option<Stopped>,
}

/// How the program ended when it got the stop signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// How; killed if it did not end in time.
    pub exit: Option<Exit>,
    /// Whether it had to be killed.
    pub killed: bool,
    /// After so long.
    pub after: Duration,
}

/// Runs the trial process. Blocks until the program is gone.
pub fn main() -> ExitCode {
    let order = std::env::args().nth(2).and_then(|text| serde_json::from_str::<Order>(&text).ok());
    let (Some(order), Ok(Some(channel))) = (order, take_channel()) else {
        eprintln!("handoff {VERB} is started by handoff doctor, and does nothing else.");
        return ExitCode::from(2);
    };
    let answer = run(&order).unwrap_or_else(Answer::NotTried);
    match serde_json::to_vec(&answer).map(|text| channel.send(&text, &[])) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn run(order: &Order) -> Result<Answer, String> {
    if order.own_network
        && let Err(error) = enter_own_network()
    {
        return Ok(Answer::NoNetwork(error.to_string()));
    }
    let system = |error: std::io::Error| error.to_string();
    // Before there are threads, which inherit the mask.
    let terminate = signal_fd(Signal::TERM).map_err(system)?;
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|error| error.to_string())?;
    if getppid().map(|pid| pid.as_raw_nonzero().get() as u32) != Some(order.parent) {
        return Err("nobody wants to know any more".to_owned());
    }
    let program = Program::new(order.plan.clone()).map_err(system)?;
    end_when_told(terminate, &program).map_err(system)?;
    let tried = match order.plan.adapter {
        Adapter::Handoff => native::attempt(order, &program),
        Adapter::ListenFds | Adapter::Inject => program::attempt(order, &program),
    };
    program.kill()?;
    program.forget();
    tried.map(Answer::Tried)
}

/// SIGTERM comes from whoever wants to know, or from its end.
fn end_when_told(terminate: OwnedFd, program: &Arc<Program>) -> std::io::Result<()> {
    let program = Arc::clone(program);
    std::thread::Builder::new().name("handoff-term".to_owned()).spawn(move || {
        let mut fds = [PollFd::new(&terminate, PollFlags::IN)];
        while poll(&mut fds, None).is_err() {}
        let killed = program.kill();
        program.forget();
        std::process::exit(if killed.is_ok() { 0 } else { 1 });
    })?;
    Ok(())
}

/// The pair of a channel, of the kind that the service file asks for.
fn channel_pair(stream: bool) -> std::io::Result<(Channel, OwnedFd)> {
    if stream { Channel::stream_pair() } else { Channel::pair() }
}
