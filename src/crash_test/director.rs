//! The harness end of the crash points: each process of a run waits at each of its points for an answer of the
//! director.
//!
//! One thread answers, so events at two points are ordered, even in different processes. While a process waits, its
//! victim (itself or another one) is killed or stopped, and that has taken effect before the answer.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Error;
use super::fault::{Fault, Injection, ProcessRole};
use crate::crash_points::Instruction;
use crate::sys::channel::Channel;
use crate::sys::clock::as_ms;
use crate::sys::event_fd::{event_fd, sleep, wake};
use crate::sys::poll::{PollFd, PollFlags, found, poll};
use crate::sys::process::{Signal, kill, pidfd_open};
use crate::sys::readable::is_readable_by;
use crate::sys::socket::{self, AddressFamily, SockFlag, SockType, bind_path, listen};

/// A signal that has no effect after this long never has one.
const SIGNAL_LIMIT: Duration = Duration::from_secs(5);

/// Durations of the faults.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lengths {
    /// Duration of [`Fault::Stop`].
    pub(super) freeze: Duration,
    /// Duration of [`Fault::Stall`] and [`Fault::Hold`].
    pub(super) stall: Duration,
}

/// A point that a process has reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReachedPoint {
    pub(super) point: String,
    /// The processes that were alive then and could be hit there.
    pub(super) present: Vec<ProcessRole>,
    /// Number of faults before that.
    pub(super) faults: usize,
}

/// A fault that has happened.
#[derive(Debug, Clone)]
pub(super) struct InjectedFault {
    pub(super) at: Instant,
    pub(super) victim: ProcessRole,
    pub(super) fault: Fault,
}

pub(super) struct Director {
    state: Arc<Mutex<DirectorState>>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

struct DirectorState {
    lengths: Lengths,
    recording: bool,
    ended: bool,
    steps: VecDeque<Injection>,
    reached: Vec<ReachedPoint>,
    faults: Vec<InjectedFault>,
    /// Pids by [`ProcessRole`]; 0 if there is no such process.
    pids: [u32; 4],
    frozen: Vec<(Instant, OwnedFd)>,
    /// Whether a victim was gone before its fault.
    absent: bool,
    error: Option<String>,
}

impl Director {
    /// Listens at `socket` and lets all processes continue.
    pub(super) fn start(socket: &Path, lengths: Lengths) -> io::Result<Self> {
        let listener = socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_NONBLOCK)?;
        bind_path(&listener, socket)?;
        listen(&listener, 128)?;
        let wake = event_fd(false)?;
        let woken = wake.try_clone()?;
        let state = Arc::new(Mutex::new(DirectorState {
            lengths,
            recording: false,
            ended: false,
            steps: VecDeque::new(),
            reached: Vec::new(),
            faults: Vec::new(),
            pids: [0; 4],
            frozen: Vec::new(),
            absent: false,
            error: None,
        }));
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("director".to_owned())
            .spawn(move || direct(&listener, &woken, &shared))?;
        Ok(Self { state, wake, thread: Some(thread) })
    }

    /// From now on it records points, and these faults happen, one after the other.
    pub(super) fn arm(&self, steps: impl IntoIterator<Item = Injection>) {
        let mut state = lock(&self.state);
        state.recording = true;
        state.steps = steps.into_iter().collect();
    }

    /// Performs the next fault now, if it is one for a moment without a process at a point.
    pub(super) fn inject_at_rest(&self) {
        let mut state = lock(&self.state);
        if let Some(step) = state.take_step(|step| step.point == super::fault::AT_REST) {
            state.inject(&step);
        }
        drop(state);
        self.wake();
    }

