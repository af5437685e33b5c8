//! Runs the program: starts it, finds out when it is ready, and drains, seals and resumes it.
//!
//! In overlap mode the program has a slot of its own, and the daemon steers. In exclusive mode the shims of a service share two
//! slots, and whoever holds the data lock decides: who seals lets new connections wait at the other slot, and the next
//! program starts there, whichever it is.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handoff_protocol::message::Mode;

use super::files::{ProgramLock, Trace};
use super::inject::Injector;
use super::listeners::Listeners;
use super::notify::Notify;
use super::plan::Plan;
use super::program::{Known, Program, Start};
use super::swap::{Seen, Swap};
use crate::config::{Adapter, DrainFor};
use crate::crash_points::crash_point;
use crate::service::{BoxError, Drain, Seal, Server};
use crate::slots::census::Census;

/// How often it is looked in the gap whether the program has finished something.
const TICK: Duration = Duration::from_millis(10);
/// How often before: to look at all connections takes the kernel some milliseconds on a large machine.
const DRAIN_TICK: Duration = Duration::from_millis(50);
/// A request that is as old is a long one, which is waited for before the gap.
const LONG_REQUEST_MS: u64 = 100;
/// A queue that was never empty for so long is one that nobody accepts from.
const ACCEPTS_WITHIN: Duration = Duration::from_millis(200);
/// How long short requests may take in the gap.
const FINISH_WITHIN: Duration = Duration::from_secs(4);
/// How long the program may take to end in order, and then is killed. With the one above shorter than the limit of a seal.
pub(super) const END_WITHIN: Duration = Duration::from_secs(5);
/// A program that has not bound its listeners by then never will.
const BIND_WITHIN: Duration = Duration::from_secs(60);

/// The program of a shim, with all that is needed to run it.
pub(super) struct Runner {
    plan: Plan,
    mode: Mode,
    program: Arc<Program>,
    listeners: Arc<Listeners>,
    census: Census,
    notify: Option<Notify>,
    swap: Option<Arc<Injector>>,
    trace: Trace,
    lock: Option<ProgramLock>,
    /// Which party this process is for the crash tests.
    party: &'static str,
}

impl Runner {
    /// Nothing is started yet.
    pub(super) fn new(
        plan: Plan,
        mode: Mode,
        program: Arc<Program>,
        listeners: Listeners,
    ) -> Result<Self, String> {
        let notify_path = plan.own_path.with_extension("notify");
        let notify = match plan.program.notify {
            Some(kind) => Some(Notify::listen(&notify_path, kind, Arc::clone(&program))?),
            None => None,
        };
        let census =
            Census::new(&plan.addresses()?).map_err(|error| format!("cannot ask for sockets: {error}"))?;
        let trace_path = plan.own_path.with_extension("tree");
        let trace = Trace::leave(&trace_path)
            .map_err(|error| format!("cannot create {}: {error}", trace_path.display()))?;
        let listeners = Arc::new(listeners);
        let (swap, lock, party) = (None, None, "successor");
        Ok(Self { plan, mode, program, listeners, census, notify, swap, trace, lock, party })
    }

    /// Takes over from whoever ran the program before: for the holder of the data lock.
    pub(super) fn take_over(&mut self) -> Result<(), String> {
        let lock = ProgramLock::take(&self.plan.shared_dir.join("program.lock"));
        self.lock = Some(lock.map_err(|error| format!("cannot lock out an earlier program: {error}"))?);
        self.listeners.take_over()
    }

