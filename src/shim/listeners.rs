//! The listeners of a shim: its own slot, or in exclusive mode the two slots that it shares with the other shims of the
//! service.

mod ending;
mod sides;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handoff_protocol::ids::ListenerName;
use handoff_protocol::message::Mode;

pub(super) use sides::check_sides;
use sides::{STATE, read_state, write_state};
pub(crate) use sides::{active_side, forget_sides, note_joined};

use super::inject::copy_datagram_information;
use super::lost;
use super::own;
use super::shim_config::ShimConfig;
use crate::config::ListenAddress;
use crate::slots::{
    Access, Handshakes, ListenerPair, Pair, PairState, Side, SlotError, UnixPathTarget, drop_unread,
    is_alive, lengthen_queue, restore_names, set_access, unread_bytes, waiting_at,
};
use crate::sys::descriptor::inode;

/// Maximum wait, in the gap, for handshakes that were in progress at the switch: they belong to the old slot.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// Time to answer datagrams in the gap, unless the service file sets `answer_grace`: answers are invisible.
const ANSWER: Duration = Duration::from_millis(100);

/// The same for a busy program, which may be working on answers. One that waits for other services is not busy.
const BUSY_ANSWER: Duration = Duration::from_secs(1);

/// The listeners by name.
pub(super) struct Listeners {
    names: Vec<ListenerName>,
    pub(super) addresses: Vec<ListenAddress>,
    slots: ListenerSlots,
    /// Listeners whose first bind sets the access rights.
    first_binds: Mutex<Vec<ListenerName>>,
    answer_grace: Option<Duration>,
    /// The path of this shim's files.
    own_path: PathBuf,
}

enum ListenerSlots {
    /// The slot of this process, steered by the daemon. With the targets of unix paths at the program's start.
    Own(Vec<OwnedFd>, Mutex<Vec<Option<UnixPathTarget>>>),
    /// The shared slots, steered by the shim whose program is at work.
    Shared(Mutex<SharedSlots>),
}

struct SharedSlots {
    /// `None` until this process holds the data lock.
    pair: Option<Pair>,
    /// The listeners for the pair, until then.
    parts: Vec<ListenerPair>,
    /// Number of addresses.
    addresses: usize,
    /// The file with its state.
    file: PathBuf,
    /// The side on which the program was started.
    used: Side,
    switched: Option<Handshakes>,
    /// Number of lost datagrams at the switch to the side where they wait now.
    lost_before: u32,
}

impl Listeners {
    /// Builds the listeners from `Welcome`: in exclusive mode the first slots of all addresses, then the second ones.
    pub(super) fn new(
        config: &ShimConfig,
        mode: Mode,
        given: Vec<(ListenerName, OwnedFd)>,
    ) -> Result<Self, String> {
        let addresses = config.addresses()?;
        let names: Vec<ListenerName> = config.listen.iter().map(|(name, _)| name.clone()).collect();
        let expected = if mode == Mode::Exclusive { 2 } else { 1 } * names.len();
        if given.len() != expected
            || given.iter().zip(names.iter().cycle()).any(|((given, _), name)| given != name)
        {
            let given: Vec<&str> = given.iter().map(|(name, _)| name.as_str()).collect();
            return Err(format!(
                "the daemon sent the listeners {}, which are not those of the plan",
                given.join(", ")
            ));
        }
        let mut fds: Vec<OwnedFd> = given.into_iter().map(|(_, fd)| fd).collect();
        let slots = match mode {
            Mode::Overlap => ListenerSlots::Own(fds, Mutex::default()),
            Mode::Exclusive => {
                let second = fds.split_off(names.len());
                let both = fds.into_iter().zip(second).zip(&addresses);
                let parts =
                    both.map(|((a, b), address)| ListenerPair { address: address.clone(), a, b }).collect();
                let file = config.shared_dir.join(STATE);
                let (addresses, used) = (names.len(), Side::A);
                let shared =
                    SharedSlots { pair: None, parts, addresses, file, used, switched: None, lost_before: 0 };
                ListenerSlots::Shared(Mutex::new(shared))
            }
        };
        let first_binds = Mutex::new(config.first_binds.clone());
        let answer_grace = config.answer_grace_ms.map(Duration::from_millis);
        let own_path = config.own_path.clone();
        Ok(Self { names, addresses, slots, first_binds, answer_grace, own_path })
    }