    /// Performs a fault now, regardless of the points, if `is_ours` says that the pid of the victim belongs to the
    /// run. Returns whether it has happened.
    pub(super) fn inject_now(
        &self,
        victim: ProcessRole,
        fault: Fault,
        is_ours: impl Fn(u32) -> bool,
    ) -> bool {
        let mut state = lock(&self.state);
        let hits = state.faults.len();
        if is_ours(state.pids[victim as usize]) {
            state.inject(&Injection { point: super::fault::AT_REST.to_owned(), victim, fault });
        }
        let has_happened = state.faults.len() > hits;
        drop(state);
        self.wake();
        has_happened
    }

    /// Ends the faults and the recording of points.
    pub(super) fn disarm(&self) {
        let mut state = lock(&self.state);
        state.recording = false;
        state.steps.clear();
    }

    pub(super) fn pending(&self) -> usize {
        lock(&self.state).steps.len()
    }

    /// Whether a fault could not happen because its victim was gone.
    pub(super) fn is_absent(&self) -> bool {
        lock(&self.state).absent
    }

    pub(super) fn hits(&self) -> Vec<InjectedFault> {
        lock(&self.state).faults.clone()
    }

    pub(super) fn seen(&self) -> Vec<ReachedPoint> {
        lock(&self.state).reached.clone()
    }

    /// Whether a process is stopped and will be continued.
    pub(super) fn is_freezing(&self) -> bool {
        !lock(&self.state).frozen.is_empty()
    }

    /// The first error of the harness itself.
    pub(super) fn error(&self) -> Option<String> {
        lock(&self.state).error.clone()
    }

    fn wake(&self) {
        wake(&self.wake);
    }
}

impl Drop for Director {
    fn drop(&mut self) {
        lock(&self.state).ended = true;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<DirectorState>) -> MutexGuard<'_, DirectorState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Connection {
    channel: Channel,
    pid: u32,
}

fn direct(listener: &OwnedFd, woken: &OwnedFd, state: &Mutex<DirectorState>) {
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let until = {
            let mut state = lock(state);
            if state.ended {
                return;
            }
            state.thaw()
        };
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut fds: Vec<PollFd<'_>> = [woken.as_fd(), listener.as_fd()]
            .into_iter()
            .chain(connections.iter().map(|connection| connection.channel.as_fd()))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        if poll(&mut fds, timeout).is_err() {
            continue;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !found(fd).is_empty()).collect();
        if ready[0] {
            sleep(woken);
        }
        let mut flags = ready[2..].iter();
        connections
            .retain(|connection| !flags.next().is_some_and(|ready| *ready) || answer(connection, state));
        if ready[1]
            && let Ok(socket) = socket::accept(listener, SockFlag::empty())
            && let Ok(peer) = socket::peer_of(&socket)
            && let Ok(channel) = Channel::from_fd(socket)
        {
            connections.push(Connection { channel, pid: peer.pid });
        }
    }
}

/// Answers one process at a point. Returns whether the connection is still usable.
fn answer(connection: &Connection, state: &Mutex<DirectorState>) -> bool {
    let mut buffer = Vec::new();
    let Ok(Some(packet)) = connection.channel.recv(&mut buffer) else { return false };
    let text = String::from_utf8_lossy(&buffer[..packet.len]).into_owned();
    let answer = lock(state).reached(&text, connection.pid);
    connection.channel.send(answer.to_string().as_bytes(), &[]).is_ok()
}

impl DirectorState {
    fn reached(&mut self, text: &str, pid: u32) -> Instruction {
        let (point, pids) = text.split_once('\n').unwrap_or((text, ""));
        let Some(role) = ProcessRole::at(point) else { return Instruction::Go };
        self.learn(role, pid, pids);
        if !self.recording {
            return Instruction::Go;
        }
        let hits = self.faults.len();
        let is_new = !self.reached.iter().any(|seen| seen.faults == hits && seen.point == point);
        if is_new {
            let present = self.present(role);
            self.reached.push(ReachedPoint { point: point.to_owned(), present, faults: hits });
        }
        match self.take_step(|step| step.is_at(point)) {
            Some(step) if step.fault.is_own() && step.victim != role => Instruction::Go,
            Some(step) => self.inject(&step),
            None => Instruction::Go,
        }
    }

