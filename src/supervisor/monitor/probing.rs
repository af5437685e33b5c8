//! The readiness probe of a new process: the supervisor's own check before the commit.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::supervisor::{Event, Phase};
use tokio::net::{TcpSocket, UnixStream};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::config::Probe;
use crate::probe::{CommandEnvironment, Connection, Failure, ProcessAccess, attempt};
use crate::slots::census::{AcceptStage, Census};
use crate::slots::{ProbeRoute, ProbeTarget};
use crate::supervisor::input::{Input, Inputs};
use crate::supervisor::process::Process;
use crate::supervisor::service::Service;
use crate::sys::descriptor::inode;

impl Service {
    /// Starts to probe the successor. The result arrives as an event.
    pub(in crate::supervisor) fn probe(
        &mut self,
        id: HandoffId,
        limit_ms: u64,
        events: &mut VecDeque<Event>,
    ) {
        // A program that does not speak the protocol counts as accepting when the probe has shown it, not when it was
        // started.
        if !self.config.adapter.is_foreign() {
            self.operations.timeline_mut().gap_ends();
        }
        let Some(probe) = self.config.probe.clone() else {
            return events.push_back(Event::Probed(id, Ok(())));
        };
        let pause_ms =
            if self.machine.shares() == 0 { probe.interval_ms } else { self.config.trial.interval_ms };
        let until = Instant::now() + Duration::from_millis(limit_ms);
        let inputs = self.inputs.clone();
        spawn_local(async move {
            let pause = Duration::from_millis(pause_ms);
            let result = until_it_passes(&probe, (pause, until), &inputs, id).await;
            inputs.send(Input::Probed(id, result));
        });
    }

    /// Handles the end of a probe. The result only matters while the machine waits for it.
    pub(in crate::supervisor) fn probed(&mut self, id: HandoffId, result: Result<(), String>) {
        if self.is_probing(id) {
            self.feed(Event::Probed(id, result));
        }
    }

    pub(in crate::supervisor) fn is_probing(&self, id: HandoffId) -> bool {
        self.machine.phase() == Phase::Probing && self.machine.handoff() == id
    }
}

/// Tries until the probe passes, the limit is over, or the result is no longer needed. The error is the last finding.
async fn until_it_passes(
    probe: &Probe,
    (pause, until): (Duration, Instant),
    inputs: &Inputs,
    id: HandoffId,
) -> Result<(), String> {
    let mut access = ProbeConnector::new(inputs, id);
    loop {
        let found = match attempt(&probe.check, Duration::from_millis(probe.timeout_ms), &mut access).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure.to_string(),
        };
        let is_wanted = inputs.ask(|reply| Input::IsProbing(id, reply)).await.unwrap_or(false);
        if !is_wanted || Instant::now() >= until {
            return Err(found);
        }
        tracing::debug!(%id, found, "the probe has not passed yet");
        sleep(pause).await;
    }
}

/// The route to the process that is probed.
pub(in crate::supervisor) struct ProbeConnector<'a> {
    inputs: &'a Inputs,
    id: HandoffId,
    /// The last connection.
    connection: Option<ConnectionIdentity>,
    waiting: Option<Box<dyn Connection>>,
}

/// The identity of a connection.
enum ConnectionIdentity {
    /// Both ends, the own one first.
    Tcp(SocketAddr, SocketAddr),
    /// The inode of the own end.
    Unix(u32),
}

impl<'a> ProbeConnector<'a> {
    pub(in crate::supervisor) fn new(inputs: &'a Inputs, id: HandoffId) -> Self {
        Self { inputs, id, connection: None, waiting: None }
    }
}

