//! Runs the program: starts it, waits until it is ready, and drains, seals and resumes it.
//!
//! In overlap mode the program has its own slot, and the daemon steers. In exclusive mode the shims of a service share
//! two slots, and the holder of the data lock steers: sealing lets new connections wait at the other slot, and the next
//! program starts there, whichever version it is.

mod binding;
mod draining;
mod search;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handoff_protocol::message::Mode;

use super::LEFT;
use super::current_listeners::{CurrentListeners, ProgramRecorder};
use super::files::{ProgramLock, Trace, notify_path};
use super::inject::Injector;
use super::listeners::Listeners;
use super::notify::Notify;
use super::own;
use super::program::{Program, ProgramState, StartOptions};
use super::quiescence::QuiescenceLimits;
use super::shim_config::ShimConfig;
use crate::config::{Adapter, DrainCondition};
use crate::crash_points::crash_point;
use crate::service::{BoxError, Drain, Seal, Server};
use crate::slots::census::Census;
use crate::slots::peers::has_connected;

/// Polling interval in the gap.
const TICK: Duration = Duration::from_millis(5);
/// Polling interval before the gap: a survey of all connections takes milliseconds of kernel time on a large machine.
const DRAIN_TICK: Duration = Duration::from_millis(50);
/// A queue that was not empty and did not shrink for this long has no acceptor.
const ACCEPTS_WITHIN: Duration = Duration::from_millis(200);
/// The same for a program with connections: it may be serving one, and accept the next one afterwards.
const BUSY_ACCEPTS_WITHIN: Duration = Duration::from_secs(1);
/// Time limits before the program ends while new connections wait.
const IN_GAP: QuiescenceLimits = QuiescenceLimits {
    // The queue is accepted one connection after the other, and each may take a while.
    settle: Duration::from_secs(3),
    clean: Duration::from_millis(30),
    some: Duration::from_millis(150),
    loose: Duration::from_millis(500),
    held_back: Duration::from_secs(3),
    connections: Duration::from_secs(1),
};
/// The same if requests may be cut: clients wait in the meantime.
const CUT_IN_GAP: QuiescenceLimits = QuiescenceLimits { held_back: Duration::from_secs(1), ..IN_GAP };
/// The same while another program already serves, so no client waits.
const LIMITS_WHEN_REPLACED: QuiescenceLimits = QuiescenceLimits {
    clean: Duration::from_millis(300),
    some: Duration::from_millis(600),
    loose: Duration::from_millis(1500),
    connections: Duration::ZERO,
    ..IN_GAP
};

/// Maximum pause within a response, unless the service file sets it: shorter in exclusive mode, where clients wait.
fn answer_pause(mode: Mode) -> Duration {
    Duration::from_millis(if mode == Mode::Exclusive { 100 } else { 1000 })
}

/// The program of a shim, and everything needed to run it.
pub(super) struct Runner {
    config: ShimConfig,
    mode: Mode,
    program: Arc<Program>,
    listeners: Arc<Listeners>,
    census: Census,
    notify: Option<Notify>,
    current_listeners: Option<Arc<Injector>>,
    trace: Trace,
    lock: Option<ProgramLock>,
    /// Whether this process is dismissed before it was committed.
    refused: bool,
    /// Whether a seal has failed. A second seal then ends the program in any case.
    has_failed: bool,
    /// How often it could not be stopped in this drain.
    failed_stops: u8,
    /// The role of this process, for crash points.
    role: &'static str,
}

impl Runner {
    /// Creates the runner; starts nothing.
    pub(super) fn new(
        config: ShimConfig,
        mode: Mode,
        program: Arc<Program>,
        listeners: Listeners,
    ) -> Result<Self, String> {
        let notify = match config.program.notify {
            Some(kind) => Some(Notify::listen(&notify_path(&config.own_path), kind, Arc::clone(&program))?),
            None => None,
        };
        let pause = config.program.answer_pause_ms.map_or(answer_pause(mode), Duration::from_millis);
        let census = Census::new(&config.addresses()?)
            .map_err(|error| format!("cannot ask for sockets: {error}"))?
            .with_pauses(pause)
            .asking();
        let trace_path = program.trace_path();
        let trace = Trace::leave(&trace_path).map_err(|error| own::own_error(&trace_path, "made", &error))?;
        let listeners = Arc::new(listeners);
        let (swap, lock, role) = (None, None, "successor");
        let (refused, has_failed) = (false, false);
        Ok(Self {
            config,
            mode,
            program,
            listeners,
            census,
            notify,
            current_listeners: swap,
            trace,
            lock,
            refused,
            has_failed,
            failed_stops: 0,
            role,
        })
    }

    /// The program.
    pub(super) fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// Takes over from an earlier program. For the holder of the data lock.
    pub(super) fn take_over(&mut self) -> Result<(), String> {
        let mut lock = self.opened_lock()?;
        lock.take(|| self.program.tree())
            .map_err(|error| format!("cannot lock out an earlier program: {error}"))?;
        self.lock = Some(lock);
        self.note_program();
        self.listeners.take_over()?;
        // A program that is held in its first bind was started before its slot was known.
        self.listeners.prepare_places();
        self.program.serves_at(self.listeners.inodes());
        Ok(())
    }

