//! What can go wrong with a listener.

use std::io;
use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;

use super::{Side, SlotId};
use crate::config::ListenAddress;
use crate::sys::owner::Owner;

/// Why a listener cannot be opened or switched. `Display` names the address, and what to do where there is a choice.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Somebody has the address.
    #[error("{address} is in use by {} or choose another address", who(owner))]
    InUse {
        /// The address.
        address: ListenAddress,
        /// Who, if it can be known.
        owner: Option<Owner>,
    },
    /// Another service of the same daemon has the address.
    #[error("{address} is in use by service {:?}; stop that (handoff stop {service}) or choose another address", service.as_str())]
    OfService {
        /// The address.
        address: ListenAddress,
        /// Which service.
        service: ServiceName,
    },
    /// The path of a unix socket is taken by something else.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The directory of a unix socket cannot be used.
    #[error("the directory of unix:{} cannot be used: {error}; create it or choose another path", path.display())]
    Directory {
        /// The path of the socket.
        path: PathBuf,
        /// Cause.
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
        /// Cause.
        error: String,
    },
    /// Any other failure of a system call.
    #[error("cannot {action} {address}: {error}")]
    System {
        /// The address.
        address: ListenAddress,
        /// What was tried.
        action: &'static str,
        /// Cause.
        error: io::Error,
    },
    /// A descriptor that was kept is not a listener any more.
    #[error("slot {slot} of {address} does not listen any more")]
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
    /// A part of the new connections cannot be told apart.
    #[error("the new connections of {address} cannot be shared between two slots; switch all of them")]
    NoShare {
        /// The address.
        address: ListenAddress,
    },
    /// The side that gets the new connections is not to be reset.
    #[error("side {side} of {address} gets the new connections; switch to the other one before it is reset")]
    ActiveSide {
        /// The address.
        address: ListenAddress,
        /// The side.
        side: Side,
    },
    /// A program has connected the datagram socket that is to get what clients send.
    #[error(
        "side {side} of {address} takes no datagrams any more: its program has connected it to one client"
    )]
    SideNotListening {
        /// The address.
        address: ListenAddress,
        /// The side.
        side: Side,
    },
    /// What is given as the two listeners of a path was not opened as slots of it.
    #[error(
        "the listeners of {address} do not have the names of its slots; give those that were opened for it"
    )]
    OtherPair {
        /// The address.
        address: ListenAddress,
    },
    /// The slot that gets the new connections is not to be retired.
    #[error("slot {slot} of {address} gets the new connections; steer them elsewhere before it is retired")]
    Steered {
        /// The address.
        address: ListenAddress,
        /// The slot.
        slot: SlotId,
    },
}

/// Who it is, and what to do about it. A daemon and its keeper hold addresses for services, and serve others too.
fn who(owner: &Option<Owner>) -> String {
    match owner {
        None => "a process that cannot be seen from here; stop it".to_owned(),
        Some(owner) if owner.is_supervisor() => {
            format!("{owner}, which holds it for a service; stop that service")
        }
        Some(owner) => format!("{owner}; stop it"),
    }
}