    /// Starts the program. With `park` it is held where it binds, until [`Runner::release`].
    pub(super) fn start(&mut self, park: bool) -> Result<(), String> {
        self.listeners.note_places();
        let injects = self.plan.adapter == Adapter::Inject;
        let error = |error: io::Error| error.to_string();
        let mut listeners = match injects {
            true => Vec::new(),
            false => self.listeners.current().map_err(error)?,
        };
        let mut env = Vec::new();
        if let Some(notify) = &self.notify {
            env.push(notify.variable());
            listeners.extend(notify.stored().map_err(error)?);
        }
        let mut inherited = vec![self.trace.duplicate().map_err(error)?];
        if let Some(lock) = &self.lock {
            inherited.push(lock.duplicate().map_err(error)?);
        }
        let start = Start { listeners, inherited, env, seccomp: injects };
        crash_point!("shim/{}/start", self.party);
        let notify = self.program.start(start).map_err(error)?;
        crash_point!("shim/{}/started", self.party);
        if let Some(notify) = notify {
            let seen = Arc::new(Seen(Arc::clone(&self.program)));
            let slots = Arc::new(Swap { listeners: Arc::clone(&self.listeners), party: self.party });
            let injector = Arc::new(Injector::new(notify, slots, seen, park));
            let running = Arc::clone(&injector);
            std::thread::Builder::new()
                .name("handoff-inject".to_owned())
                .spawn(move || running.run())
                .map_err(error)?;
            self.swap = Some(injector);
        }
        Ok(())
    }

    /// Lets a parked program go on.
    pub(super) fn release(&self) {
        if let Some(swap) = &self.swap {
            swap.release();
        }
    }

    /// Waits until the program waits in its first bind, or is found not to come to it.
    pub(super) fn await_parked(&self) -> Result<(), String> {
        let parked = self.program.wait(Some(BIND_WITHIN), |known| match known.lives {
            true => (!known.bound.is_empty()).then_some(Ok(())),
            false => Some(Err(early_end(known))),
        });
        parked.unwrap_or_else(|| Err(self.never_bound()))
    }

    /// Waits until the program is ready, as far as it can say so itself.
    pub(super) fn await_ready(&self) -> Result<(), String> {
        let binds = if self.plan.adapter == Adapter::Inject { self.plan.listen.len() } else { 0 };
        let bound = self.program.wait((binds > 0).then_some(BIND_WITHIN), |known| match known.lives {
            false => Some(Err(early_end(known))),
            true => (known.bound.len() >= binds).then_some(Ok(())),
        });
        bound.unwrap_or_else(|| Err(self.never_bound()))?;
        let says = self.plan.program.notify.is_some();
        let ready = self.program.wait(None, |known| match known.lives {
            false => Some(Err(early_end(known))),
            true => (!says || known.ready).then_some(Ok(())),
        });
        ready.unwrap_or(Ok(()))?;
        crash_point!("shim/{}/ready", self.party);
        self.listeners.lengthen_queues();
        self.listeners.tell_of_lost();
        self.program.learn(|known| known.serves = true);
        Ok(())
    }

    fn never_bound(&self) -> String {
        let missing = |known: &Known| {
            let listen = self.plan.listen.iter().filter(|(name, _)| !known.bound.contains(&name.to_string()));
            Some((
                listen.map(|(name, address)| format!("{name} = {address}")).collect::<Vec<_>>(),
                known.status.clone(),
            ))
        };
        let (missing, seen) = self.program.wait(None, missing).unwrap_or_default();
        let seen = if seen.is_empty() { "it was not seen to bind anything".to_owned() } else { seen };
        format!(
            "the program has not bound {} within {BIND_WITHIN:?}: {seen}; does it listen elsewhere, over io_uring, or is it a 32-bit \
             program? `handoff doctor` tries it out",
            missing.join(", ")
        )
    }

    /// Whether the program has finished what is to be waited for before it is asked to end.
    fn is_finished(&mut self) -> Result<bool, BoxError> {
        if self.listeners.left_waiting()? > 0 {
            return Ok(false);
        }
        let tree = || self.program.tree();
        Ok(match self.plan.program.drain {
            DrainFor::Nothing => true,
            DrainFor::Connections => self.census.is_empty(tree)?,
            DrainFor::Requests => !self.census.is_at_work(tree)?,
        })
    }

    /// Whether the program takes what waits for it.
    fn accepts(&self) -> Result<bool, BoxError> {
        let until = Instant::now() + ACCEPTS_WITHIN;
        while self.listeners.left_waiting()? > 0 {
            if Instant::now() > until {
                return Ok(false);
            }
            std::thread::sleep(TICK);
        }
        Ok(true)
    }

    fn end(&mut self) -> Result<(), BoxError> {
        crash_point!("shim/incumbent/end");
        self.program.end(END_WITHIN)?;
        crash_point!("shim/incumbent/ended");
        self.swap = None;
        self.lock = None;
        Ok(())
    }

