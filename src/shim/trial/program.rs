//! The trial of `inject` and `listen-fds`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::inject::Injector;
use super::super::notify::Notify;
use super::super::program::{Program, Start};
use super::super::runner::{END_WITHIN, early_end};
use super::listeners::Listeners;
use super::watch::Watch;
use super::{Order, Stopped, Tried};
use crate::config::{Adapter, NotifySocket};

/// How often it is looked whether connections wait.
const TICK: Duration = Duration::from_millis(5);

/// A program that is being tried.
struct Trial<'a> {
    order: &'a Order,
    program: &'a Arc<Program>,
    listeners: Arc<Listeners>,
    watch: Arc<Watch>,
    started_at: Instant,
}

/// The error says why it could not be tried.
pub(super) fn attempt(order: &Order, program: &Arc<Program>) -> Result<Tried, String> {
    let injects = order.plan.adapter == Adapter::Inject;
    let listeners = Arc::new(Listeners::open(&order.plan, injects)?);
    let kind = order.plan.program.notify.unwrap_or(NotifySocket::Path);
    let notify = Notify::listen(&order.plan.own_path.with_extension("notify"), kind, Arc::clone(program))?;
    let watch = Watch::new(program);
    let given =
        if injects { Vec::new() } else { listeners.duplicates().map_err(|error| error.to_string())? };
    let start = Start {
        listeners: given,
        inherited: Vec::new(),
        env: vec![notify.variable()],
        seccomp: injects || order.watches,
    };
    let trial = Trial { order, program, listeners, watch, started_at: Instant::now() };
    let works = trial.start(start).and_then(|()| if injects { trial.inject() } else { trial.listen_fds() });
    let others = trial.watch.others();
    let (works, why) = match works {
        Ok(why) => (true, why),
        Err(why) => (false, why),
    };
    // What it says comes after it accepts, or right before.
    let ready = |known: &super::super::program::Known| (known.ready || !known.lives).then_some(known.ready);
    let patience = if works { READY_WITHIN } else { Duration::ZERO };
    let says_ready = program.wait(Some(patience), ready).unwrap_or(false);
    let ended = !works && program.wait(Some(Duration::ZERO), |known| known.ended).is_some();
    let stopped = if works { Some(trial.stop()?) } else { None };
    Ok(Tried { works, why, ended, others, says_ready, stopped })
}

/// A program that accepts says that it is ready by then, if it ever does.
const READY_WITHIN: Duration = Duration::from_millis(300);

impl Trial<'_> {
    fn start(&self, start: Start) -> Result<(), String> {
        let notify = self.program.start(start).map_err(|error| error.to_string())?;
        let Some(notify) = notify else { return Ok(()) };
        let (slots, watch) = (Arc::clone(&self.listeners), Arc::clone(&self.watch));
        let injector = Injector::new(notify, slots, watch, false);
        let thread = std::thread::Builder::new().name("handoff-inject".to_owned());
        thread.spawn(move || injector.run()).map(drop).map_err(|error| error.to_string())
    }

    /// The error says why it does not work.
    fn inject(&self) -> Result<String, String> {
        let wanted: Vec<String> = self.order.plan.listen.iter().map(|(name, _)| name.to_string()).collect();
        if wanted.is_empty() {
            return Err(
                "the service file has no [listen] table, so there is nothing to put in its place".to_owned()
            );
        }
        let missing = || {
            let bound = self.watch.bound();
            wanted.iter().filter(|name| !bound.contains(name)).cloned().collect::<Vec<_>>()
        };
        let arrived = self.program.wait(Some(self.left()), |known| {
            if missing().is_empty() {
                return Some(Ok(()));
            }
            (!known.lives).then(|| Err(early_end(known)))
        });
        let (missing, others) = (missing(), self.watch.others());
        let never = || {
            let missing = self.listeners.names(|name| missing.iter().any(|missing| missing == name));
            let limit = self.order.limit;
            match (self.watch.refused().first(), others.is_empty()) {
                (Some((name, error)), _) => format!("it cannot get {name}: {error}"),
                (None, true) => {
                    format!("it was not seen to bind anything, so not {missing}, within {limit:?}")
                }
                (None, false) => {
                    format!("it has not bound {missing} within {limit:?}; {}", others.join("; "))
                }
            }
        };
        match arrived {
            Some(Ok(())) => {}
            Some(Err(ended)) if others.is_empty() => return Err(ended),
            Some(Err(ended)) => return Err(format!("{ended}; {}", others.join("; "))),
            None => return Err(never()),
        }
        self.accepts()?;
        Ok(format!(
            "it binds {}, gets the listener in its place, and accepts, {:?} after its start",
            self.listeners.names(|_| true),
            self.since_start()
        ))
    }

    fn listen_fds(&self) -> Result<String, String> {
        if self.order.plan.listen.is_empty() {
            return Err("the service file has no [listen] table, so there is nothing to give".to_owned());
        }
        self.accepts()?;
        Ok(format!(
            "it accepts on the given {}, {:?} after its start",
            self.listeners.names(|_| true),
            self.since_start()
        ))
    }

    /// Waits until it has accepted a connection at each listener.
    fn accepts(&self) -> Result<(), String> {
        let gives = self.order.plan.adapter == Adapter::Inject;
        let _connections = self.listeners.connect()?;
        loop {
            let waiting = self.listeners.waiting()?;
            if waiting.is_empty() {
                return Ok(());
            }
            if let Some((name, _)) = self.watch.refused().first().filter(|_| !gives) {
                return Err(format!(
                    "it does not take what it is given (LISTEN_FDS): it binds {name} by itself"
                ));
            }
            let ended = |known: &_| early_end_if_gone(known);
            if let Some(ended) = self.program.wait(Some(TICK), ended) {
                return Err(self.with_others(ended));
            }
            if self.left().is_zero() {
                let waiting = self.listeners.names(|name| waiting.iter().any(|waiting| waiting == name));
                let what =
                    format!("it has not accepted a connection at {waiting} within {:?}", self.order.limit);
                return Err(self.with_others(what));
            }
        }
    }

    fn with_others(&self, what: String) -> String {
        std::iter::once(what).chain(self.watch.others()).collect::<Vec<_>>().join("; ")
    }

    fn stop(&self) -> Result<Stopped, String> {
        let asked_at = Instant::now();
        self.program.end(END_WITHIN)?;
        let after = asked_at.elapsed();
        let exit = self.program.wait(Some(Duration::ZERO), |known| Some(known.ended)).flatten();
        Ok(Stopped { exit, killed: after >= END_WITHIN, after })
    }

    fn left(&self) -> Duration {
        self.order.limit.saturating_sub(self.started_at.elapsed())
    }

    /// As a person wants to read it.
    fn since_start(&self) -> Duration {
        Duration::from_millis(self.started_at.elapsed().as_millis() as u64)
    }
}

fn early_end_if_gone(known: &super::super::program::Known) -> Option<String> {
    (!known.lives).then(|| early_end(known))
}