    /// For the holder of the data lock: steers new connections by the recorded state, and starts the program there from
    /// now on. Resets connections where no program will accept.
    pub(super) fn take_over(&self) -> Result<(), String> {
        let ListenerSlots::Shared(shared) = &self.slots else { return Ok(()) };
        let mut shared = lock(shared);
        shared.take_over()?;
        let path = self.own_path.with_extension(super::SIDE);
        let noted = serde_json::to_vec(&shared.used).map_err(io::Error::from);
        if let Err(error) = noted.and_then(|side| fs::write(&path, side)) {
            log_line!("cannot report to the daemon where the program listens: {}: {error}", path.display());
        }
        self.reset_resting(&mut shared)
    }

    /// The listeners for a program that is started now.
    pub(super) fn current(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        self.names.iter().map(|name| Ok((name.to_string(), self.current_of(name.as_str())?))).collect()
    }

    /// The inodes of the program's listeners.
    pub(super) fn inodes(&self) -> BTreeSet<u32> {
        let number = |(_, listener): (String, OwnedFd)| u32::try_from(inode(&listener).ok()?).ok();
        self.current().into_iter().flatten().filter_map(number).collect()
    }

    /// Restores the queues of the program's listeners, whose backlog it may have shortened.
    pub(super) fn lengthen_queues(&self) {
        self.current().into_iter().flatten().for_each(|(_, listener)| lengthen_queue(&listener));
    }

    /// One listener by name.
    pub(super) fn current_of(&self, name: &str) -> io::Result<OwnedFd> {
        let at = self.names.iter().position(|known| known.as_str() == name);
        let at =
            at.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no listener {name:?}")))?;
        match &self.slots {
            ListenerSlots::Own(fds, _) => fds[at].try_clone(),
            ListenerSlots::Shared(shared) => {
                let shared = lock(shared);
                let used = shared.pair.as_ref().and_then(|pair| pair.listeners(shared.used).nth(at));
                used.ok_or_else(|| io::Error::other("the slot is not known yet"))?.try_clone()
            }
        }
    }

    /// Names and addresses.
    pub(super) fn configured(&self) -> Vec<(String, ListenAddress)> {
        self.names.iter().map(ToString::to_string).zip(self.addresses.iter().cloned()).collect()
    }

    /// Applies the access rights of the program's first bind to a unix socket that has none yet. Later binds change
    /// nothing.
    pub(super) fn set_first_access(&self, name: &str, access: Access) -> Result<(), String> {
        let mut first_binds = lock(&self.first_binds);
        let Some(at) = first_binds.iter().position(|first| first.as_str() == name) else { return Ok(()) };
        let listener = self.current_of(name).map_err(|error| error.to_string())?;
        let address =
            self.names.iter().position(|known| known.as_str() == name).map(|at| &self.addresses[at]);
        first_binds.swap_remove(at);
        address
            .map_or(Ok(()), |address| set_access(address, &listener, &access))
            .map_err(|error| error.to_string())
    }

    /// Records the targets of unix socket paths before the program starts.
    pub(super) fn prepare_places(&self) {
        for ((_, listener), address) in self.current().into_iter().flatten().zip(&self.addresses) {
            if let Err(error) = restore_names(address, &listener) {
                log_line!("{error}");
            }
        }
        if let ListenerSlots::Own(_, places) = &self.slots {
            *lock(places) = self.addresses.iter().map(UnixPathTarget::of).collect();
        }
    }

    /// Restores the path of a unix socket that the program has removed. It may belong to another process or another
    /// slot.
    pub(super) fn put_back(&self, name: &str) -> Result<(), String> {
        let text = |error: SlotError| error.to_string();
        match &self.slots {
            ListenerSlots::Own(_, places) => {
                let at = self.names.iter().position(|known| known.as_str() == name);
                let place = at.and_then(|at| Some((*lock(places).get(at)?)?.restore(&self.addresses[at])));
                place.unwrap_or(Ok(())).map_err(text)
            }
            ListenerSlots::Shared(shared) => {
                let shared = lock(shared);
                let Some(pair) = &shared.pair else { return Ok(()) };
                pair.restore_paths().map_err(text)
            }
        }
    }

    /// Checks for foreign sockets at the start of an upgrade, before any client waits for it.
    pub(super) fn update_order(&self) {
        if let ListenerSlots::Shared(shared) = &self.slots
            && let Some(pair) = &mut lock(shared).pair
        {
            pair.update_order();
        }
    }

