//! TEMPORARY
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};

use handoff_protocol::ids::ListenerName;

use super::service::Service;
use crate::config::ListenAddress;
use crate::control::{Error, Kind};

#[derive(Debug)]
pub(super) struct Listening {
    list: Vec<(ListenerName, TcpListener)>,
}

impl Listening {
    pub(super) fn names(&self) -> Vec<ListenerName> {
        self.list.iter().map(|(n, _)| n.clone()).collect()
    }
    pub(super) fn fds(&self, _slot: u64) -> Vec<BorrowedFd<'_>> {
        self.list.iter().map(|(_, l)| l.as_fd()).collect()
    }
    pub(super) fn steer(&mut self, _slot: u64) -> io::Result<()> {
        Ok(())
    }
}

impl Service {
    pub(super) fn open_listeners(&mut self) -> Result<(), Error> {
        if self.listening.is_some() {
            return Ok(());
        }
        let mut list = Vec::new();
        for l in &self.config.listeners {
            if let ListenAddress::Tcp(a) = &l.address {
                let s = TcpListener::bind(a).map_err(|e| Error::new(Kind::BindFailed, e.to_string(), ""))?;
                list.push((l.name.clone(), s));
            }
        }
        self.listening = Some(Listening { list });
        Ok(())
    }
    pub(super) fn close_listeners(&mut self) {
        self.listening = None;
    }
    pub(super) fn slot_for_successor(&mut self) -> io::Result<u64> {
        Ok(0)
    }
    pub(super) fn forget_successor(&mut self) {
        self.successor = None;
    }
    pub(super) fn forget_retiree(&mut self) {
        self.retiree = None;
    }
}