    /// The program that was started before must share it, so this is the same open file.
    fn opened_lock(&mut self) -> Result<ProgramLock, String> {
        let path = self.config.lock_path();
        let opened = self.lock.take().map_or_else(|| ProgramLock::open(path.clone()), Ok);
        opened.map_err(|error| own::own_error(&path, "opened", &error))
    }

    /// Starts the program. With `park` it is held in its first bind until [`Runner::release`].
    pub(super) fn start(&mut self, park: bool) -> Result<(), String> {
        self.listeners.prepare_places();
        let injects = self.config.adapter == Adapter::Inject;
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
        if self.mode == Mode::Exclusive {
            self.lock = Some(self.opened_lock()?);
        }
        if let Some(lock) = &self.lock {
            inherited.push(lock.duplicate().map_err(error)?);
        }
        let sockets = self.listeners.inodes();
        let start = StartOptions { listeners, inherited, env, seccomp: injects, is_held: park, sockets };
        crash_point!("shim/{}/start", self.role);
        let notify = self.program.start(start).map_err(error)?;
        crash_point!("shim/{}/started", self.role);
        self.note_program();
        if let Some(notify) = notify {
            let seen = Arc::new(ProgramRecorder(Arc::clone(&self.program)));
            let slots =
                Arc::new(CurrentListeners { listeners: Arc::clone(&self.listeners), role: self.role });
            let injector = Arc::new(Injector::new(notify, slots, seen, park));
            let running = Arc::clone(&injector);
            std::thread::Builder::new()
                .name("handoff-inject".to_owned())
                .spawn(move || running.run())
                .map_err(error)?;
            self.current_listeners = Some(injector);
        }
        Ok(())
    }

    /// Records the program for the next shim, which may not be able to see its processes.
    fn note_program(&self) {
        let first = self.program.wait(Some(Duration::ZERO), |known| known.first.clone());
        if let Some((lock, first)) = self.lock.as_ref().zip(first)
            && let Err(error) = lock.note(first, &self.program.trace_path())
        {
            log_line!("cannot record the program for the next shim: {error}");
        }
    }

    /// Releases a held program.
    pub(super) fn release(&self) {
        self.program.learn(|known| known.is_held = false);
        if let Some(swap) = &self.current_listeners {
            swap.release();
        }
    }

    /// Waits until the program is held in its first bind, or is found not to reach it.
    pub(super) fn await_parked(&self) -> Result<(), String> {
        self.await_binds(1)
    }

    /// Waits until the program is ready, as far as it reports that.
    pub(super) fn await_ready(&self) -> Result<(), String> {
        if self.config.is_oneshot {
            return Ok(());
        }
        let binds = if self.config.adapter == Adapter::Inject { self.config.listen.len() } else { 0 };
        self.await_binds(binds)?;
        self.await_word()?;
        crash_point!("shim/{}/ready", self.role);
        self.listeners.lengthen_queues();
        self.listeners.report_lost();
        self.program.serves();
        Ok(())
    }

    fn has_connections(&mut self) -> Result<bool, BoxError> {
        let tree = || self.program.tree();
        Ok(!self.census.is_empty(tree)? || has_connected(&self.listeners.addresses, tree)?)
    }

    /// Whether the program has no connections and accepts none. A program that was never committed has no clients,
    /// except as a canary.
    fn accepts_nothing(&mut self) -> Result<bool, BoxError> {
        let idle = self.listeners.left_waiting()? > 0 && self.census.is_empty(|| self.program.tree())?;
        Ok(idle && !self.accepts()?)
    }

    /// Whether the program accepts waiting connections. If the queue is always full, new connections of the program
    /// show that.
    fn accepts(&mut self) -> Result<bool, BoxError> {
        let began = Instant::now();
        let mut waiting = self.listeners.waiting()?;
        let mut before = None;
        while waiting.iter().any(|waiting| *waiting > 0) {
            let held = self.census.accepted(|| self.program.tree())?;
            let first = before.get_or_insert_with(|| held.clone());
            if !held.is_subset(first) {
                return Ok(true);
            }
            // A program without connections at the first check may have been between two of them.
            let limit = if first.is_empty() { ACCEPTS_WITHIN } else { BUSY_ACCEPTS_WITHIN };
            if began.elapsed() > limit {
                return Ok(false);
            }
            std::thread::sleep(TICK);
            let now = self.listeners.waiting()?;
            if now.iter().zip(&waiting).any(|(now, before)| now < before) {
                return Ok(true);
            }
            waiting = now;
        }
        Ok(true)
    }

