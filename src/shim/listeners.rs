//! The listeners of a shim: those of its own slot, or in exclusive mode the two slots that it shares with the other shims of the service.

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

use sides::{STATE, read_state, write_state};
pub(crate) use sides::{active_side, forget_sides, note_joined};

use super::inject::copy_told;
use super::lost;
use super::plan::Plan;
use crate::config::ListenAddress;
use crate::slots::{
    Access, Both, Handshakes, Pair, PairState, Place, Side, SlotError, drop_unread, is_alive, lengthen_queue,
    mend_names, set_access, unread_bytes, waiting_at,
};
use crate::sys::descriptor::inode;

/// A handshake that was under way at a switch belongs to the old slot. In the gap it is waited for so long at the most.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// Nobody can see whether a datagram that was read has been answered: unless the service file says it (`answer_grace`), the program
/// is given so long for it, in the gap.
const ANSWER: Duration = Duration::from_millis(100);

/// And so long if it is busy. Then that may be what it is busy with. One that asks others for its answers is not.
const BUSY_ANSWER: Duration = Duration::from_secs(1);

/// The listeners, by name.
pub(super) struct Listeners {
    names: Vec<ListenerName>,
    pub(super) addresses: Vec<ListenAddress>,
    slots: Slots,
    /// Those whose first bind says who may connect.
    first_binds: Mutex<Vec<ListenerName>>,
    answer_grace: Option<Duration>,
    /// Where the files of this shim are.
    own_path: PathBuf,
}

enum Slots {
    /// The slot of this process; the daemon steers. And where the paths of unix sockets led when the program was started.
    Own(Vec<OwnedFd>, Mutex<Vec<Option<Place>>>),
    /// The slots of all processes, of which one is at work; it steers.
    Shared(Mutex<Shared>),
}

struct Shared {
    /// `None` until this process decides.
    pair: Option<Pair>,
    /// What it is made of, until then.
    parts: Vec<Both>,
    /// Of how many addresses.
    addresses: usize,
    /// Where its state is kept.
    file: PathBuf,
    /// The slot that the program was started on.
    used: Side,
    switched: Option<Handshakes>,
    /// How many datagrams had been lost when the slot was steered to where they wait now.
    lost_before: u32,
}

