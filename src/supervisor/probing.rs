//! The readiness probe of a new process: the supervisor's own look, before the commit.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Weak;
use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::supervisor::{Event, Phase};
use tokio::net::{TcpSocket, UnixStream};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::party::Party;
use super::service::Service;
use crate::config::Probe;
use crate::probe::{Connection, Failure, Way, attempt};
use crate::slots::census::{Census, Stage};
use crate::slots::{ProbeRoute, ProbeTarget};
use crate::sys::descriptor::inode;

impl Service {
    /// Begins to try the successor. The answer comes as an event.
    pub(super) fn probe(&mut self, id: HandoffId, limit_ms: u64, events: &mut VecDeque<Event>) {
        // A program that does not speak the protocol accepts when the probe has shown it, and not when it was started.
        if !self.config.adapter.is_foreign() {
            self.timeline.gap_ends();
        }
        let Some(probe) = self.config.probe.clone() else {
            return events.push_back(Event::Probed(id, Ok(())));
        };
        let pause_ms =
            if self.machine.shares() == 0 { probe.interval_ms } else { self.config.trial.interval_ms };
        let until = Instant::now() + Duration::from_millis(limit_ms);
        let this = self.this.clone();
        spawn_local(async move {
            let pause = Duration::from_millis(pause_ms);
            let result = until_it_passes(&probe, (pause, until), &this, id).await;
            let Some(service) = this.upgrade() else { return };
            let mut service = service.borrow_mut();
            if service.is_probing(id) {
                service.feed(Event::Probed(id, result));
            }
        });
    }

    fn is_probing(&self, id: HandoffId) -> bool {
        self.machine.phase() == Phase::Probing && self.machine.handoff() == id
    }
}

/// Tries until it passes, the limit is over, or nobody wants to know any more. The last thing that was found is the error.
async fn until_it_passes(
    probe: &Probe,
    (pause, until): (Duration, Instant),
    service: &Weak<RefCell<Service>>,
    id: HandoffId,
) -> Result<(), String> {
    let mut way = WayIn::new(service, id);
    loop {
        let found = match attempt(&probe.check, Duration::from_millis(probe.timeout_ms), &mut way).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure.to_string(),
        };
        let is_wanted = service.upgrade().is_some_and(|service| service.borrow().is_probing(id));
        if !is_wanted || Instant::now() >= until {
            return Err(found);
        }
        tracing::debug!(%id, found, "the probe has not passed yet");
        sleep(pause).await;
    }
}

/// The way to the process of a service that is tried.
pub(super) struct WayIn<'a> {
    service: &'a Weak<RefCell<Service>>,
    id: HandoffId,
    /// The last connection.
    last: Option<Last>,
    waiting: Option<Box<dyn Connection>>,
}

/// What a connection is known by.
enum Last {
    /// The two ends, this one first.
    Tcp(SocketAddr, SocketAddr),
    /// The inode of this end.
    Unix(u32),
}

impl<'a> WayIn<'a> {
    pub(super) fn new(service: &'a Weak<RefCell<Service>>, id: HandoffId) -> Self {
        Self { service, id, last: None, waiting: None }
    }
}

impl Way for WayIn<'_> {
    async fn connect(&mut self, listener: &str) -> Result<Box<dyn Connection>, Failure> {
        let service = self.service.upgrade().filter(|service| service.borrow().is_tried(self.id));
        let service = service.ok_or_else(|| Failure::Untried("nobody is to be tried any more".into()))?;
        let no_way = |error| Failure::Untried(format!("there is no way to {listener}: {error}"));
        let route = service.borrow_mut().route_to_tried(listener).map_err(no_way)?;
        let connected = self.connect_by(route).await;
        // The way is open for this one connection only.
        service.borrow_mut().end_route(listener).map_err(no_way)?;
        connected.map_err(|error| Failure::to_connect(listener, &error))
    }

    fn waiting(&mut self) -> &mut Option<Box<dyn Connection>> {
        &mut self.waiting
    }

    fn stage(&mut self) -> io::Result<Stage> {
        match self.last {
            Some(Last::Tcp(own, server)) => Census::stage(own, server),
            Some(Last::Unix(inode)) => Census::stage_of_unix(inode),
            None => Ok(Stage::Gone),
        }
    }

    fn listens(&mut self, listener: &str) -> bool {
        self.service.upgrade().is_some_and(|service| service.borrow().listens_for_tried(listener))
    }

    fn variables(&self) -> Vec<(String, String)> {
        let Some(service) = self.service.upgrade() else { return Vec::new() };
        let service = service.borrow();
        let pid = service.tried().map_or(0, |party| party.process.pid);
        let fixed = [("HANDOFF_SERVICE", service.name.to_string()), ("HANDOFF_PID", pid.to_string())];
        let listeners = service.config.listeners.iter().map(|listener| {
            let name = listener.name.as_str().to_ascii_uppercase().replace('-', "_");
            (format!("HANDOFF_LISTEN_{name}"), listener.address.to_string())
        });
        fixed.map(|(name, value)| (name.to_owned(), value)).into_iter().chain(listeners).collect()
    }

    fn working_dir(&self) -> PathBuf {
        self.service
            .upgrade()
            .map_or_else(|| "/".into(), |service| service.borrow().config.working_dir.clone())
    }
}

impl WayIn<'_> {
    async fn connect_by(&mut self, route: ProbeRoute) -> io::Result<Box<dyn Connection>> {
        match route.target().clone() {
            ProbeTarget::Ip(server) => {
                let socket = TcpSocket::from_std_stream(route.into_socket().into());
                let stream = socket.connect(server).await?;
                self.last = Some(Last::Tcp(stream.local_addr()?, server));
                Ok(Box::new(stream))
            }
            ProbeTarget::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                let inode = u32::try_from(inode(&stream)?).map_err(io::Error::other)?;
                self.last = Some(Last::Unix(inode));
                Ok(Box::new(stream))
            }
        }
    }
}

impl Service {
    fn is_tried(&self, id: HandoffId) -> bool {
        self.is_probing(id) || self.machine.watched().is_some_and(|(watched, _)| watched == id)
    }

    /// The process that is tried: the successor, or once it is committed the incumbent.
    pub(super) fn tried(&self) -> Option<&Party> {
        if self.machine.phase() == Phase::Serving { self.incumbent.as_ref() } else { self.successor.as_ref() }
    }

    /// To its slot; where all share their slots, to the one that gets new connections.
    fn route_to_tried(&mut self, listener: &str) -> io::Result<ProbeRoute> {
        let slot = self.tried().map(|party| party.slot);
        let (Some(listening), Some(slot)) = (&mut self.listening, slot) else {
            return Err(io::Error::other("the process is gone"));
        };
        listening.route_to(listener, slot)
    }

    fn listens_for_tried(&self, listener: &str) -> bool {
        let listening = self.listening.as_ref().zip(self.tried());
        listening.is_some_and(|(listening, party)| listening.is_open(listener, party.slot))
    }

    fn end_route(&mut self, listener: &str) -> io::Result<()> {
        self.listening.as_mut().map_or(Ok(()), |listening| listening.end_route(listener))
    }
}
