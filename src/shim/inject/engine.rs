//! Answers the intercepted calls of a program.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bind_request::{BindAddress, BindRequest};
use super::matching::{MismatchReason, choose};
use super::paths::{self, PathEffect};
use super::target::{CallingThread, wanted};
use super::{EventSink, InjectEvent, ListenerProvider, epoll, options};
use crate::config::ListenAddress;
use crate::slots::Access;
use crate::sys::descriptor::inode;
use crate::sys::errno::{Errno, errno_of};
use crate::sys::seccomp::{Answer, Call, Notify, SystemCall};
use crate::sys::socket::cookie_of;

/// Answers the calls of one program and all its descendants, as long as any of them lives.
///
/// After it is dropped, further bind and listen calls of the program fail with ENOSYS.
pub struct Injector {
    notify: Notify,
    provider: Arc<dyn ListenerProvider>,
    sink: Arc<dyn EventSink>,
    state: Mutex<InjectorState>,
}

#[derive(Default)]
struct InjectorState {
    parks: bool,
    /// Held binds, with their listeners.
    parked: Vec<(Call, String)>,
    /// The listeners given to the program, by their identity (`SO_COOKIE`).
    given: HashMap<u64, String>,
}

/// The call no longer waits: its thread was killed, or interrupted and will repeat the call.
struct CallAborted;

impl Injector {
    /// Wraps the notify descriptor of a program that has just been started. If `parks` is set, binds of listeners are
    /// held until [`Injector::release`].
    pub fn new(
        notify: OwnedFd,
        slots: Arc<dyn ListenerProvider>,
        watcher: Arc<dyn EventSink>,
        parks: bool,
    ) -> Self {
        let state = Mutex::new(InjectorState { parks, ..InjectorState::default() });
        Self { notify: Notify::new(notify), provider: slots, sink: watcher, state }
    }

    /// Answers calls until no process of the program is left. Blocks; needs its own thread. Makes no system calls while
    /// idle.
    pub fn run(&self) -> io::Result<()> {
        while let Some(call) = self.notify.next()? {
            // A call that no longer waits needs no answer.
            let _: Result<(), CallAborted> = match call.system_call {
                SystemCall::Bind => self.bind(&call),
                SystemCall::Listen => self.listen(&call),
                SystemCall::Unlink | SystemCall::UnlinkAt | SystemCall::Rename | SystemCall::RenameAt => {
                    self.path(&call)
                }
            };
        }
        Ok(())
    }

    /// Answers all held binds, and later ones immediately. Returns when they are answered.
    pub fn release(&self) {
        let parked = {
            let mut state = self.state();
            state.parks = false;
            std::mem::take(&mut state.parked)
        };
        for (call, name) in parked {
            let _: Result<(), CallAborted> = self.give(&call, &name);
        }
    }

    fn bind(&self, call: &Call) -> Result<(), CallAborted> {
        let read = self.read(call);
        // Only now it is certain that the data came from the waiting thread.
        self.check(call)?;
        match read {
            Ok(None) => self.answer(call, Answer::Continue),
            Ok(Some((wanted, pid))) => match self.choose(&wanted) {
                Ok(name) => self.found(call, &name, &wanted, pid),
                Err(why) if why.refused().is_some() => self.refuse(call, &wanted, pid, &why),
                Err(why) => self.pass(call, (wanted.address.to_string(), wanted.as_listener()), pid, why),
            },
            Err(error) => {
                let why = MismatchReason::Unreadable(error.to_string());
                self.pass(call, ("something".to_owned(), None), call.tid, why)
            }
        }
    }