impl Listeners {
    /// Of what came with `Welcome`: in exclusive mode the first slots of all addresses, then the second ones.
    pub(super) fn new(plan: &Plan, mode: Mode, given: Vec<(ListenerName, OwnedFd)>) -> Result<Self, String> {
        let addresses = plan.addresses()?;
        let names: Vec<ListenerName> = plan.listen.iter().map(|(name, _)| name.clone()).collect();
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
            Mode::Overlap => Slots::Own(fds, Mutex::default()),
            Mode::Exclusive => {
                let second = fds.split_off(names.len());
                let both = fds.into_iter().zip(second).zip(&addresses);
                let parts = both.map(|((a, b), address)| Both { address: address.clone(), a, b }).collect();
                let file = plan.shared_dir.join(STATE);
                let (addresses, used) = (names.len(), Side::A);
                let shared =
                    Shared { pair: None, parts, addresses, file, used, switched: None, lost_before: 0 };
                Slots::Shared(Mutex::new(shared))
            }
        };
        let first_binds = Mutex::new(plan.first_binds.clone());
        let answer_grace = plan.answer_grace_ms.map(Duration::from_millis);
        let own_path = plan.own_path.clone();
        Ok(Self { names, addresses, slots, first_binds, answer_grace, own_path })
    }

    /// For the holder of the data lock: from now on new connections go where the file of the state says, and the program is to
    /// be started there. What waits where nobody will ever accept is reset.
    pub(super) fn take_over(&self) -> Result<(), String> {
        let Slots::Shared(shared) = &self.slots else { return Ok(()) };
        let mut shared = lock(shared);
        shared.take_over()?;
        let path = self.own_path.with_extension(super::SIDE);
        let noted = serde_json::to_vec(&shared.used).map_err(io::Error::from);
        if let Err(error) = noted.and_then(|side| fs::write(&path, side)) {
            eprintln!(
                "handoff: the daemon will not know where the program listens: {}: {error}",
                path.display()
            );
        }
        self.reset_resting(&mut shared)
    }

    /// The listeners that a program is to get that is started now.
    pub(super) fn current(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        self.names.iter().map(|name| Ok((name.to_string(), self.current_of(name.as_str())?))).collect()
    }

    /// The listeners that the program serves at, by their inodes.
    pub(super) fn inodes(&self) -> BTreeSet<u32> {
        let number = |(_, listener): (String, OwnedFd)| u32::try_from(inode(&listener).ok()?).ok();
        self.current().into_iter().flatten().filter_map(number).collect()
    }

    /// The program has them, and may have shortened their queues.
    pub(super) fn lengthen_queues(&self) {
        self.current().into_iter().flatten().for_each(|(_, listener)| lengthen_queue(&listener));
    }

    /// One of them.
    pub(super) fn current_of(&self, name: &str) -> io::Result<OwnedFd> {
        let at = self.names.iter().position(|known| known.as_str() == name);
        let at =
            at.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no listener {name:?}")))?;
        match &self.slots {
            Slots::Own(fds, _) => fds[at].try_clone(),
            Slots::Shared(shared) => {
                let shared = lock(shared);
                let used = shared.pair.as_ref().and_then(|pair| pair.listeners(shared.used).nth(at));
                used.ok_or_else(|| io::Error::other("it is not known yet which slot it is"))?.try_clone()
            }
        }
    }

    /// Names and addresses.
    pub(super) fn configured(&self) -> Vec<(String, ListenAddress)> {
        self.names.iter().map(ToString::to_string).zip(self.addresses.iter().cloned()).collect()
    }

    /// The program has bound a unix socket for which nobody has said yet who may connect. What was set since then is left as it
    /// is, by later binds as well.
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

    /// The program is about to be started.
    pub(super) fn prepare_places(&self) {
        for ((_, listener), address) in self.current().into_iter().flatten().zip(&self.addresses) {
            if let Err(error) = mend_names(address, &listener) {
                eprintln!("handoff: {error}");
            }
        }
        if let Slots::Own(_, places) = &self.slots {
            *lock(places) = self.addresses.iter().map(Place::of).collect();
        }
    }

    /// The program has removed the path of a unix socket, which leads to another process, or to another slot.
    pub(super) fn put_back(&self, name: &str) -> Result<(), String> {
        let told = |error: SlotError| error.to_string();
        match &self.slots {
            Slots::Own(_, places) => {
                let at = self.names.iter().position(|known| known.as_str() == name);
                let place = at.and_then(|at| Some((*lock(places).get(at)?)?.put_back(&self.addresses[at])));
                place.unwrap_or(Ok(())).map_err(told)
            }
            Slots::Shared(shared) => {
                let shared = lock(shared);
                let Some(pair) = &shared.pair else { return Ok(()) };
                pair.put_back().map_err(told)
            }
        }
    }

    /// An upgrade has begun, and no client waits for it yet.
    pub(super) fn look(&self) {
        if let Slots::Shared(shared) = &self.slots
            && let Some(pair) = &mut lock(shared).pair
        {
            pair.look();
        }
    }

    /// From now on new connections wait at the other slot.
    pub(super) fn switch(&self) -> Result<(), String> {
        let Slots::Shared(shared) = &self.slots else { return Ok(()) };
        let mut shared = lock(shared);
        let Some(state) = shared.pair.as_ref().map(|pair| pair.state().clone()) else { return Ok(()) };
        // A program that has shut down a unix socket gets nothing new there. What waits in its place is for the next one, on this side.
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

    /// How many connections wait for the program although new ones go elsewhere.
    pub(super) fn left_waiting(&self) -> Result<u32, String> {
        let told = |error: SlotError| error.to_string();
        match &self.slots {
            Slots::Own(fds, _) => self
                .addresses
                .iter()
                .zip(fds)
                .filter(|(address, fd)| is_alive(address, fd))
                .map(|(address, fd)| waiting_at(address, fd))
                .sum::<Result<_, _>>()
                .map_err(told),
            Slots::Shared(shared) => {
                let shared = lock(shared);
                shared.pair.as_ref().map_or(Ok(0), |pair| pair.left_waiting(shared.used)).map_err(told)
            }
        }
    }

    /// What waits for the program, by address: what is read from it makes the number smaller, where the kernel tells so much.
    pub(super) fn waiting(&self) -> Result<Vec<u32>, String> {
        let load_at = |address: &ListenAddress, fd: &OwnedFd| match address.is_datagram() {
            true => unread_bytes(fd),
            false => waiting_at(address, fd).map_err(io::Error::other),
        };
        let waiting: io::Result<Vec<u32>> = match &self.slots {
            Slots::Own(fds, _) => {
                self.addresses.iter().zip(fds).map(|(address, fd)| load_at(address, fd)).collect()
            }
            Slots::Shared(shared) => {
                let shared = lock(shared);
                let fds = shared.pair.iter().flat_map(|pair| pair.listeners(shared.used));
                self.addresses.iter().zip(fds).map(|(address, fd)| load_at(address, fd)).collect()
            }
        };
        waiting.map_err(|error| error.to_string())
    }

    /// Whether nobody is on the way to the old slot any more, and datagrams that the program has read are answered.
    pub(super) fn has_settled(&self, is_busy: impl Fn() -> bool) -> bool {
        let Slots::Shared(shared) = &self.slots else { return true };
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

    /// Tells of datagrams that were lost since then because nobody read them.
    pub(super) fn tell_of_lost(&self) {
        let Slots::Shared(shared) = &self.slots else { return };
        let mut shared = lock(shared);
        match shared.lost() {
            Ok(lost) if lost > shared.lost_before => {
                let count = lost - shared.lost_before;
                self.note_lost(count);
                eprintln!(
                    "handoff: {count} datagrams were lost while no program read them; a larger net.core.rmem_max lets more of them wait"
                );
                shared.lost_before = lost;
            }
            Ok(_) => {}
            Err(error) => eprintln!("handoff: cannot find out how many datagrams were lost: {error}"),
        }
    }

    /// The program is gone: what waits for it is reset.
    pub(super) fn dismiss_left(&self) -> Result<(), String> {
        let Slots::Shared(shared) = &self.slots else { return Ok(()) };
        self.reset_resting(&mut lock(shared))
    }

    fn reset_resting(&self, shared: &mut Shared) -> Result<(), String> {
        let unread = shared.drop_unread().map_err(|error| error.to_string())?;
        if unread > 0 {
            self.note_lost(unread);
            eprintln!("handoff: {unread} datagrams were lost: the program that has ended had not read them");
        }
        let resting = shared.pair.as_ref().map(|pair| pair.queue_len(pair.state().active().other()));
        if let Some(Ok(waiting @ 1..)) = resting {
            eprintln!(
                "handoff: {waiting} connections are reset: the program that has ended had not accepted them"
            );
        }
        shared.reset_resting()
    }

    /// For the daemon.
    fn note_lost(&self, count: u32) {
        if let Err(error) = lost::note(&self.own_path, count) {
            eprintln!("handoff: the daemon will not know that {count} datagrams were lost: {error}");
        }
    }

    /// The program goes on where it is: whatever was changed and not finished is undone.
    pub(super) fn steer_again(&self) {
        if let Slots::Shared(shared) = &self.slots
            && let Some(Err(error)) = lock(shared).pair.as_ref().map(Pair::steer_again)
        {
            eprintln!("handoff: {error}");
        }
    }

    /// Whether new connections go to the program that was started.
    pub(super) fn is_where_connections_are(&self) -> bool {
        match &self.slots {
            Slots::Own(..) => true,
            Slots::Shared(shared) => {
                let shared = lock(shared);
                shared.pair.as_ref().is_none_or(|pair| pair.state().active() == shared.used)
            }
        }
    }
}

impl Shared {
    fn take_over(&mut self) -> Result<(), String> {
        let there = read_state(&self.file).map_err(|error| self.failed(&error))?;
        let mut state = there.unwrap_or_else(|| PairState::new(self.addresses));
        if self.pair.is_none() {
            self.pair = Some(Pair::hold(std::mem::take(&mut self.parts), state.clone()));
        }
        if let Some(pair) = &self.pair {
            let active = state.active();
            // The last program has shut its listener down, so they wait at the other side.
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

    /// What is wanted is written down before it is done: whoever comes next does it again, which changes nothing.
    fn change_to(&mut self, wanted: PairState) -> Result<(), String> {
        let wanted = self.pair.as_ref().map_or(wanted.clone(), |pair| pair.foresee(&wanted));
        self.write_down(&wanted)?;
        let Some(pair) = &mut self.pair else { return Ok(()) };
        let applied = pair.apply(wanted).map(drop).map_err(|error| error.to_string());
        let reached = pair.state().clone();
        let written = self.write_down(&reached);
        applied.and(written)
    }

    /// A listener has left its group, and the stranger gets what comes until this is done. It is written down after that: the disk may
    /// take its time, and whoever reads what was there before sees which listeners live.
    fn steer_at_once(&mut self) -> Result<(), String> {
        let Some(pair) = &mut self.pair else { return Ok(()) };
        let applied = pair.apply(pair.state().clone()).map(drop).map_err(|error| error.to_string());
        let reached = pair.state().clone();
        let written = self.write_down(&reached);
        applied.and(written)
    }

    /// At the side that gets nothing new.
    fn drop_unread(&self) -> io::Result<u32> {
        let Some(pair) = &self.pair else { return Ok(0) };
        pair.listeners(pair.state().active().other()).map(drop_unread).sum()
    }

    /// Datagrams that will wait for the next program tell what this one asked for.
    fn prepare_resting(&self) {
        for (used, resting) in self.pair.iter().flat_map(|pair| pair.datagram_sockets(self.used)) {
            if let Err(error) = copy_told(used, resting) {
                eprintln!("handoff: cannot prepare the socket for the datagrams that wait: {error}");
            }
        }
    }

    /// What waits there is reset, and it listens again if its program has shut it down.
    fn reset_resting(&mut self) -> Result<(), String> {
        let Some(pair) = &self.pair else { return Ok(()) };
        let resting = pair.state().active().other();
        match pair.queue_len(resting).map_err(|error| error.to_string())? {
            0 if !pair.is_left(resting) => Ok(()),
            _ => self.change_to(pair.state().with_reset(resting)),
        }
    }

    /// Over all time, where datagrams wait.
    fn lost(&self) -> Result<u32, String> {
        let lost = self.pair.as_ref().map(|pair| pair.dropped(pair.state().active()));
        lost.unwrap_or(Ok(0)).map_err(|error| error.to_string())
    }

    /// What is there already needs no disk: a program that has crashed is started again when nothing can be written.
    fn write_down(&self, state: &PairState) -> Result<(), String> {
        let there = read_state(&self.file).ok().flatten();
        if there.as_ref() == Some(state) {
            return Ok(());
        }
        let error = match write_state(&self.file, state) {
            Ok(()) => return Ok(()),
            Err(error) => self.failed(&error),
        };
        if there.unwrap_or_else(|| PairState::new(self.addresses)).steers_like(state) {
            eprintln!("handoff: {error}");
            return Ok(());
        }
        Err(error)
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> String {
        format!("{}: {error}", self.file.display())
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
