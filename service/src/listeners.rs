//! The listeners from `Welcome`, by name.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use handoff_protocol::ids::ListenerName;

use super::Error;
use handoff_sys::listens::listens;
use handoff_sys::socket::{AddressFamily, SockType, family_of, kind_of};

const IP: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Listeners that the server has not taken yet. They stay open here, so that no client is refused.
#[derive(Debug, Default)]
pub(super) struct Listeners(Vec<(ListenerName, Option<OwnedFd>)>);

impl Listeners {
    pub(super) fn new(names: Vec<ListenerName>, fds: Vec<OwnedFd>) -> Self {
        Self(names.into_iter().zip(fds.into_iter().map(Some)).collect())
    }

    pub(super) fn take_all(&mut self) -> Vec<(ListenerName, OwnedFd)> {
        self.0.drain(..).filter_map(|(name, fd)| Some((name, fd?))).collect()
    }

    pub(super) fn tcp(&mut self, name: &str) -> Result<TcpListener, Error> {
        self.take(name, "TCP", SockType::Stream, &IP).map(TcpListener::from)
    }

    pub(super) fn unix(&mut self, name: &str) -> Result<UnixListener, Error> {
        self.take(name, "unix stream", SockType::Stream, &[AddressFamily::Unix]).map(UnixListener::from)
    }

    pub(super) fn udp(&mut self, name: &str) -> Result<UdpSocket, Error> {
        self.take(name, "UDP", SockType::Datagram, &IP).map(UdpSocket::from)
    }

    fn take(
        &mut self,
        name: &str,
        wanted: &'static str,
        kind: SockType,
        families: &[AddressFamily],
    ) -> Result<OwnedFd, Error> {
        name.parse::<ListenerName>().map_err(|source| Error::Name { name: name.to_owned(), source })?;
        let Some((_, slot)) = self.0.iter_mut().find(|(known, _)| known.as_str() == name) else {
            let known: Vec<&str> = self.0.iter().map(|(known, _)| known.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Error::NoListener { name: name.to_owned(), known });
        };
        let fd = slot.take().ok_or_else(|| Error::ListenerTaken { name: name.to_owned() })?;
        let fits = kind_of(&fd) == Ok(Some(kind))
            && listens(&fd) == Ok(true)
            && matches!(family_of(&fd), Ok(Some(family)) if families.contains(&family));
        if fits { Ok(fd) } else { Err(Error::WrongListener { name: name.to_owned(), wanted }) }
    }
}
