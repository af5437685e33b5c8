//! Finds the process that serves, and records it for people and the daemon.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::Program;
use crate::shim::life::LifeEvent;
use crate::shim::receivers::ReceiverProcess;
use crate::slots::census::Census;
use crate::sys::accepting::awaits_clients;
use crate::sys::held::sockets_of;
use crate::sys::poll::{PollFlags, poll_one};
use crate::sys::process::{Exit, has_ended, is_zombie, parent_of, pidfd_open, place_of};

/// A serving program has a listener by then.
const FOUND_WITHIN: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(10);
/// After this time the search is repeated, and then each time after twice as long: a wrapper may have started its server
/// meanwhile.
const SEARCH_INTERVAL: Duration = Duration::from_millis(250);
/// From this interval on, the search is repeated only when the recorded process has ended.
const SEARCH_INTERVAL_MAX: Duration = Duration::from_secs(60);

impl Program {
    /// Records the serving process for people and the daemon, and the next one when that has ended while the program
    /// runs on. A listener that was just swapped appears a moment later.
    pub(super) fn note_server(&self) {
        let Some(this) = self.this.upgrade() else { return };
        let search = {
            let mut latest = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
            *latest += 1;
            *latest
        };
        let looker = std::thread::Builder::new().name("handoff-server".to_owned()).spawn(move || {
            let until = Instant::now() + FOUND_WITHIN;
            while !this.survey().iter().any(|process| process.has_listener) && Instant::now() < until {
                std::thread::sleep(TICK);
            }
            let (mut noted, mut pause) = (None, SEARCH_INTERVAL);
            while this.follow_server(search, &mut noted, &mut pause).is_continue() {}
        });
        if let Err(error) = looker {
            log_line!("cannot determine which process serves: {error}");
        }
    }

    /// One search, and the wait for the next one. Ends when the program is asked to end, and when a later search has
    /// begun: an earlier one may have found a process that has daemonized and ended since.
    fn follow_server(&self, search: u64, noted: &mut Option<u32>, pause: &mut Duration) -> ControlFlow<()> {
        if !self.is_whole() {
            return ControlFlow::Break(());
        }
        let found = self.receivers().into_iter().find(|pid| !(is_zombie(*pid) && has_ended(*pid)));
        let Some((pid, pidfd)) = found.and_then(|pid| Some((pid, pidfd_open(pid).ok()?))) else {
            // Between two processes of a program that daemonizes; or its processes are out of reach.
            std::thread::sleep(*pause / 25);
            *pause = (2 * *pause).min(SEARCH_INTERVAL_MAX);
            return ControlFlow::Continue(());
        };
        {
            let latest = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
            if *latest != search {
                return ControlFlow::Break(());
            }
            if noted.replace(pid) != Some(pid) {
                self.note_pid(pid);
            }
        }
        // For later, when it may be busy.
        self.serves_itself(pid);
        let limit = (*pause < SEARCH_INTERVAL_MAX).then_some(*pause);
        let ended = poll_one(&pidfd, PollFlags::POLLIN, limit);
        *pause = if ended.is_ok_and(|ended| ended.is_empty()) { 2 * *pause } else { SEARCH_INTERVAL };
        ControlFlow::Continue(())
    }

    /// A process of a daemon has ended. If it was the server, the rest is not a program anymore. A server may pass its
    /// listeners to another process, so this checks for a while.
    pub(super) fn check_served(&self, exit: Option<Exit>) {
        let Some(this) = self.this.upgrade() else { return };
        let looker = std::thread::Builder::new().name("handoff-server".to_owned()).spawn(move || {
            let until = Instant::now() + FOUND_WITHIN;
            while Instant::now() < until {
                if this.survey().iter().any(|process| process.has_listener) {
                    return;
                }
                std::thread::sleep(TICK);
            }
            // A process that is not visible may serve.
            let is_seen = this.tree().into_iter().all(|pid| sockets_of(pid).is_ok());
            let was_served = this.known().was_served;
            if is_seen && was_served {
                this.feed(LifeEvent::Unserved(exit));
            }
        });
        if let Err(error) = looker {
            log_line!("cannot determine whether a process still serves: {error}");
        }
    }

    /// The processes of the program.
    pub(super) fn survey(&self) -> Vec<ReceiverProcess> {
        let sockets = self.known().listeners.clone();
        let all: Vec<ReceiverProcess> = self.tree().into_iter().map(|pid| inspect(pid, &sockets)).collect();
        self.known().was_served |= all.iter().any(|process| process.has_listener);
        all
    }

    /// Whether a process with a listener serves clients, and is no wrapper that has only passed the listener on. If the
    /// program was started without a listener, a process has it because it has bound it, or because an earlier process of
    /// the program has. Otherwise it was seen to wait for clients, or to have one.
    pub(super) fn serves_itself(&self, pid: u32) -> bool {
        if !self.known().has_inherited {
            return !self.has_passed_on(pid);
        }
        let Some(place) = place_of(pid) else { return false };
        let process = (pid, place.start_ticks);
        let sockets = {
            let known = self.known();
            if known.servers.contains(&process) {
                return true;
            }
            known.listeners.clone()
        };
        let serves = awaits_clients(pid, &sockets) || self.has_client(pid);
        if serves {
            self.known().servers.insert(process);
        }
        serves
    }

    /// Whether a process that has bound a listener only waits for the end of a child that serves there: a launcher.
    fn has_passed_on(&self, pid: u32) -> bool {
        let sockets = self.known().listeners.clone();
        let waits = |pid: u32| awaits_clients(pid, &sockets);
        let children = self.tree().into_iter().filter(|child| parent_of(*child) == Some(pid));
        !waits(pid) && children.into_iter().any(waits) && !self.has_client(pid)
    }

    /// Whether a process has a connection of a client.
    fn has_client(&self, pid: u32) -> bool {
        let census = self.config.addresses().ok().and_then(|addresses| Census::new(&addresses).ok());
        census.is_some_and(|mut census| census.accepted(|| vec![pid]).is_ok_and(|all| !all.is_empty()))
    }
}

/// The current state of a process of the program. Invisible parts count as missing.
fn inspect(pid: u32, listeners: &BTreeSet<u32>) -> ReceiverProcess {
    let sockets = sockets_of(pid).into_iter().flatten();
    let program = fs::metadata(format!("/proc/{pid}/exe")).ok().map(|found| (found.dev(), found.ino()));
    ReceiverProcess {
        pid,
        parent: parent_of(pid).unwrap_or(0),
        program,
        has_listener: sockets.into_iter().any(|socket| listeners.contains(&socket.inode)),
    }
}
