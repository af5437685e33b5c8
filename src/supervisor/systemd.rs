//! What a daemon reports to systemd, and what systemd keeps for the daemon.
//!
//! systemd is one more place for what the keeper holds, in case the daemon and the keeper die together: see
//! sd_notify(3), `FDSTORE=1`. Without systemd (no `NOTIFY_SOCKET`) nothing here does anything.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use handoff_protocol::ids::ServiceName;
use sd_notify::{NotifyState, notify, notify_with_fds};

use crate::sys::listen_fds::take_listen_fds;

/// Maximum length of a descriptor's name in the store.
const NAME_MAX_BYTES: usize = 255;

/// Maximum number of messages that wait for systemd to read them.
const QUEUE_MAX: usize = 4096;

/// How long the last messages may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The service manager, if there is one that listens.
#[derive(Debug)]
pub(super) struct Systemd {
    teller: Option<ManagerThread>,
    /// The services that are to serve, and whether they do.
    serving: RefCell<BTreeMap<ServiceName, bool>>,
}

impl Systemd {
    /// The service manager that has started this process.
    pub(super) fn new() -> io::Result<Self> {
        let teller = std::env::var_os("NOTIFY_SOCKET").map(|_| ManagerThread::start()).transpose()?;
        Ok(Self { teller, serving: RefCell::default() })
    }

    /// The daemon takes requests, and has begun to start its services.
    pub(super) fn ready(&self) {
        self.enqueue(|| ManagerMessage::Ready(status(&self.serving.borrow())));
    }

    /// The daemon is about to end.
    pub(super) fn stopping(&self) {
        self.enqueue(|| ManagerMessage::Stopping);
    }

    /// Shows the state of a service: whether it is to serve, and whether it does.
    pub(super) fn show(&self, service: &ServiceName, wanted: bool, serves: bool) {
        if self.teller.is_none() {
            return;
        }
        let mut serving = self.serving.borrow_mut();
        let before = if wanted || serves {
            serving.insert(service.clone(), serves)
        } else {
            serving.remove(service).map(|_| true)
        };
        if before != Some(serves) {
            self.enqueue(|| ManagerMessage::Status(status(&serving)));
        }
    }

    /// Has a duplicate of a descriptor kept under this key, under which nothing may be kept already.
    pub(super) fn store(&self, key: &str, fd: BorrowedFd<'_>) {
        if self.teller.is_none() {
            return;
        }
        match fd.try_clone_to_owned() {
            Ok(_) if !is_name(key) => tracing::error!(key, "systemd does not take this name"),
            Ok(copy) => self.enqueue(|| ManagerMessage::Store(key.to_owned(), copy)),
            Err(error) => tracing::error!(key, "systemd cannot keep it: {error}"),
        }
    }

    /// Closes what is kept under this key.
    pub(super) fn remove(&self, key: &str) {
        if is_name(key) {
            self.enqueue(|| ManagerMessage::Remove(key.to_owned()));
        }
    }

    fn enqueue(&self, word: impl FnOnce() -> ManagerMessage) {
        if let Some(queue) = self.teller.as_ref().and_then(|teller| teller.queue.as_ref())
            && queue.try_send(word()).is_err()
        {
            tracing::error!("systemd does not listen");
        }
    }
}

/// A thread that sends messages: nothing limits how long the service manager takes to read, and nothing else must
/// wait for it.
#[derive(Debug)]
struct ManagerThread {
    queue: Option<SyncSender<ManagerMessage>>,
    /// Hangs up when all messages are sent.
    done: Receiver<()>,
}

impl ManagerThread {
    fn start() -> io::Result<Self> {
        let (queue, words) = sync_channel::<ManagerMessage>(QUEUE_MAX);
        let (telling, done) = sync_channel(0);
        std::thread::Builder::new().name("systemd".into()).spawn(move || {
            for word in words {
                if let Err(error) = word.send() {
                    tracing::error!("systemd cannot be told: {error}");
                }
            }
            drop(telling);
        })?;
        Ok(Self { queue: Some(queue), done })
    }
}

impl Drop for ManagerThread {
    fn drop(&mut self) {
        drop(self.queue.take());
        let _ = self.done.recv_timeout(SEND_TIMEOUT);
    }
}

/// One message to the service manager.
enum ManagerMessage {
    Ready(String),
    Status(String),
    Stopping,
    Store(String, OwnedFd),
    Remove(String),
}

impl ManagerMessage {
    fn send(&self) -> io::Result<()> {
        match self {
            ManagerMessage::Ready(status) => notify(&[NotifyState::Ready, NotifyState::Status(status)]),
            ManagerMessage::Status(status) => notify(&[NotifyState::Status(status)]),
            ManagerMessage::Stopping => notify(&[NotifyState::Stopping]),
            ManagerMessage::Store(key, fd) => {
                // A pidfd hangs up when its process is reaped. It must stay: only then does it have anything to
                // report.
                let stay = NotifyState::Custom("FDPOLL=0");
                notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(key), stay], &[fd.as_fd()])
            }
            ManagerMessage::Remove(key) => notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(key)]),
        }
    }
}

/// Takes what an earlier daemon has had systemd keep. Call this once, at the start.
pub(super) fn take_stored() -> BTreeMap<String, OwnedFd> {
    let given = take_listen_fds().unwrap_or_else(|error| {
        tracing::error!("what systemd has kept cannot be taken: {error}");
        Vec::new()
    });
    // Descriptors of a socket unit are not ours, and have no slash in their names.
    given.into_iter().filter(|(name, _)| name.contains('/')).collect()
}

/// Whether systemd takes this name as it is: printable ASCII without a colon.
fn is_name(key: &str) -> bool {
    key.len() <= NAME_MAX_BYTES && key.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b':')
}

fn status(serving: &BTreeMap<ServiceName, bool>) -> String {
    let up = serving.values().filter(|serves| **serves).count();
    format!("{up} of {} services serve", serving.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_names() {
        let id = handoff_protocol::ids::HandoffId::NIL;
        let longest = format!("{0}/{0}/{1}", "x".repeat(64), u64::MAX);
        for key in ["s3/main/0", &format!(".pid/s3/{id}"), &longest] {
            assert!(is_name(key), "{key}");
        }
        for key in ["a:b", "a\nFDSTORE=1", "ä", &"x".repeat(256)] {
            assert!(!is_name(key), "{key}");
        }
    }

    #[test]
    fn the_status_counts() {
        let serving = [("a", true), ("b", false), ("c", true)];
        let serving = serving.map(|(name, serves)| (name.parse().unwrap(), serves)).into();
        assert_eq!(status(&serving), "2 of 3 services serve");
    }
}
