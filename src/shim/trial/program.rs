//! The trial of `inject` and `listen-fds`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::files::notify_path;
use super::super::inject::Injector;
use super::super::notify::Notify;
use super::super::program::{Program, ProgramState, StartOptions};
use super::super::runner::early_end;
use super::bind_recorder::BindRecorder;
use super::listeners::Listeners;
use super::request::{self, OpenRequest};
use super::{RequestFate, StopReport, TrialReport, TrialRequest, TrialResources, Wrapper};
use crate::config::{Adapter, NotifySocket, StopSignal};
use crate::sys::process::{dies_of, name_of};

/// Polling interval for waiting connections.
const TICK: Duration = Duration::from_millis(5);
/// Time limit of a program to end after its stop signal.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// Maximum time that a shell spends on its children.
const SETTLES_WITHIN: Duration = Duration::from_millis(100);

/// A program in a trial.
struct Trial<'a> {
    request: &'a TrialRequest,
    program: &'a Arc<Program>,
    listeners: Arc<Listeners>,
    recorder: Arc<BindRecorder>,
    started_at: Instant,
}

/// The error says why the trial failed.
pub(super) fn attempt(request: &TrialRequest, stage: &TrialResources) -> Result<TrialReport, String> {
    let program = &stage.program;
    let injects = request.plan.adapter == Adapter::Inject;
    let listeners = stage.open(&request.plan, injects)?;
    let kind = request.plan.program.notify.unwrap_or(NotifySocket::Path);
    let notify = Notify::listen(&notify_path(&request.plan.own_path), kind, Arc::clone(program))?;
    let watch = BindRecorder::new(program);
    let given =
        if injects { Vec::new() } else { listeners.duplicates().map_err(|error| error.to_string())? };
    let start = StartOptions {
        listeners: given,
        inherited: Vec::new(),
        env: if request.offers_notify { vec![notify.variable()] } else { Vec::new() },
        seccomp: injects || request.watches,
        is_held: false,
        sockets: listeners.inodes(),
    };
    let trial = Trial { request, program, listeners, recorder: watch, started_at: Instant::now() };
    let works = trial.start(start).and_then(|()| if injects { trial.inject() } else { trial.listen_fds() });
    let others = trial.recorder.others();
    let (works, why) = match works {
        Ok(why) => (true, why),
        Err(why) => (false, why),
    };
    // A program sends `READY=1` right before or after it accepts.
    let ready = |known: &ProgramState| (known.ready || !known.lives()).then_some(known.ready);
    let patience = if works { READY_WITHIN } else { Duration::ZERO };
    let says_ready = program.wait(Some(patience), ready).unwrap_or(false);
    let ended = !works && program.wait(Some(Duration::ZERO), ProgramState::ended).is_some();
    let stopped = if works { Some(trial.stop()?) } else { None };
    Ok(TrialReport { works, why, ended, others, says_ready, stopped })
}

/// A program that accepts sends `READY=1` by then, if ever.
const READY_WITHIN: Duration = Duration::from_millis(300);

