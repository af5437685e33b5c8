//! The listeners of a shim: those of its own slot, or in exclusive mode the two slots that it shares with the other shims of the service.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handoff_protocol::ids::ListenerName;
use handoff_protocol::message::Mode;

use super::plan::Plan;
use crate::config::ListenAddress;
use crate::slots::{Both, Handshakes, Pair, PairState, Place, Side, SlotError, lengthen_queue, waiting_at};

/// A handshake that was under way at a switch belongs to the old slot. In the gap it is waited for so long at the most.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// Nobody can see whether a datagram that was read has been answered: the program is given so long for it, in the gap.
const ANSWER: Duration = Duration::from_millis(100);

/// And so long if it is busy. Then that may be what it is busy with.
const BUSY_ANSWER: Duration = Duration::from_secs(1);

/// The file of the state of the pair, in the directory that the shims of a service share.
const STATE: &str = "pair";

/// The listeners, by name.
pub(super) struct Listeners {
    names: Vec<ListenerName>,
    addresses: Vec<ListenAddress>,
    slots: Slots,
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
                let shared =
                    Shared { pair: None, parts, file, used: Side::A, switched: None, lost_before: 0 };
                Slots::Shared(Mutex::new(shared))
            }
        };
        Ok(Self { names, addresses, slots })
    }

    /// For the holder of the data lock: from now on new connections go where the file of the state says, and the program is to
    /// be started there. What waits where nobody will ever accept is reset.
    pub(super) fn take_over(&self) -> Result<(), String> {
        let Slots::Shared(shared) = &self.slots else { return Ok(()) };
        lock(shared).take_over()
    }

    /// The listeners that a program is to get that is started now.
    pub(super) fn current(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        self.names.iter().map(|name| Ok((name.to_string(), self.current_of(name.as_str())?))).collect()
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

    /// The program is about to be started.
    pub(super) fn note_places(&self) {
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
                let mut shared = lock(shared);
                let Some(pair) = &mut shared.pair else { return Ok(()) };
                let state = pair.state().clone();
                pair.apply(state).map(drop).map_err(told)
            }
        }
    }

    /// From now on new connections wait at the other slot.
    pub(super) fn switch(&self) -> Result<(), String> {
        let Slots::Shared(shared) = &self.slots else { return Ok(()) };
        let mut shared = lock(shared);
        let Some(state) = shared.pair.as_ref().map(|pair| pair.state().clone()) else { return Ok(()) };
        if state.active() != shared.used {
            return Ok(());
        }
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
                .map(|(address, fd)| waiting_at(address, fd))
                .sum::<Result<_, _>>()
                .map_err(told),
            Slots::Shared(shared) => {
                let shared = lock(shared);
                shared.pair.as_ref().map_or(Ok(0), |pair| pair.queue_len(shared.used)).map_err(told)
            }
        }
    }

    /// Whether nobody is on the way to the old slot any more, and datagrams that the program has read are answered.
    pub(super) fn has_settled(&self, is_busy: impl Fn() -> bool) -> bool {
        let Slots::Shared(shared) = &self.slots else { return true };
        let Some(handshakes) = &mut lock(shared).switched else { return true };
        let answers = || handshakes.age() < ANSWER || handshakes.age() < BUSY_ANSWER && is_busy();
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
        lock(shared).reset_resting()
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
        let state = match fs::read(&self.file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| self.failed(&error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => PairState::new(self.parts.len()),
            Err(error) => return Err(self.failed(&error)),
        };
        if self.pair.is_none() {
            let pair = Pair::new(std::mem::take(&mut self.parts), state.clone());
            self.pair = Some(pair.map_err(|error| error.to_string())?);
        }
        self.change_to(state)?;
        self.used = self.pair.as_ref().map_or(Side::A, |pair| pair.state().active());
        self.switched = None;
        self.lost_before = self.lost()?;
        self.reset_resting()
    }

    /// What is wanted is written down before it is done: whoever comes next does it again, which changes nothing.
    fn change_to(&mut self, wanted: PairState) -> Result<(), String> {
        self.write_down(&wanted)?;
        let Some(pair) = &mut self.pair else { return Ok(()) };
        let reached = pair.apply(wanted.clone()).map_err(|error| error.to_string())?.clone();
        if reached == wanted { Ok(()) } else { self.write_down(&reached) }
    }

    fn reset_resting(&mut self) -> Result<(), String> {
        let Some(pair) = &self.pair else { return Ok(()) };
        let resting = pair.state().active().other();
        match pair.queue_len(resting).map_err(|error| error.to_string())? {
            0 => Ok(()),
            _ => self.change_to(pair.state().with_reset(resting)),
        }
    }

    /// Over all time, where datagrams wait.
    fn lost(&self) -> Result<u32, String> {
        let lost = self.pair.as_ref().map(|pair| pair.dropped(pair.state().active()));
        lost.unwrap_or(Ok(0)).map_err(|error| error.to_string())
    }

    /// It outlives processes, not the machine: no need for the disk.
    fn write_down(&self, state: &PairState) -> Result<(), String> {
        let beside = self.file.with_extension("new");
        let written =
            serde_json::to_vec(state).map_err(io::Error::other).and_then(|text| fs::write(&beside, text));
        written.and_then(|()| fs::rename(&beside, &self.file)).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> String {
        format!("{}: {error}", self.file.display())
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
