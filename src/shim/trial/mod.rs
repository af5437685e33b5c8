//! Tests whether a program works with an adapter: starts it as a shim would, with listeners of its own, observes it for
//! some seconds, and ends it with all its descendants.
//!
//! A trial is a separate process, started by `doctor`, because it may enter another network namespace,
//! must be a child subreaper, and gives the program its own environment. If its requester ends, the trial and the
//! program end too.

mod bind_recorder;
mod listeners;
mod native;
mod program;
mod request;

use std::os::fd::OwnedFd;
use std::os::unix::process::parent_id;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::program::Program;
use super::shim_config::ShimConfig;
use crate::config::Adapter;
use crate::sys::channel::Channel;
use crate::sys::inherit::take_channel;
use crate::sys::network::enter_own_network;
use crate::sys::own_process::hear_end_of_parent;
use crate::sys::poll::{PollFlags, poll_one};
use crate::sys::process::{Exit, Signal};
use crate::sys::signal_fd::signal_fd;
use listeners::Listeners;
pub use request::RequestFate;

/// The first argument of the process; the second is the [`TrialRequest`], as JSON.
pub const VERB: &str = "doctor-trial";

/// A trial to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrialRequest {
    /// The process that requests it.
    pub parent: u32,
    /// The program, and the adapter.
    pub plan: ShimConfig,
    /// Whether to enter a private network namespace first.
    pub own_network: bool,
    /// Whether to record, with `listen-fds`, what the program binds itself.
    pub watches: bool,
    /// Whether the program gets `NOTIFY_SOCKET`.
    pub offers_notify: bool,
    /// Whether the channel of `handoff` is a stream.
    pub stream: bool,
    /// A request to have in progress at the stop signal, and its listener.
    pub request: Option<(String, Vec<u8>)>,
    /// Time limit of the program.
    pub limit: Duration,
}

/// The result of the trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrialReply {
    /// This process may not create a network namespace.
    NoNetwork(String),
    /// The trial failed.
    NotTried(String),
    /// The trial is complete.
    Tried(TrialReport),
}

/// What was observed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialReport {
    /// Whether the adapter works for this program.
    pub works: bool,
    /// The evidence; a clause without a full stop.
    pub why: String,
    /// Whether it ended by itself before the result was known.
    pub ended: bool,
    /// What the program bound besides its listeners, and why it matches none of them.
    pub others: Vec<OtherBind>,
    /// Whether it sent `READY=1`.
    pub says_ready: bool,
    /// How it ended on request. Only if the adapter works, and is not `handoff`.
    pub stopped: Option<StopReport>,
}

/// An address that a program has bound besides its listeners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherBind {
    /// The address.
    pub address: String,
    /// Why it matches no listener; a clause.
    pub why: String,
    /// The process that has bound it.
    pub pid: u32,
}

impl std::fmt::Display for OtherBind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it binds {}: {}", self.address, self.why)
    }
}

/// How the program ended after the stop signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopReport {
    /// Its exit status; killed if it did not end in time.
    pub exit: Option<Exit>,
    /// Whether it had to be killed.
    pub killed: bool,
    /// Time from the signal to the end.
    pub after: Duration,
    /// The fate of a request that was in progress.
    pub request: RequestFate,
    /// Whether any of its processes caught the signal, or waited for it. If none does, the kernel ends it regardless of
    /// its work.
    pub catches: bool,
    /// The name of the first process.
    pub first: String,
    /// Whether it had to be killed.
    pub first_left: bool,
    /// The names of other processes that had to be killed.
    pub left: Vec<String>,
    /// The wrapper between the first process and the serving one.
    pub wrapper: Option<Wrapper>,
    /// The keys of the service file whose signal would end the receiving process, because that does not handle it.
    pub deadly: Vec<String>,
}

/// The first process does not serve, but one of its descendants does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapper {
    /// The names of the serving processes.
    pub servers: Vec<String>,
    /// Whether the first process would end at the stop signal, so that it cannot pass it on.
    pub swallows: bool,
}

/// Runs the trial process. Blocks until the program is gone.
pub fn main() -> ExitCode {
    let request = std::env::args().nth(2).and_then(|text| serde_json::from_str::<TrialRequest>(&text).ok());
    let (Some(request), Ok(Some(channel))) = (request, take_channel()) else {
        eprintln!("handoff {VERB} is an internal command of handoff doctor.");
        return ExitCode::from(2);
    };
    let answer = run(&request).unwrap_or_else(TrialReply::NotTried);
    match serde_json::to_vec(&answer).map(|text| channel.send(&text, &[])) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn run(request: &TrialRequest) -> Result<TrialReply, String> {
    if request.own_network
        && let Err(error) = enter_own_network()
    {
        return Ok(TrialReply::NoNetwork(error.to_string()));
    }
    let system = |error: std::io::Error| error.to_string();
    // Before there are threads, which inherit the mask.
    let terminate = signal_fd(Signal::SIGTERM).map_err(system)?;
    hear_end_of_parent(Signal::SIGTERM).map_err(|error| error.to_string())?;
    if parent_id() != request.parent {
        return Err("the requester has ended".to_owned());
    }
    let program = Program::new(request.plan.clone()).map_err(system)?;
    let stage = Arc::new(TrialResources { program: Arc::clone(&program), listeners: Mutex::default() });
    end_on_request(terminate, &stage).map_err(system)?;
    let tried = match request.plan.adapter {
        Adapter::Handoff => native::attempt(request, &stage),
        Adapter::ListenFds | Adapter::Inject => program::attempt(request, &stage),
    };
    stage.clear()?;
    tried.map(TrialReply::Tried)
}

/// The resources of a trial.
struct TrialResources {
    program: Arc<Program>,
    /// Set once they are open.
    listeners: Mutex<Option<Arc<Listeners>>>,
}

impl TrialResources {
    fn open(&self, config: &ShimConfig, gives: bool) -> Result<Arc<Listeners>, String> {
        let mut slot = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let listeners = Arc::new(Listeners::open(config, gives)?);
        *slot = Some(Arc::clone(&listeners));
        Ok(listeners)
    }

    /// Ends the program and its descendants first, which may restore or remove a path; then closes the listeners, even
    /// those still held in this process.
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

/// SIGTERM comes from the requester, or from its end.
fn end_on_request(terminate: OwnedFd, stage: &Arc<TrialResources>) -> std::io::Result<()> {
    let stage = Arc::clone(stage);
    std::thread::Builder::new().name("handoff-term".to_owned()).spawn(move || {
        while poll_one(&terminate, PollFlags::POLLIN, None).is_err() {}
        let cleared = stage.clear();
        std::process::exit(if cleared.is_ok() { 0 } else { 1 });
    })?;
    Ok(())
}

/// A channel pair of the kind in the service file.
fn channel_pair(stream: bool) -> std::io::Result<(Channel, OwnedFd)> {
    if stream { Channel::stream_pair() } else { Channel::pair() }
}
