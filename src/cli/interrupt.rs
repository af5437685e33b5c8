//! Ctrl-C while the daemon is at work: the command ends, the work continues, and a text says how to watch it and call
//! it off.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use handoff_protocol::ids::ServiceName;
use indicatif::ProgressBar;

use super::exit::{Exit, Failure};
use super::output::{Output, note};
use crate::control::api::Request;
use crate::sys::poll::{PollFlags, poll_one};
use crate::sys::process::{Signal, dies_of};
use crate::sys::signal_fd::signal_fd;

/// The work that continues in the daemon, and what the user can do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContinuationHint {
    message: String,
    hint: String,
}

impl ContinuationHint {
    /// For a request that has an outcome. `phase` is the last one that the daemon has reported.
    pub(super) fn of(request: &Request, phase: &str) -> ContinuationHint {
        let (what, service) = match request {
            Request::Start(service) => ("start", service),
            Request::Stop(service) => ("stop", service),
            Request::Restart(service) => ("restart", service),
            Request::Upgrade(upgrade) => ("upgrade", &upgrade.service),
            Request::Install(install) => ("upgrade", &install.service),
            Request::Rollback(rollback) => ("rollback", &rollback.service),
            Request::Cancel(service) => ("cancellation", service),
            Request::Register(register) => ("registration", &register.service),
            other => unreachable!("there is no outcome to wait for: {other:?}"),
        };
        let watch = format!("Watch it: handoff status {service}");
        let hint = match (request, phase) {
            (Request::Stop(_) | Request::Cancel(_), _) => watch,
            (_, "reaping" | "resuming" | "reverting") => watch,
            (Request::Start(_), "committing") => format!("{watch}; end it: handoff stop {service}"),
            (Request::Restart(_), "committing" | "retiring") => watch,
            (_, "committing" | "retiring") => {
                format!("{watch}; to go back when it is done: handoff rollback {service}")
            }
            _ => format!("{watch}; call it off: handoff cancel {service}"),
        };
        ContinuationHint { message: format!("The {what} of {service} goes on in the daemon."), hint }
    }

    /// For a reload.
    pub(super) fn reload() -> ContinuationHint {
        let message = "The reload goes on in the daemon.".to_owned();
        ContinuationHint { message, hint: "See what it has done: handoff reload --dry-run".to_owned() }
    }

    /// For a removal.
    pub(super) fn removal() -> ContinuationHint {
        let message = "The removal goes on in the daemon.".to_owned();
        ContinuationHint { message, hint: "See what is left: handoff list".to_owned() }
    }

    /// For several upgrades at once.
    pub(super) fn all<'a>(under_way: impl IntoIterator<Item = &'a ServiceName>) -> ContinuationHint {
        let names: Vec<&str> = under_way.into_iter().map(ServiceName::as_str).collect();
        let message = match &names[..] {
            [] => "No upgrade is under way, and no other begins.".to_owned(),
            names => format!("No other upgrade begins; under way in the daemon: {}.", names.join(", ")),
        };
        let hint = match &names[..] {
            [] => "See the versions: handoff list",
            _ => "Watch one: handoff status NAME; call it off: handoff cancel NAME",
        };
        ContinuationHint { message, hint: hint.to_owned() }
    }
}

/// While this is held, SIGINT does not end the process by itself.
#[derive(Debug)]
pub(super) struct Interrupt(Option<OwnedFd>);

/// While this exists, an interrupt prints how to continue.
#[derive(Debug)]
pub(super) struct InterruptGuard(Arc<AtomicBool>);

impl Interrupt {
    /// Call it while the process has one thread. If SIGINT is ignored, as below nohup, it stays ignored.
    pub(super) fn hold() -> Interrupt {
        let is_deadly = dies_of(std::process::id(), Signal::SIGINT);
        Interrupt(is_deadly.then(|| signal_fd(Signal::SIGINT).ok()).flatten())
    }

    /// From now on an interrupt clears the progress line, prints this text and ends the process.
    pub(super) fn print_on_interrupt(
        self,
        json: bool,
        bar: Option<ProgressBar>,
        goes_on: impl FnOnce() -> ContinuationHint + Send + 'static,
    ) -> InterruptGuard {
        let is_over = Arc::new(AtomicBool::new(false));
        let watch = InterruptGuard(Arc::clone(&is_over));
        let Some(interrupts) = self.0 else { return watch };
        std::thread::spawn(move || {
            while !poll_one(&interrupts, PollFlags::POLLIN, None).is_ok_and(|found| !found.is_empty()) {}
            if !is_over.load(Ordering::Acquire) {
                bar.inspect(ProgressBar::finish_and_clear);
                print_hint(&goes_on(), json);
            }
            std::process::exit(Exit::Interrupted.code().into());
        });
        watch
    }
}

impl Drop for InterruptGuard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn print_hint(ContinuationHint { message, hint }: &ContinuationHint, json: bool) {
    if !json {
        return note(format!("{message} {hint}"));
    }
    let failure = Failure::Own {
        kind: "interrupted",
        message: message.clone(),
        hint: hint.clone(),
        exit: Exit::Interrupted,
    };
    Output::new(true).failure(&failure);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_is_not_called_off_but_rolled_back() {
        let service: ServiceName = "web".parse().unwrap();
        let rollback = crate::control::api::Rollback { service: service.clone(), generation: None };
        let upgrade = Request::Rollback(rollback);
        let hint = |request: &Request, phase: &str| ContinuationHint::of(request, phase).hint;
        for phase in ["", "importing", "warming", "canary", "probation"] {
            assert!(hint(&upgrade, phase).ends_with("; call it off: handoff cancel web"), "{phase}");
        }
        for phase in ["committing", "retiring"] {
            assert!(hint(&upgrade, phase).ends_with("; to go back when it is done: handoff rollback web"));
            assert!(!hint(&Request::Restart(service.clone()), phase).contains("; "));
        }
        assert!(!hint(&upgrade, "resuming").contains("cancel"));
        assert!(hint(&Request::Start(service), "committing").contains("handoff stop web"));
    }
}