    /// The next fault, if it is due.
    fn take_step(&mut self, is_due: impl Fn(&Injection) -> bool) -> Option<Injection> {
        if self.steps.front().is_some_and(is_due) { self.steps.pop_front() } else { None }
    }

    fn learn(&mut self, role: ProcessRole, pid: u32, pids: &str) {
        self.pids[role as usize] = pid;
        if role == ProcessRole::Supervisor {
            let mut others = pids.split(' ').filter_map(|pid| pid.parse().ok());
            for role in [ProcessRole::Incumbent, ProcessRole::Successor] {
                self.pids[role as usize] = others.next().unwrap_or(0);
            }
        }
    }

    /// The possible victims of a fault at a point of `role`. The supervisor is in contact with all others: a fault
    /// of another process has the same effect at a point of the supervisor, or at one of its own.
    fn present(&self, role: ProcessRole) -> Vec<ProcessRole> {
        match role {
            ProcessRole::Supervisor => {
                ProcessRole::ALL.into_iter().filter(|role| is_alive(self.pids[*role as usize])).collect()
            }
            other => vec![other],
        }
    }

    fn inject(&mut self, step: &Injection) -> Instruction {
        let pid = self.pids[step.victim as usize];
        let answer = match step.fault {
            Fault::Exit => Instruction::Exit(70),
            Fault::Panic => Instruction::Panic,
            Fault::Stall | Fault::Hold => Instruction::Wait(as_ms(self.lengths.stall)),
            Fault::Kill | Fault::Stop | Fault::Hang | Fault::Terminate => {
                let Ok(pidfd) = pidfd_open(pid) else {
                    self.absent = true;
                    return Instruction::Go;
                };
                if let Err(error) = self.signal(step.fault, pid, pidfd) {
                    self.error.get_or_insert(format!("{step}: process {pid}: {error}"));
                }
                Instruction::Go
            }
        };
        self.faults.push(InjectedFault { at: Instant::now(), victim: step.victim, fault: step.fault });
        answer
    }

    fn signal(&mut self, fault: Fault, pid: u32, pidfd: OwnedFd) -> Result<(), Error> {
        if fault == Fault::Terminate {
            return Ok(kill(&pidfd, Signal::SIGTERM)?);
        }
        if fault == Fault::Kill {
            kill(&pidfd, Signal::SIGKILL)?;
            return await_end(&pidfd);
        }
        kill(&pidfd, Signal::SIGSTOP)?;
        await_stop(pid)?;
        if fault == Fault::Stop {
            self.frozen.push((Instant::now() + self.lengths.freeze, pidfd));
        }
        Ok(())
    }

    /// Continues the stopped processes whose time is over. Returns the time of the next one.
    fn thaw(&mut self) -> Option<Instant> {
        let now = Instant::now();
        for (_, pidfd) in self.frozen.extract_if(.., |(until, _)| *until <= now) {
            // A process that is gone was killed in the meantime.
            let _ = kill(&pidfd, Signal::SIGCONT);
        }
        self.frozen.iter().map(|(until, _)| *until).min()
    }
}

/// A zombie is not alive.
fn is_alive(pid: u32) -> bool {
    state_of(pid).is_ok_and(|state| state != 'Z')
}

fn state_of(pid: u32) -> io::Result<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn await_end(pidfd: &OwnedFd) -> Result<(), Error> {
    match is_readable_by(pidfd, Instant::now() + SIGNAL_LIMIT)? {
        true => Ok(()),
        false => Err(format!("lives {SIGNAL_LIMIT:?} after SIGKILL").into()),
    }
}

fn await_stop(pid: u32) -> Result<(), Error> {
    let until = Instant::now() + SIGNAL_LIMIT;
    while Instant::now() < until {
        if matches!(state_of(pid)?, 'T' | 'Z') {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(format!("runs {SIGNAL_LIMIT:?} after SIGSTOP").into())
}