    /// What is being bound, and by which process. `None` if it can be no listener of the service, or if the kernel will
    /// refuse it.
    fn read(&self, call: &Call) -> io::Result<Option<(BindRequest, u32)>> {
        let target = CallingThread::open(call.tid)?;
        let address = match target.address(call)? {
            None | Some(BindAddress::Other(_)) => return Ok(None),
            Some(address) => address,
        };
        match target.take(descriptor(call)) {
            Ok(socket) => Ok(Some((wanted(address, socket)?, target.pid))),
            Err(error) if is(&error, Errno::EBADF) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn choose(&self, wanted: &BindRequest) -> Result<String, MismatchReason> {
        let configured = self.provider.configured();
        let normal: Vec<_> = configured.into_iter().map(|(name, address)| (name, normal(address))).collect();
        let wanted = match &wanted.address {
            BindAddress::Unix(path) => {
                &BindRequest { address: BindAddress::Unix(normal_path(path)), ..wanted.clone() }
            }
            _ => wanted,
        };
        choose(wanted, &normal).map(|at| normal[at].0.clone())
    }

    fn found(&self, call: &Call, name: &str, wanted: &BindRequest, pid: u32) -> Result<(), CallAborted> {
        if let BindAddress::Unix(path) = &wanted.address
            && std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        {
            self.provider.path_removed(name, path);
        }
        if self.state().parks {
            self.sink.record(InjectEvent::Parked { name: name.to_owned(), pid });
            let mut state = self.state();
            // The release may have happened in between.
            if state.parks {
                state.parked.retain(|(call, _)| self.notify.is_valid(call.id));
                state.parked.push((*call, name.to_owned()));
                return Ok(());
            }
        }
        self.give(call, name)
    }

    /// Swaps the socket, and lets the bind succeed.
    fn give(&self, call: &Call, name: &str) -> Result<(), CallAborted> {
        let target = CallingThread::open(call.tid);
        self.check(call)?;
        let pid = target.as_ref().map_or(call.tid, |target| target.pid);
        let swapped = target.and_then(|target| self.swap(call, name, &target));
        match swapped {
            Ok(access) => {
                if let Some(access) = access {
                    self.provider.path_bound(name, access);
                }
                // Reported first, so that it precedes the listen that follows.
                self.sink.record(InjectEvent::Bound { name: name.to_owned(), pid });
                self.answer(call, Answer::Success)
            }
            Err(error) if is(&error, Errno::ENOENT) && self.check(call).is_err() => Err(CallAborted),
            Err(error) => {
                let event = InjectEvent::Failed { name: name.to_owned(), pid, error: error.to_string() };
                self.sink.record(event);
                self.answer(call, Answer::Error(Errno::EADDRNOTAVAIL))
            }
        }
    }

    /// Replaces the socket. Returns the access rights of a unix socket that the program binds.
    fn swap(&self, call: &Call, name: &str, target: &CallingThread) -> io::Result<Option<Access>> {
        let number = descriptor(call);
        let listener = self.provider.current(name)?;
        let socket = target.take(number)?;
        let cookie = cookie_of(&listener)?;
        if cookie_of(&socket)? == cookie {
            // A signal interrupted a completed bind, and the program repeats it.
            return Ok(None);
        }
        let again = self.state().given.contains_key(&cookie);
        options::copy(socket.as_fd(), listener.as_fd(), again)?;
        let watched = epoll::find(target, number, inode(&socket)?)?;
        let closes_on_exec = target.closes_on_exec(number)?;
        // While any holder keeps the old socket open, its registrations exist too and report a hang-up.
        drop(socket);
        // Before the program can call listen.
        self.state().given.insert(cookie, name.to_owned());
        self.notify.put(call.id, listener.as_fd(), number as u32, closes_on_exec)?;
        epoll::repeat(target, &watched, number, &listener)?;
        let path = self.provider.configured().into_iter().find(|(known, _)| known == name);
        Ok(match path {
            Some((_, ListenAddress::Unix(path))) => target.access_of_new(&path).ok(),
            _ => None,
        })
    }

    /// The listeners already listen with the longest backlog. The kernel executes listen calls on other sockets.
    fn listen(&self, call: &Call) -> Result<(), CallAborted> {
        let found = self.given_socket(call);
        self.check(call)?;
        match found {
            Some((name, pid)) => {
                self.answer(call, Answer::Success)?;
                self.sink.record(InjectEvent::Listening { name, pid });
                Ok(())
            }
            None => self.answer(call, Answer::Continue),
        }
    }

    /// The path of a service's unix socket stays unchanged, whatever the program asks for.
    fn path(&self, call: &Call) -> Result<(), CallAborted> {
        let meant =
            CallingThread::open(call.tid).and_then(|target| paths::effect_on(&target, call, &self.provider));
        self.check(call)?;
        self.answer(
            call,
            match meant {
                Ok(Some(PathEffect::Removed)) => Answer::Success,
                Ok(Some(PathEffect::Replaced)) => Answer::Error(Errno::EBUSY),
                Ok(None) | Err(_) => Answer::Continue,
            },
        )
    }

    fn given_socket(&self, call: &Call) -> Option<(String, u32)> {
        if self.state().given.is_empty() {
            return None;
        }
        let target = CallingThread::open(call.tid).ok()?;
        let cookie = cookie_of(target.take(descriptor(call)).ok()?).ok()?;
        Some((self.state().given.get(&cookie)?.clone(), target.pid))
    }

    /// Refuses a bind whose listener the program could not use.
    fn refuse(
        &self,
        call: &Call,
        wanted: &BindRequest,
        pid: u32,
        why: &MismatchReason,
    ) -> Result<(), CallAborted> {
        self.answer(call, Answer::Error(Errno::EADDRNOTAVAIL))?;
        let meant = |(_, address): &(String, ListenAddress)| why.refused() == Some(&normal(address.clone()));
        let name =
            self.provider.configured().into_iter().find(meant).map(|(name, _)| name).unwrap_or_default();
        let error = format!("it binds {}: {why}", wanted.address);
        self.sink.record(InjectEvent::Failed { name, pid, error });
        Ok(())
    }

    fn pass(
        &self,
        call: &Call,
        (address, instead): (String, Option<ListenAddress>),
        pid: u32,
        why: MismatchReason,
    ) -> Result<(), CallAborted> {
        self.answer(call, Answer::Continue)?;
        self.sink.record(InjectEvent::Passed { address, instead, pid, why });
        Ok(())
    }

    fn check(&self, call: &Call) -> Result<(), CallAborted> {
        if self.notify.is_valid(call.id) { Ok(()) } else { Err(CallAborted) }
    }

    fn answer(&self, call: &Call, answer: Answer) -> Result<(), CallAborted> {
        self.notify.answer(call.id, answer).map_err(|_| CallAborted)
    }

    fn state(&self) -> MutexGuard<'_, InjectorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kernel reads the lower half of the register.
fn descriptor(call: &Call) -> RawFd {
    call.args[0] as RawFd
}

fn is(error: &io::Error, errno: Errno) -> bool {
    errno_of(error) == Some(errno)
}

fn normal(address: ListenAddress) -> ListenAddress {
    match address {
        ListenAddress::Unix(path) => ListenAddress::Unix(normal_path(&path)),
        other => other,
    }
}

/// A directory can have several names, such as `/run` and `/var/run`.
fn normal_path(path: &Path) -> std::path::PathBuf {
    let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
    match (directory, path.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => path.to_owned(),
    }
}