    /// New connections wait at the other slot from now on; the program finishes what it has. One that accepts nothing finishes
    /// nothing: then they go on waiting where they are, for the next one.
    fn finish(&mut self, cut: bool) -> Result<(), BoxError> {
        if !self.accepts()? {
            return Ok(());
        }
        crash_point!("shim/incumbent/switch");
        self.listeners.switch()?;
        crash_point!("shim/incumbent/switched");
        let until = Instant::now() + FINISH_WITHIN;
        loop {
            // Whoever was on the way at the switch comes to the old slot.
            if self.listeners.has_settled(|| self.program.is_busy()) && self.holds_if(Self::is_finished)? {
                return Ok(());
            }
            match (Instant::now() > until, cut) {
                (false, _) => std::thread::sleep(TICK),
                (true, true) => return Ok(()),
                (true, false) => {
                    return Err(format!("requests are not finished after {FINISH_WITHIN:?}").into());
                }
            }
        }
    }
}

impl Runner {
    /// Clients may still use connections that the program will never close by itself. A moment in which none of them waits for an
    /// answer is the best one to end it.
    fn await_a_rest(&mut self) -> Result<(), BoxError> {
        let until = Instant::now() + FINISH_WITHIN;
        while self.plan.program.drain != DrainFor::Nothing && !self.holds_if(Self::is_at_rest)? {
            if Instant::now() > until {
                eprintln!(
                    "handoff: requests were under way at each moment of {FINISH_WITHIN:?}; the program may cut some"
                );
                break;
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn is_at_rest(&mut self) -> Result<bool, BoxError> {
        Ok(self.listeners.left_waiting()? == 0 && !self.census.is_at_work(|| self.program.tree())?)
    }

    /// Whether the program has come to a point, and holds it there if it has. Between a look and the stop signal a client may ask
    /// again, and its request would be begun and cut. So it is looked at once more while nothing of it runs.
    fn holds_if(&mut self, point: impl Fn(&mut Self) -> Result<bool, BoxError>) -> Result<bool, BoxError> {
        let is_there = point(self)?;
        if !is_there || self.plan.program.drain == DrainFor::Nothing {
            return Ok(is_there);
        }
        let found = if self.program.hold() { point(self) } else { Ok(false) };
        if !matches!(found, Ok(true)) {
            self.program.let_go();
        }
        found
    }
}

impl Server for Runner {
    fn drain(&mut self, drain: Drain) -> Result<(), BoxError> {
        self.party = "incumbent";
        loop {
            let finished = match (self.mode, self.plan.program.drain) {
                (_, DrainFor::Nothing) => true,
                (Mode::Overlap, _) => self.is_finished()?,
                // It still gets new ones, so there are always some that are young.
                (Mode::Exclusive, _) => !self.census.is_busy_for(LONG_REQUEST_MS, || self.program.tree())?,
            };
            if finished || drain.wait(DRAIN_TICK) {
                return Ok(());
            }
        }
    }

    fn seal(&mut self, seal: Seal) -> Result<(), BoxError> {
        self.party = "incumbent";
        match self.mode {
            Mode::Exclusive => self.finish(seal.may_cut())?,
            Mode::Overlap => self.await_a_rest()?,
        }
        self.end()?;
        // What came too late for the program would wait for ever.
        self.listeners.dismiss_left()?;
        self.listeners.tell_of_lost();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), BoxError> {
        self.party = "incumbent";
        match self.mode {
            Mode::Overlap if self.program.is_whole() => return Ok(()),
            Mode::Overlap => self.end()?,
            Mode::Exclusive if self.listeners.is_where_connections_are() && self.program.is_whole() => {
                return Ok(());
            }
            Mode::Exclusive => {
                self.end()?;
                self.take_over()?;
            }
        }
        self.start(false)?;
        Ok(self.await_ready()?)
    }
}

pub(super) fn early_end(known: &Known) -> String {
    let ended = known.ended.map_or_else(|| "ended".to_owned(), |exit| exit.to_string());
    match known.status.as_str() {
        "" => format!("the program {ended} before it was ready"),
        status => format!("the program {ended} before it was ready; its last status: {status}"),
    }
}
