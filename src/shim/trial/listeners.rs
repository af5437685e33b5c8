//! The listeners of a trial: one per address, with connections and datagrams waiting there.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::inject::ListenerProvider;
use super::super::shim_config::ShimConfig;
use crate::config::ListenAddress;
use crate::slots::{Access, Group, UnixPathTarget, waiting_at};
use crate::sys::descriptor::inode;

/// A local connection is established at once, or never.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// All listeners. The addresses are free again after [`Listeners::close`].
pub(super) struct Listeners {
    open: Vec<OpenListener>,
    /// Whether the program's binds get them. Otherwise each bind of one fails and is reported.
    gives: bool,
}

struct OpenListener {
    name: String,
    address: ListenAddress,
    listener: OwnedFd,
    /// `None` after the close.
    group: Mutex<Option<Group>>,
}

impl Listeners {
    pub(super) fn open(config: &ShimConfig, gives: bool) -> Result<Self, String> {
        let mut listeners = Self { open: Vec::new(), gives };
        for ((name, _), address) in config.listen.iter().zip(config.addresses()?) {
            let group = Group::open(&address).map_err(|error| error.to_string())?;
            let listener = group.fd(group.steered()).ok_or("a listener is lost")?;
            let listener = listener.try_clone_to_owned().map_err(|error| error.to_string())?;
            listeners.open.push(OpenListener {
                name: name.to_string(),
                address,
                listener,
                group: Mutex::new(Some(group)),
            });
        }
        Ok(listeners)
    }

    /// Duplicates with their names.
    pub(super) fn duplicates(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        self.open.iter().map(|open| Ok((open.name.clone(), open.listener.try_clone()?))).collect()
    }

    /// Their inodes.
    pub(super) fn inodes(&self) -> BTreeSet<u32> {
        self.open.iter().filter_map(|open| u32::try_from(inode(&open.listener).ok()?).ok()).collect()
    }

    /// Names with addresses, for people.
    pub(super) fn names(&self, which: impl Fn(&str) -> bool) -> String {
        let named = self.open.iter().filter(|open| which(&open.name));
        named.map(|open| format!("{} ({})", open.name, open.address)).collect::<Vec<_>>().join(", ")
    }

    /// Connects to each, or sends a datagram. They wait until the program accepts or reads them.
    pub(super) fn connect(&self) -> Result<Vec<OwnedFd>, String> {
        let connect = |open: &OpenListener| {
            let connected = match (&open.address, open.address.ip()) {
                (ListenAddress::Unix(path), _) => UnixStream::connect(path).map(OwnedFd::from),
                (address, Some((local, _))) if address.is_datagram() => udp(local),
                (_, Some((local, _))) => tcp(local),
                (_, None) => Err(io::ErrorKind::Unsupported.into()),
            };
            connected.map_err(|error| format!("cannot connect to {} ({}): {error}", open.name, open.address))
        };
        self.open.iter().map(connect).collect()
    }

    /// The address of a TCP listener for clients.
    pub(super) fn tcp_address(&self, name: &str) -> Option<SocketAddr> {
        let open = self.open.iter().find(|open| open.name == name && !open.address.is_datagram())?;
        open.address.ip().map(|(local, _)| reachable(local))
    }

    /// Closes all of them, and removes the paths, even if other processes hold them.
    pub(super) fn close(&self) {
        self.open.iter().filter_map(|open| lock(&open.group).take()).for_each(Group::close);
    }

    /// The names of those where a connection waits.
    pub(super) fn waiting(&self) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        for open in &self.open {
            if waiting_at(&open.address, &open.listener).map_err(|error| error.to_string())? > 0 {
                names.push(open.name.clone());
            }
        }
        Ok(names)
    }
}

fn tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    TcpStream::connect_timeout(&reachable(address), CONNECT_WITHIN).map(OwnedFd::from)
}

/// Sends an empty datagram.
fn udp(address: SocketAddr) -> io::Result<OwnedFd> {
    let mut own = reachable(address);
    own.set_port(0);
    let socket = UdpSocket::bind(own)?;
    socket.send_to(&[], reachable(address))?;
    Ok(socket.into())
}

fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

impl ListenerProvider for Listeners {
    fn configured(&self) -> Vec<(String, ListenAddress)> {
        self.open.iter().map(|open| (open.name.clone(), open.address.clone())).collect()
    }

    fn current(&self, name: &str) -> io::Result<OwnedFd> {
        let found = self.open.iter().find(|open| open.name == name && self.gives);
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.listener.try_clone()
    }

    fn path_bound(&self, _: &str, _: Access) {}

    fn path_removed(&self, name: &str, _: &Path) {
        let Some(open) = self.open.iter().find(|open| open.name == name) else { return };
        // Locked, so that no path is restored after the close.
        if let Some(group) = &*lock(&open.group) {
            // If this fails, the connection attempt fails, and that is reported.
            let _ = UnixPathTarget::at(group.steered()).restore(&open.address);
        }
    }
}

fn lock(group: &Mutex<Option<Group>>) -> MutexGuard<'_, Option<Group>> {
    group.lock().unwrap_or_else(PoisonError::into_inner)
}