impl ProcessAccess for ProbeConnector<'_> {
    async fn connect(&mut self, listener: &str) -> Result<Box<dyn Connection>, Failure> {
        let no_way = |error| Failure::Untried(format!("there is no way to {listener}: {error}"));
        let nobody = || Failure::Untried("no process is probed any more".into());
        let route = self.inputs.ask(|reply| Input::Route(self.id, listener.to_owned(), reply)).await;
        let route = route.flatten().ok_or_else(nobody)?.map_err(no_way)?;
        let connected = self.connect_by(route).await;
        // The route is open for this one connection only.
        let ended = self.inputs.ask(|reply| Input::EndRoute(self.id, listener.to_owned(), reply)).await;
        ended.unwrap_or(Ok(())).map_err(no_way)?;
        connected.map_err(|error| Failure::to_connect(listener, &error))
    }

    fn waiting(&mut self) -> &mut Option<Box<dyn Connection>> {
        &mut self.waiting
    }

    fn stage(&mut self) -> io::Result<AcceptStage> {
        match self.connection {
            Some(ConnectionIdentity::Tcp(own, server)) => Census::stage(own, server),
            Some(ConnectionIdentity::Unix(inode)) => Census::stage_of_unix(inode),
            None => Ok(AcceptStage::Gone),
        }
    }

    async fn listens(&mut self, listener: &str) -> bool {
        self.inputs.ask(|reply| Input::Listens(listener.to_owned(), reply)).await.unwrap_or(false)
    }

    async fn surroundings(&self) -> CommandEnvironment {
        let asked = self.inputs.ask(Input::CommandEnvironment).await;
        asked.unwrap_or_else(|| CommandEnvironment { variables: Vec::new(), working_dir: "/".into() })
    }
}

impl ProbeConnector<'_> {
    async fn connect_by(&mut self, route: ProbeRoute) -> io::Result<Box<dyn Connection>> {
        match route.target().clone() {
            ProbeTarget::Ip(server) => {
                let socket = TcpSocket::from_std_stream(route.into_socket().into());
                let stream = socket.connect(server).await?;
                self.connection = Some(ConnectionIdentity::Tcp(stream.local_addr()?, server));
                Ok(Box::new(stream))
            }
            ProbeTarget::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                let inode = u32::try_from(inode(&stream)?).map_err(io::Error::other)?;
                self.connection = Some(ConnectionIdentity::Unix(inode));
                Ok(Box::new(stream))
            }
        }
    }
}

impl Service {
    /// The environment of a command that probes the process.
    pub(in crate::supervisor) fn surroundings(&self) -> CommandEnvironment {
        let pid = self.tried().map_or(0, |process| process.pid());
        let fixed = [("HANDOFF_SERVICE", self.name.to_string()), ("HANDOFF_PID", pid.to_string())];
        let listeners = self.config.listeners.iter().map(|listener| {
            let name = listener.name.as_str().to_ascii_uppercase().replace('-', "_");
            (format!("HANDOFF_LISTEN_{name}"), listener.address.to_string())
        });
        let variables = fixed.map(|(name, value)| (name.to_owned(), value)).into_iter().chain(listeners);
        CommandEnvironment { variables: variables.collect(), working_dir: self.config.working_dir.clone() }
    }

    fn is_tried(&self, id: HandoffId) -> bool {
        self.is_probing(id) || self.machine.watched().is_some_and(|(watched, _)| watched == id)
    }

    /// The process that is probed: the successor, or the incumbent after the commit.
    pub(in crate::supervisor) fn tried(&self) -> Option<&Process> {
        if self.machine.phase() == Phase::Serving {
            self.processes.incumbent()
        } else {
            self.processes.successor()
        }
    }

    /// A route to the slot of the probed process. If processes share their slots, to the slot that gets new
    /// connections. `None` if no process is probed in this handoff.
    pub(in crate::supervisor) fn route_to_tried(
        &mut self,
        id: HandoffId,
        listener: &str,
    ) -> Option<io::Result<ProbeRoute>> {
        if !self.is_tried(id) {
            return None;
        }
        let slot = self.tried().map(|process| process.slot);
        let (Some(listening), Some(slot)) = (&mut self.listening, slot) else {
            return Some(Err(io::Error::other("the process is gone")));
        };
        self.monitor.route_owner = Some(id);
        Some(listening.route_to(listener, slot))
    }

    pub(in crate::supervisor) fn listens_for_tried(&self, listener: &str) -> bool {
        let listening = self.listening.as_ref().zip(self.tried());
        listening.is_some_and(|(listening, process)| listening.is_open(listener, process.slot))
    }

    /// Ends the route only for the last probe: a new route has replaced all earlier ones.
    pub(in crate::supervisor) fn end_route(&mut self, id: HandoffId, listener: &str) -> io::Result<()> {
        if self.monitor.route_owner != Some(id) {
            return Ok(());
        }
        self.listening.as_mut().map_or(Ok(()), |listening| listening.end_route(listener))
    }
}
