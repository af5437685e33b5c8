//! A server without a supervisor: it binds its own listeners and runs until it is ended from outside.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::Error;
use handoff_sys::lock::DataLock;

pub(super) fn bind_tcp(address: &str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).map_err(|source| Error::Bind { address: address.to_owned(), source })
}

pub(super) fn bind_udp(address: &str) -> Result<UdpSocket, Error> {
    UdpSocket::bind(address).map_err(|source| Error::Bind { address: format!("udp:{address}"), source })
}

/// Replaces a socket file without a listener: its process has died.
pub(super) fn bind_unix(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Bind { address: format!("unix:{}", path.display()), source };
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && !answers(path) => {
            std::fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path).map_err(failed)
        }
        result => result.map_err(failed),
    }
}

fn answers(path: &Path) -> bool {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::ConnectionRefused,
    }
}

pub(super) fn lock(data: &Path) -> Result<DataLock, Error> {
    DataLock::try_take(data).map_err(Error::Lock)?.ok_or_else(|| Error::DataInUse { path: data.to_owned() })
}

pub(super) fn wait_for_the_end() -> ! {
    loop {
        std::thread::park();
    }
}
