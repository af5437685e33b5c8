//! Tries out whether a program gets on with an adapter: it is started as a shim would start it, with listeners that nobody
//! else has, looked at for some seconds, and ended with all that it has started.
//!
//! A trial is a process of its own, started by [`doctor`](crate::doctor), because it may move into another network, must be
//! a child subreaper, and gives the program its own environment. If whoever wants to know ends, so does the trial, and the
//! program.

mod listeners;
mod native;
mod program;
mod request;
mod watch;

use std::os::fd::OwnedFd;
use std::os::unix::process::parent_id;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use super::program::Program;
use crate::config::Adapter;
use crate::sys::channel::Channel;
use crate::sys::inherit::take_channel;
use crate::sys::network::enter_own_network;
use crate::sys::own_process::hear_end_of_parent;
use crate::sys::poll::{PollFlags, poll_one};
use crate::sys::process::{Exit, Signal};
use crate::sys::signal_fd::signal_fd;
use listeners::Listeners;
pub use request::Fate;

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
    /// Whether the program finds `NOTIFY_SOCKET`.
    pub offers_notify: bool,
    /// Whether the channel of `handoff` is a stream.
    pub stream: bool,
    /// What is asked to see a request under way at the stop signal, and at which listener.
    pub request: Option<(String, Vec<u8>)>,
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
    /// What became of a request that was under way.
    pub request: Fate,
    /// Whether any process of it caught the signal, or waited for it. If none does, the kernel ends it whatever it is doing.
    pub catches: bool,
    /// The process that was started first, by name.
    pub first: String,
    /// Whether that one had to be killed.
    pub first_left: bool,
    /// The others that had to be killed, by name.
    pub left: Vec<String>,
    /// What stood between the first process and the one that serves.
    pub wrapper: Option<Wrapper>,
    /// The keys of the service file whose signal would end the process that gets it, which does not know it.
    pub deadly: Vec<String>,
}

/// The process that was started first does not serve: another one does, which it has started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapper {
    /// The processes that serve, by name.
    pub servers: Vec<String>,
    /// Whether the first one would end at the stop signal, so that it cannot pass it on.
    pub swallows: bool,
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
    let terminate = signal_fd(Signal::SIGTERM).map_err(system)?;
    hear_end_of_parent(Signal::SIGTERM).map_err(|error| error.to_string())?;
    if parent_id() != order.parent {
        return Err("nobody wants to know any more".to_owned());
    }
    let program = Program::new(order.plan.clone()).map_err(system)?;
    let stage = Arc::new(Stage { program: Arc::clone(&program), listeners: Mutex::default() });
    end_when_told(terminate, &stage).map_err(system)?;
    let tried = match order.plan.adapter {
        Adapter::Handoff => native::attempt(order, &stage),
        Adapter::ListenFds | Adapter::Inject => program::attempt(order, &stage),
    };
    stage.clear()?;
    tried.map(Answer::Tried)
}

/// What is there for a trial, and is gone after it.
struct Stage {
    program: Arc<Program>,
    /// Once they are open.
    listeners: Mutex<Option<Arc<Listeners>>>,
}

impl Stage {
    fn open(&self, plan: &Plan, gives: bool) -> Result<Arc<Listeners>, String> {
        let mut slot = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let listeners = Arc::new(Listeners::open(plan, gives)?);
        *slot = Some(Arc::clone(&listeners));
        Ok(listeners)
    }

    /// First the program with all that it has started, which may put a path back or remove one; then the listeners, whoever
    /// still holds them in this process.
    fn clear(&self) -> Result<(), String> {
        let killed = self.program.kill();
        self.program.forget();
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listeners) = listeners {
            listeners.close();
        }
        killed
    }
}

/// SIGTERM comes from whoever wants to know, or from its end.
fn end_when_told(terminate: OwnedFd, stage: &Arc<Stage>) -> std::io::Result<()> {
    let stage = Arc::clone(stage);
    std::thread::Builder::new().name("handoff-term".to_owned()).spawn(move || {
        while poll_one(&terminate, PollFlags::POLLIN, None).is_err() {}
        let cleared = stage.clear();
        std::process::exit(if cleared.is_ok() { 0 } else { 1 });
    })?;
    Ok(())
}

/// The pair of a channel, of the kind that the service file asks for.
fn channel_pair(stream: bool) -> std::io::Result<(Channel, OwnedFd)> {
    if stream { Channel::stream_pair() } else { Channel::pair() }
}