    /// Ends the program; `grant` is its time from the stop signal on.
    fn end(&mut self, grant: Duration) -> Result<(), BoxError> {
        crash_point!("shim/incumbent/end");
        let (program, census, listeners) = (&self.program, &mut self.census, &self.listeners);
        let steer = || {
            if let Err(error) = listeners.steer_as_it_ends(|| program.lives()) {
                log_line!("a foreign socket may get new connections until the program has ended: {error}");
            }
        };
        std::thread::scope(|scope| {
            if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, steer) {
                log_line!("a foreign socket may get new connections until the program has ended: {error}");
            }
            // A program that handles the signal answers what it still reads; one that ends at once must not begin
            // anything.
            program.end_meanwhile(grant, || census.release_held_back())
        })?;
        crash_point!("shim/incumbent/ended");
        self.current_listeners = None;
        if let Some(lock) = self.lock.take() {
            lock.forget(&self.program.trace_path());
        }
        Ok(())
    }

    /// Lets the program finish its work.
    fn finish(&mut self, cut: bool) -> Result<(), BoxError> {
        let idle = self.mode == Mode::Overlap && self.refused && self.accepts_nothing()?;
        match self.mode {
            Mode::Exclusive => self.finish_alone(cut)?,
            Mode::Overlap if idle => {}
            Mode::Overlap => self.await_the_moment(LIMITS_WHEN_REPLACED, false),
        }
        Ok(())
    }

    /// Lets new connections wait at the other slot, and the program finish its work. If the program does not accept,
    /// they stay where they are for the next one; without connections it has nothing to finish.
    fn finish_alone(&mut self, cut: bool) -> Result<(), BoxError> {
        let switches = self.accepts()?;
        if !switches && !self.has_connections()? {
            return Ok(());
        }
        if switches {
            crash_point!("shim/incumbent/switch");
            self.listeners.switch()?;
            crash_point!("shim/incumbent/switched");
        }
        let limits = if cut { CUT_IN_GAP } else { IN_GAP };
        let grace = Duration::from_millis(self.config.answer_grace_ms.unwrap_or(0));
        self.await_the_moment(QuiescenceLimits { settle: limits.settle + grace, ..limits }, !switches);
        Ok(())
    }
}

impl Server for Runner {
    fn drain(&mut self, drain: Drain) -> Result<(), BoxError> {
        self.role = "incumbent";
        self.listeners.update_order();
        self.refused = drain.is_refused();
        self.program.signal_drain();
        self.forget_waits();
        self.failed_stops = 0;
        let began = Instant::now();
        loop {
            let finished = match (self.mode, self.config.program.drain) {
                (_, DrainCondition::Nothing) => true,
                (Mode::Overlap, _) if self.refused && self.accepts_nothing()? => true,
                (Mode::Overlap, DrainCondition::Connections) => {
                    self.listeners.left_waiting()? == 0 && !self.has_connections()?
                }
                (Mode::Overlap, DrainCondition::Requests | DrainCondition::LongRequests) => {
                    self.listeners.left_waiting()? == 0 && !self.has_long_request(began.elapsed())?
                }
                (Mode::Exclusive, _) => self.has_waited_enough(began.elapsed())?,
            };
            // The supervisor ends the drain of a committed process. For a dismissed one it may be gone.
            let is_over = self.refused && began.elapsed() >= drain.grace();
            if finished || is_over {
                return Ok(());
            }
            if drain.wait(DRAIN_TICK) {
                self.report_end();
                return Ok(());
            }
        }
    }

    fn seal(&mut self, seal: Seal) -> Result<(), BoxError> {
        self.role = "incumbent";
        // Reported again below.
        let _ = std::fs::remove_file(self.config.own_path.with_extension(LEFT));
        match self.finish(seal.may_cut()) {
            Err(error) if self.has_failed => {
                log_line!("ending the program although {error}");
            }
            finished => {
                self.has_failed = finished.is_err();
                finished?;
            }
        }
        self.end(seal.grant().unwrap_or(self.config.stop_grace))?;
        // Late arrivals would wait forever.
        self.listeners.dismiss_left()?;
        self.listeners.report_lost();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), BoxError> {
        self.role = "incumbent";
        self.has_failed = false;
        match self.mode {
            Mode::Overlap if self.program.is_whole() => return Ok(()),
            Mode::Overlap => self.end(self.config.stop_grace)?,
            Mode::Exclusive if self.listeners.is_where_connections_are() && self.program.is_whole() => {
                self.listeners.steer_again();
                return Ok(());
            }
            Mode::Exclusive => {
                self.end(self.config.stop_grace)?;
                self.take_over()?;
            }
        }
        self.start(false)?;
        // The daemon counts this process as silent once it has said that it cannot resume.
        self.await_ready().map_err(|error| super::end_unfit(&self.program, error))?;
        Ok(())
    }
}

pub(super) fn early_end(known: &ProgramState) -> String {
    let ended = known.ended().map_or_else(|| "ended".to_owned(), |exit| exit.to_string());
    match known.status.as_str() {
        "" => format!("the program {ended} before it was ready"),
        status => format!("the program {ended} before it was ready; its last status: {status}"),
    }
}
