//! Errors of listeners.

use std::io;
use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;

use super::{Side, SlotId};
use crate::config::ListenAddress;
use crate::sys::owner::Owner;

/// Why a listener cannot be opened or switched. `Display` names the address, and a remedy where there is one.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Another socket uses the address.
    #[error("{address} is in use by {} or choose another address", describe_owner(owner))]
    InUse {
        /// The address.
        address: ListenAddress,
        /// Its process, if known.
        owner: Option<Owner>,
    },
    /// Another service of the same daemon uses the address.
    #[error("{address} is in use by service {:?}; stop that (handoff stop {service}) or choose another address", service.as_str())]
    OfService {
        /// The address.
        address: ListenAddress,
        /// The other service.
        service: ServiceName,
    },
    /// The path of a unix socket is another kind of file.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The directory of a unix socket is unusable.
    #[error("the directory of unix:{} cannot be used: {error}; create it or choose another path", path.display())]
    Directory {
        /// The path of the socket.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The machine does not have this IP address.
    #[error("no interface of this machine has the address of {address}")]
    NotHere {
        /// The address.
        address: ListenAddress,
    },
    /// The port is below `net.ipv4.ip_unprivileged_port_start`.
    #[error("{address} needs privilege: use a port from 1024 on, or give CAP_NET_BIND_SERVICE")]
    Privileged {
        /// The address.
        address: ListenAddress,
    },
    /// There is no such user or group.
    #[error("cannot give {address} to its owner: {error}; correct the name, or write the number")]
    Owner {
        /// The address.
        address: ListenAddress,
        /// The cause.
        error: String,
    },
    /// Any other failure of a system call.
    #[error("cannot {action} {address}: {error}")]
    System {
        /// The address.
        address: ListenAddress,
        /// The failed action.
        action: &'static str,
        /// The cause.
        error: io::Error,
    },
    /// A restored descriptor does not listen anymore.
    #[error("slot {slot} of {address} no longer listens")]
    NotListening {
        /// The address.
        address: ListenAddress,
        /// The slot.
        slot: SlotId,
    },
    /// The group has no such slot.
    #[error("{address} has no slot {slot}")]
    Unknown {
        /// The address.
        address: ListenAddress,
        /// The slot.
        slot: SlotId,
    },
    /// The address does not support shares of new connections.
    #[error("{address} cannot share new connections between two slots; switch all of them")]
    NoShare {
        /// The address.
        address: ListenAddress,
    },
    /// The side with the new connections must not be reset.
    #[error("side {side} of {address} gets the new connections; switch to the other one before it is reset")]
    ActiveSide {
        /// The address.
        address: ListenAddress,
        /// The side.
        side: Side,
    },
    /// A program has connected the datagram socket that should receive from all clients.
    #[error(
        "side {side} of {address} receives no more datagrams: its program has connected it to one client"
    )]
    SideNotListening {
        /// The address.
        address: ListenAddress,
        /// The side.
        side: Side,
    },
    /// The two listeners for a path were not opened as its slots.
    #[error(
        "the listeners of {address} do not have the names of its slots; pass the ones that were opened for it"
    )]
    OtherPair {
        /// The address.
        address: ListenAddress,
    },
    /// The slot with the new connections must not be retired.
    #[error("slot {slot} of {address} gets the new connections; steer them elsewhere before it is retired")]
    Steered {
        /// The address.
        address: ListenAddress,
        /// The slot.
        slot: SlotId,
    },
}

/// The process, and the remedy. A daemon and its keeper hold addresses for services, and serve other services too.
fn describe_owner(owner: &Option<Owner>) -> String {
    match owner {
        None => "a process that is not visible from here; stop it".to_owned(),
        Some(owner) if owner.is_supervisor() => {
            format!("{owner}, which holds it for a service; stop that service")
        }
        Some(owner) => format!("{owner}; stop it"),
    }
}