    /// Lets new connections wait at the other slot from now on.
    pub(super) fn switch(&self) -> Result<(), String> {
        let ListenerSlots::Shared(shared) = &self.slots else { return Ok(()) };
        let mut shared = lock(shared);
        let Some(state) = shared.pair.as_ref().map(|pair| pair.state().clone()) else { return Ok(()) };
        // If the program has shut down a unix socket, it gets no new connections there. The connections at its
        // replacement are for the next program on this side.
        let waits_here = shared.pair.as_ref().is_some_and(|pair| pair.has_ended_path(shared.used));
        if state.active() != shared.used || waits_here {
            return Ok(());
        }
        shared.prepare_resting();
        shared.change_to(state.switched_to(state.active().other()))?;
        shared.switched = Some(Handshakes::at_switch());
        shared.lost_before = shared.lost()?;
        Ok(())
    }

    /// Number of connections that still wait for the program after the switch.
    pub(super) fn left_waiting(&self) -> Result<u32, String> {
        let text = |error: SlotError| error.to_string();
        match &self.slots {
            ListenerSlots::Own(fds, _) => self
                .addresses
                .iter()
                .zip(fds)
                .filter(|(address, fd)| is_alive(address, fd))
                .map(|(address, fd)| waiting_at(address, fd))
                .sum::<Result<_, _>>()
                .map_err(text),
            ListenerSlots::Shared(shared) => {
                let shared = lock(shared);
                shared.pair.as_ref().map_or(Ok(0), |pair| pair.left_waiting(shared.used)).map_err(text)
            }
        }
    }

    /// The load that waits for the program, by address: connections, or bytes of datagrams. It decreases when the
    /// program reads, if the kernel reports exact numbers.
    pub(super) fn waiting(&self) -> Result<Vec<u32>, String> {
        let load_at = |address: &ListenAddress, fd: &OwnedFd| match address.is_datagram() {
            true => unread_bytes(fd),
            false => waiting_at(address, fd).map_err(io::Error::other),
        };
        let waiting: io::Result<Vec<u32>> = match &self.slots {
            ListenerSlots::Own(fds, _) => {
                self.addresses.iter().zip(fds).map(|(address, fd)| load_at(address, fd)).collect()
            }
            ListenerSlots::Shared(shared) => {
                let shared = lock(shared);
                let fds = shared.pair.iter().flat_map(|pair| pair.listeners(shared.used));
                self.addresses.iter().zip(fds).map(|(address, fd)| load_at(address, fd)).collect()
            }
        };
        waiting.map_err(|error| error.to_string())
    }

    /// Whether no client is in transit to the old slot, and datagrams that the program has read are answered.
    pub(super) fn has_settled(&self, is_busy: impl Fn() -> bool) -> bool {
        let ListenerSlots::Shared(shared) = &self.slots else { return true };
        let Some(handshakes) = &mut lock(shared).switched else { return true };
        let answers = || match self.answer_grace {
            Some(grace) => handshakes.age() < grace,
            None => handshakes.age() < ANSWER || handshakes.age() < BUSY_ANSWER && is_busy(),
        };
        if self.addresses.iter().any(ListenAddress::is_datagram) && answers() {
            return false;
        }
        handshakes.are_over(&self.addresses, HANDSHAKE)
    }

    /// Reports datagrams lost since the switch because no program read them.
    pub(super) fn report_lost(&self) {
        let ListenerSlots::Shared(shared) = &self.slots else { return };
        let mut shared = lock(shared);
        match shared.lost() {
            Ok(lost) if lost > shared.lost_before => {
                let count = lost - shared.lost_before;
                self.note_lost(count);
                log_line!(
                    "{count} datagrams were lost while no program read them; a larger net.core.rmem_max lets more of them wait"
                );
                shared.lost_before = lost;
            }
            Ok(_) => {}
            Err(error) => log_line!("cannot find out how many datagrams were lost: {error}"),
        }
    }

    /// Resets the connections that still wait for the ended program.
    pub(super) fn dismiss_left(&self) -> Result<(), String> {
        let ListenerSlots::Shared(shared) = &self.slots else { return Ok(()) };
        self.reset_resting(&mut lock(shared))
    }

    fn reset_resting(&self, shared: &mut SharedSlots) -> Result<(), String> {
        let unread = shared.drop_unread().map_err(|error| error.to_string())?;
        if unread > 0 {
            self.note_lost(unread);
            log_line!("{unread} datagrams were lost: the program that has ended had not read them");
        }
        let resting = shared.pair.as_ref().map(|pair| pair.queue_len(pair.state().active().other()));
        if let Some(Ok(waiting @ 1..)) = resting {
            log_line!("{waiting} connections are reset: the program that has ended had not accepted them");
        }
        shared.reset_resting()
    }

