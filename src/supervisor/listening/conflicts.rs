//! Addresses that two services cannot both have, and the holder of an address that is in use.

use std::os::fd::AsFd;
use std::path::Path;

use handoff_protocol::ids::ServiceName;

use crate::config::{self, ListenAddress, Listener};
use crate::control::{Error, Kind};
use crate::slots::SlotError;
use crate::supervisor::daemon::Daemon;
use crate::supervisor::service::Service;
use crate::sys::exit::pid_of;
use crate::sys::process::parent_of;
use crate::sys::socket::{SockType, is_v6_only, kind_of, local_address};

/// A program is at most this many levels below the process that the daemon has started.
const DEPTH_MAX: usize = 16;

impl Daemon {
    /// Refuses a service file with an address of another service.
    pub(in crate::supervisor) fn refuse_conflicts(&self, config: &config::Service) -> Result<(), Error> {
        self.refuse_conflicts_of(config, self.services.borrow().contains_key(&config.name))
    }

    /// The same. A broken service file keeps its addresses from services that appear later, and takes none from
    /// services that were there before (`was_there`).
    pub(in crate::supervisor) fn refuse_conflicts_of(
        &self,
        config: &config::Service,
        was_there: bool,
    ) -> Result<(), Error> {
        let taken = |theirs: &[Listener]| {
            let pairs =
                config.listeners.iter().flat_map(|ours| theirs.iter().map(move |theirs| (ours, theirs)));
            let mut conflicts = pairs.filter(|(ours, theirs)| ours.address.conflicts_with(&theirs.address));
            conflicts.next().map(|(ours, theirs)| (ours.clone(), theirs.clone()))
        };
        let (services, broken) = (self.services.borrow(), self.broken.borrow());
        let known = services.iter().filter(|(name, _)| **name != config.name);
        let of_known = known
            .filter_map(|(name, handle)| Some((name, handle.read(|other| taken(&other.config.listeners))?)));
        let before = broken.iter().filter(|(name, _)| !was_there && **name != config.name);
        let of_broken = before.filter_map(|(name, broken)| Some((name, taken(broken.kept_listeners())?)));
        let Some((name, (ours, theirs))) = of_known.chain(of_broken).next() else { return Ok(()) };
        let message = format!(
            "{} of service {:?} ({}) is an address of {:?} too: {} ({}).",
            ours.address,
            config.name.as_str(),
            place(&config.file, &ours),
            name.as_str(),
            theirs.address,
            place(&self.shared.dirs.service_file(name), &theirs)
        );
        Err(Error::new(Kind::ConfigInvalid, message, "Give each service addresses of its own."))
    }
}

fn place(file: &Path, listener: &Listener) -> String {
    format!("{}:{}:{}", file.display(), listener.at.line, listener.at.column)
}

impl Service {
    /// Names the service if another service of this daemon uses the address: the daemon or the keeper holds the
    /// listener then, and you must not stop either of them.
    pub(super) fn with_holder(&self, error: SlotError) -> SlotError {
        let SlotError::InUse { address, owner } = error else { return error };
        let by_listener = || self.shared.keeper.holder_of_listener(|fd| has(fd, &address));
        let by_process = || self.service_of(owner.as_ref()?.pid);
        match by_listener().or_else(by_process).filter(|holder| *holder != self.name) {
            Some(service) => SlotError::OfService { address, service },
            None => SlotError::InUse { address, owner },
        }
    }

    /// The service that owns this process or one of its ancestors.
    fn service_of(&self, pid: u32) -> Option<ServiceName> {
        let above = std::iter::successors(Some(pid), |pid| parent_of(*pid)).take(DEPTH_MAX);
        let above: Vec<u32> = above.collect();
        self.shared.keeper.holder_of_process(|pidfd| pid_of(pidfd).is_some_and(|pid| above.contains(&pid)))
    }
}

/// Whether a socket keeps this address from other sockets.
fn has(socket: impl AsFd, address: &ListenAddress) -> bool {
    let Ok(local) = local_address(&socket) else { return false };
    let takes_both = local.is_ipv6() && local.ip().is_unspecified() && is_v6_only(&socket) == Ok(false);
    let is_datagram = kind_of(&socket) == Ok(Some(SockType::Datagram));
    let held = match (is_datagram, takes_both) {
        (false, false) => ListenAddress::Tcp(local),
        (false, true) => ListenAddress::DualStack { port: local.port() },
        (true, false) => ListenAddress::Udp(local),
        (true, true) => ListenAddress::UdpDualStack { port: local.port() },
    };
    held.conflicts_with(address)
}
