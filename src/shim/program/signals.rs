//! Selects the main process of a program, and the receivers of signals.

use std::fs;
use std::os::fd::OwnedFd;

use super::Program;
use crate::config::StopMode;
use crate::shim::life::{LifeAction, LifeEvent, LifeState, Lifecycle, Outsider};
use crate::shim::receivers::receivers;
use crate::sys::exit::{exit_of_reaped, exit_of_zombie};
use crate::sys::poll::{PollFlags, poll_one};
use crate::sys::process::{Signal, name_of, pidfd_open};
use crate::sys::signals::send;

/// Maximum number of reports of ignored messages.
const REFUSALS_MAX: u32 = 100;

impl Program {
    /// Handles a `MAINPID` message. The sender and the named process must be part of the program.
    pub(in crate::shim) fn name_main(&self, pid: u32, sender: u32) {
        // Opened before the check, so that the checked process is the watched one.
        let pidfd = pidfd_open(pid).ok();
        let tree = self.tree();
        let ours = |pid: u32| tree.contains(&pid);
        let event =
            LifeEvent::MainPid { pid, is_ours: pidfd.is_some() && ours(pid), sender_is_ours: ours(sender) };
        for action in self.feed(event) {
            match (action, &pidfd) {
                (LifeAction::Refuse(Outsider::Sender), _) => self.report_refusal(&format!(
                    "MAINPID={pid} is ignored: its sender, process {sender} ({}), is not part of the program",
                    name_of(sender).unwrap_or_default()
                )),
                (LifeAction::Refuse(Outsider::Named), _) => self.report_refusal(&format!(
                    "MAINPID={pid} of process {sender} ({}) is ignored: process {pid} ({}) is not part of the program",
                    name_of(sender).unwrap_or_default(),
                    name_of(pid).unwrap_or_default()
                )),
                (LifeAction::Watch(pid), Some(pidfd)) => self.watch(pid, pidfd),
                (_, _) => {}
            }
        }
    }

    /// Reports to the log and the daemon. Limited, because any process can send messages.
    fn report_refusal(&self, what: &str) {
        let mut is_over = false;
        self.learn(|known| {
            is_over = known.refusals >= REFUSALS_MAX;
            known.refusals += u32::from(!is_over);
        });
        if is_over {
            return;
        }
        log_line!("{what}");
        let path = self.config.own_path.with_extension(crate::shim::REFUSED);
        if let Err(error) = fs::write(&path, what) {
            log_line!("cannot report this to the daemon: {}: {error}", path.display());
        }
    }

    /// Waits for the end of a process that another one may reap, in a single thread even if it is named repeatedly.
    fn watch(&self, pid: u32, pidfd: &OwnedFd) {
        self.note_pid(pid);
        let Some((this, pidfd)) = self.this.upgrade().zip(pidfd.try_clone().ok()) else { return };
        if !self.known().watched_by_name.insert(pid) {
            return;
        }
        let watcher = std::thread::Builder::new().name("handoff-main".to_owned()).spawn(move || {
            while poll_one(&pidfd, PollFlags::POLLIN, None).is_err() {}
            // Its parent may reap it between the first two checks.
            let exit = exit_of_reaped(&pidfd).or_else(|| exit_of_zombie(&pidfd));
            let exit = exit.or_else(|| exit_of_reaped(&pidfd));
            this.known().watched_by_name.remove(&pid);
            this.feed(LifeEvent::Exited(pid, exit));
        });
        if let Err(error) = watcher {
            self.known().watched_by_name.remove(&pid);
            log_line!("cannot watch process {pid}: {error}");
        }
    }

    /// The processes that receive forwarded signals.
    pub(in crate::shim) fn receivers(&self) -> Vec<u32> {
        let mode = match self.config.program.stop_mode {
            // A signal other than the stop signal goes to the server only, which passes it on.
            StopMode::Group => StopMode::Mixed,
            mode => mode,
        };
        let life = self.known().life;
        self.find_receivers(mode, life)
    }

    /// The serving processes, whatever the stop mode.
    pub(in crate::shim) fn servers(&self) -> Vec<u32> {
        let life = self.known().life;
        self.find_receivers(StopMode::Mixed, life)
    }

    /// Forwards a signal to the program.
    pub(in crate::shim) fn pass_on(&self, what: Signal) {
        for pid in self.receivers() {
            log_line!(
                "forwarding signal {} to process {pid} ({}) of the program",
                what as i32,
                name_of(pid).unwrap_or_default()
            );
            send(pid, what);
        }
    }

    pub(super) fn find_receivers(&self, mode: StopMode, life: Lifecycle) -> Vec<u32> {
        let is_named = matches!(life.state(), LifeState::Adopted { .. });
        receivers(mode, life.main(), is_named, &self.survey(), &|pid| self.serves_itself(pid))
    }

    pub(super) fn ask(&self, pids: impl IntoIterator<Item = u32>) {
        for pid in pids {
            if self.known().signalled.insert(pid) {
                send(pid, self.config.program.stop_signal.signal());
            }
        }
    }

    pub(super) fn signal_all(&self, what: Signal) {
        self.tree().into_iter().for_each(|pid| send(pid, what));
    }
}
