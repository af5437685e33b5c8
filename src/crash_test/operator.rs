//! The requests of an operator to the daemon of a run, and their time limits. Each wait has a limit.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Error;
use super::init::Init;
use super::observe::ProcessKind;
use super::workspace::Workspace;
use crate::control::api::{Claims, Ending, Outcome, Request, Response, ServiceStatus, State, Upgrade};
use crate::control::{Client, ClientError, Kind as Refused};

/// Interval of checks for events that nothing reports.
pub(super) const TICK: Duration = Duration::from_millis(15);
/// What a busy machine may add to any time.
const SLACK: Duration = Duration::from_secs(20);

/// The operator of one daemon.
#[derive(Clone, Copy)]
pub(super) struct Operator<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) lease: Duration,
}

impl Operator<'_> {
    /// Time limit of any step.
    pub(super) fn limit(&self) -> Duration {
        3 * self.lease + SLACK
    }

    /// Asks once, and waits for the answer with a limit: a daemon that hangs must not hold up the run.
    pub(super) fn ask(&self, request: Request) -> Result<Response, Error> {
        let (socket, limit) = (self.workspace.control(), self.limit());
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || drop(sender.send(call(&socket, &request))));
        match receiver.recv_timeout(limit) {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(format!("the daemon has not answered within {limit:?}").into()),
        }
    }

    pub(super) fn upgrade_to(&self, binary: Option<PathBuf>) -> Request {
        let service = self.workspace.name().clone();
        Request::Upgrade(Upgrade {
            service,
            binary,
            deadline_ms: None,
            drain_grace_ms: None,
            claims: Claims::default(),
        })
    }

    pub(super) fn status(&self) -> Result<ServiceStatus, Error> {
        match call(&self.workspace.control(), &Request::Status(self.workspace.name().clone()))? {
            Response::Status(status) => Ok(*status),
            other => Err(format!("the daemon answered {other:?} to a status request").into()),
        }
    }

    /// Waits until the status fits. `what` describes that in the error.
    pub(super) fn await_status(
        &self,
        init: &Init,
        what: &str,
        mut fits: impl FnMut(&ServiceStatus) -> bool,
    ) -> Result<(), Error> {
        let until = Instant::now() + self.limit();
        let mut last = String::new();
        while Instant::now() < until {
            match self.status() {
                Ok(status) if fits(&status) => return Ok(()),
                Ok(status) => {
                    last = format!("{:?}, {:?}, {:?}", status.state, status.phase, status.problem);
                }
                Err(error) => last = error.to_string(),
            }
            if let Some(trouble) = init.error() {
                return Err(format!("waited for {what}: {trouble}").into());
            }
            std::thread::sleep(TICK);
        }
        Err(format!("waited longer than {:?} for {what}: {last}", self.limit()).into())
    }

    /// An upgrade that must commit. Asks until the daemon is reachable and does nothing else.
    pub(super) fn upgrade_for_sure(&self, init: &Init, next: Option<PathBuf>) -> Result<(), Error> {
        let until = Instant::now() + self.limit();
        let mut last = String::new();
        while Instant::now() < until {
            match call(&self.workspace.control(), &self.upgrade_to(next.clone())) {
                Ok(Response::Outcome(outcome)) => return committed(&outcome),
                Ok(other) => return Err(format!("one more upgrade was answered by {other:?}").into()),
                Err(ClientError::Refused(error)) if error.kind == Refused::Busy => last = error.to_string(),
                Err(error @ ClientError::Unreachable { .. }) => last = error.to_string(),
                Err(error) => return Err(format!("one more upgrade failed: {error}").into()),
            }
            if let Some(trouble) = init.error() {
                return Err(trouble.into());
            }
            std::thread::sleep(TICK);
        }
        Err(format!("no upgrade was possible within {:?}: {last}", self.limit()).into())
    }
}

/// Whether the daemon reports that the service serves, and exactly that process exists.
pub(super) fn is_at_rest(workspace: &Workspace, status: &ServiceStatus) -> bool {
    let process = status.shim.or(status.pid);
    let (State::Serving, None, Some(pid)) = (status.state, &status.phase, process) else { return false };
    // Last, because listing all processes costs as much as several requests of the load.
    let services = workspace.processes().into_iter().filter(|process| process.kind == ProcessKind::Service);
    services.map(|process| process.pid).eq([pid])
}

fn committed(outcome: &Outcome) -> Result<(), Error> {
    match outcome.outcome {
        Ending::Committed => Ok(()),
        _ => {
            let reason = outcome.reason.clone().unwrap_or_default();
            Err(format!("one more upgrade ended {:?}: {reason}", outcome.outcome).into())
        }
    }
}

fn call(socket: &Path, request: &Request) -> Result<Response, ClientError> {
    Client::connect(socket)?.call(request, &mut |_| {})
}