    /// Records lost datagrams for the daemon.
    fn note_lost(&self, count: u32) {
        if let Err(error) = lost::note(&self.own_path, count) {
            log_line!("cannot report to the daemon that {count} datagrams were lost: {error}");
        }
    }

    /// Keeps the program where it is: undoes an unfinished change.
    pub(super) fn steer_again(&self) {
        if let ListenerSlots::Shared(shared) = &self.slots
            && let Some(Err(error)) = lock(shared).pair.as_ref().map(Pair::steer_again)
        {
            log_line!("{error}");
        }
    }

    /// Whether new connections go to the started program.
    pub(super) fn is_where_connections_are(&self) -> bool {
        match &self.slots {
            ListenerSlots::Own(..) => true,
            ListenerSlots::Shared(shared) => {
                let shared = lock(shared);
                shared.pair.as_ref().is_none_or(|pair| pair.state().active() == shared.used)
            }
        }
    }
}

impl SharedSlots {
    fn take_over(&mut self) -> Result<(), String> {
        let there = read_state(&self.file).map_err(|error| own::own_error(&self.file, "read", &error))?;
        let mut state = there.unwrap_or_else(|| PairState::new(self.addresses));
        if self.pair.is_none() {
            self.pair = Some(Pair::hold(std::mem::take(&mut self.parts), state.clone()));
        }
        if let Some(pair) = &self.pair {
            let active = state.active();
            // The last program has shut its listener down, so connections wait at the other side.
            if pair.is_left(active) && pair.queue_len(active).map_err(|error| error.to_string())? == 0 {
                state = state.switched_to(active.other());
            }
            let replaced: Vec<String> = pair.replaced(state.active()).map(ToString::to_string).collect();
            if !replaced.is_empty() {
                return Err(format!(
                    "its program has shut down {}; another process gets what has replaced it",
                    replaced.join(", ")
                ));
            }
        }
        self.change_to(state)?;
        self.used = self.pair.as_ref().map_or(Side::A, |pair| pair.state().active());
        self.switched = None;
        self.lost_before = self.lost()?;
        Ok(())
    }

    /// Records the wanted state before it applies it: after a crash the next process applies it again, which changes
    /// nothing.
    fn change_to(&mut self, wanted: PairState) -> Result<(), String> {
        let wanted = self.pair.as_ref().map_or(wanted.clone(), |pair| pair.foresee(&wanted));
        self.write_down(&wanted)?;
        let Some(pair) = &mut self.pair else { return Ok(()) };
        let applied = pair.apply(wanted).map(drop).map_err(|error| error.to_string());
        let reached = pair.state().clone();
        let written = self.write_down(&reached);
        applied.and(written)
    }

    /// Drops unread datagrams at the idle side.
    fn drop_unread(&self) -> io::Result<u32> {
        let Some(pair) = &self.pair else { return Ok(0) };
        pair.listeners(pair.state().active().other()).map(drop_unread).sum()
    }

    /// Datagrams that wait for the next program must carry the information that this one requested.
    fn prepare_resting(&self) {
        for (used, resting) in self.pair.iter().flat_map(|pair| pair.datagram_sockets(self.used)) {
            if let Err(error) = copy_datagram_information(used, resting) {
                log_line!("cannot prepare the socket for the datagrams that wait: {error}");
            }
        }
    }

    /// Resets connections at the idle side, and makes it listen again if its program has shut it down.
    fn reset_resting(&mut self) -> Result<(), String> {
        let Some(pair) = &self.pair else { return Ok(()) };
        let resting = pair.state().active().other();
        match pair.queue_len(resting).map_err(|error| error.to_string())? {
            0 if !pair.is_left(resting) => Ok(()),
            _ => self.change_to(pair.state().with_reset(resting)),
        }
    }

    /// Total number of datagrams lost where they wait.
    fn lost(&self) -> Result<u32, String> {
        let lost = self.pair.as_ref().map(|pair| pair.dropped(pair.state().active()));
        lost.unwrap_or(Ok(0)).map_err(|error| error.to_string())
    }

    /// Skips an unchanged state: a crashed program must restart even if the disk is full.
    fn write_down(&self, state: &PairState) -> Result<(), String> {
        let there = read_state(&self.file).ok().flatten();
        if there.as_ref() == Some(state) {
            return Ok(());
        }
        let error = match write_state(&self.file, state) {
            Ok(()) => return Ok(()),
            Err(error) => own::own_error(&self.file, "written", &error),
        };
        if there.unwrap_or_else(|| PairState::new(self.addresses)).steers_like(state) {
            log_line!("{error}");
            return Ok(());
        }
        Err(error)
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