impl Trial<'_> {
    fn start(&self, start: StartOptions) -> Result<(), String> {
        let notify = self.program.start(start).map_err(|error| error.to_string())?;
        let Some(notify) = notify else { return Ok(()) };
        let (slots, watch) = (Arc::clone(&self.listeners), Arc::clone(&self.recorder));
        let injector = Injector::new(notify, slots, watch, false);
        let thread = std::thread::Builder::new().name("handoff-inject".to_owned());
        thread.spawn(move || injector.run()).map(drop).map_err(|error| error.to_string())
    }

    /// The error says why it does not work.
    fn inject(&self) -> Result<String, String> {
        let wanted: Vec<String> = self.request.plan.listen.iter().map(|(name, _)| name.to_string()).collect();
        if wanted.is_empty() {
            return Err(
                "the service file has no [listen] table, so there is nothing to put in its place".to_owned()
            );
        }
        let missing = || {
            let bound = self.recorder.bound();
            wanted.iter().filter(|name| !bound.contains(name)).cloned().collect::<Vec<_>>()
        };
        let arrived = self.program.wait(Some(self.time_left()), |known| {
            if missing().is_empty() {
                return Some(Ok(()));
            }
            (!known.lives()).then(|| Err(early_end(known)))
        });
        let (missing, others) = (missing(), self.told_others());
        let never = || {
            let missing = self.listeners.names(|name| missing.iter().any(|missing| missing == name));
            let limit = self.request.limit;
            match (self.recorder.refused().first(), others.is_empty()) {
                (Some((name, error)), _) => format!("it cannot get {name}: {error}"),
                (None, true) => {
                    format!("it was not seen to bind anything, so not {missing}, within {limit:?}")
                }
                (None, false) => {
                    format!("it has not bound {missing} within {limit:?}; {}", others.join("; "))
                }
            }
        };
        // Most programs end after an error of their bind: that is the reason.
        let refused = self.recorder.refused().into_iter().next();
        let refused = refused.map(|(name, error)| format!("it cannot get {name}: {error}; "));
        let because = |ended: String| format!("{}{ended}", refused.unwrap_or_default());
        match arrived.map(|arrived| arrived.map_err(because)) {
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
        if self.request.plan.listen.is_empty() {
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
        let gives = self.request.plan.adapter == Adapter::Inject;
        let _connections = self.listeners.connect()?;
        loop {
            let waiting = self.listeners.waiting()?;
            if waiting.is_empty() {
                return Ok(());
            }
            if let Some((name, _)) = self.recorder.refused().first().filter(|_| !gives) {
                return Err(format!(
                    "it does not take what it is given (LISTEN_FDS): it binds {name} by itself"
                ));
            }
            let ended = |known: &_| early_end_if_gone(known);
            if let Some(ended) = self.program.wait(Some(TICK), ended) {
                return Err(self.with_others(ended));
            }
            if self.time_left().is_zero() {
                let waiting = self.listeners.names(|name| waiting.iter().any(|waiting| waiting == name));
                let what =
                    format!("it has not accepted a connection at {waiting} within {:?}", self.request.limit);
                return Err(self.with_others(what));
            }
        }
    }

    /// What it has bound besides its listeners, as clauses.
    fn told_others(&self) -> Vec<String> {
        self.recorder.others().iter().map(ToString::to_string).collect()
    }

    fn with_others(&self, what: String) -> String {
        std::iter::once(what).chain(self.told_others()).collect::<Vec<_>>().join("; ")
    }

    /// Asks it to end, with a request in progress if one can be caught.
    fn stop(&self) -> Result<StopReport, String> {
        // Checked while it runs: a program stopped for its request may have signals blocked for a moment.
        let signal = self.request.plan.program.stop_signal.signal();
        let catches = self.program.tree().into_iter().any(|pid| !dies_of(pid, signal));
        let main = self.program.wait(Some(Duration::ZERO), |known| known.life.main());
        let first = main.and_then(name_of).unwrap_or_default();
        let (wrapper, deadly) = (self.wrapper(main), self.deadly());
        let request = self.request.request.as_ref();
        let target = request.and_then(|(name, text)| Some((self.listeners.tcp_address(name)?, text)));
        let under_way = target.and_then(|(address, text)| request::catch(address, text, self.program));
        self.program.learn(|known| known.watched = main.map(|pid| (pid, None)));
        let asked_at = Instant::now();
        let killed = self.program.end(STOP_WITHIN)?;
        let after = asked_at.elapsed();
        let exit = self.program.wait(Some(Duration::ZERO), |known| known.watched?.1);
        let request = under_way.map_or(RequestFate::NotSeen, OpenRequest::fate);
        let first_left = killed.iter().any(|killed| Some(killed.pid) == main);
        let left = killed.iter().filter(|killed| Some(killed.pid) != main).map(|killed| killed.name.clone());
        let left = left.collect();
        let killed = !killed.is_empty();
        Ok(StopReport { exit, killed, after, request, catches, first, first_left, left, wrapper, deadly })
    }

    /// The wrapper, if the first process does not serve.
    fn wrapper(&self, main: Option<u32>) -> Option<Wrapper> {
        let (main, servers) = (main?, self.program.servers());
        let is_wrapped = !servers.is_empty() && !servers.contains(&main);
        is_wrapped.then(|| Wrapper {
            servers: servers.iter().filter_map(|pid| name_of(*pid)).collect(),
            swallows: self.dies_of_stop_signal(main),
        })
    }

    /// A shell briefly blocks all signals when it handles its children, so one check is not enough.
    fn dies_of_stop_signal(&self, main: u32) -> bool {
        let signal = self.request.plan.program.stop_signal.signal();
        let until = Instant::now() + SETTLES_WITHIN;
        loop {
            if dies_of(main, signal) {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(TICK);
        }
    }

    /// The keys with a non-stop signal that would end the program.
    fn deadly(&self) -> Vec<String> {
        let program = &self.request.plan.program;
        let keys = [("drain_signal", program.drain_signal), ("reload_signal", program.reload_signal)];
        let getters = self.program.receivers();
        let ends = |signal: StopSignal| getters.iter().any(|pid| dies_of(*pid, signal.signal()));
        keys.into_iter()
            .filter(|(_, signal)| signal.is_some_and(ends))
            .map(|(key, _)| key.to_owned())
            .collect()
    }

    fn time_left(&self) -> Duration {
        self.request.limit.saturating_sub(self.started_at.elapsed())
    }

    /// Rounded for people.
    fn since_start(&self) -> Duration {
        Duration::from_millis(self.started_at.elapsed().as_millis() as u64)
    }
}

fn early_end_if_gone(known: &ProgramState) -> Option<String> {
    (!known.lives()).then(|| early_end(known))
}
