//! How other parts of the daemon use a service: they send it orders, look at it, or wait until it is at rest.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use handoff_protocol::ids::ServiceName;
use handoff_protocol::supervisor::Phase;
use tokio::sync::{Mutex, oneshot};
use tokio::task::spawn_local;

use super::Service;
use crate::config;
use crate::control::{Error, ProgressSink, api};
use crate::store::Store;
use crate::supervisor::daemon::Shared;
use crate::supervisor::input::{Input, Inputs, inbox};
use crate::supervisor::lane::Lanes;
use crate::supervisor::operations::{Operation, OperationRequest, Recorder, RequestedOperation};
use crate::supervisor::rollout::{CancelCause, CancelledWork};
use crate::supervisor::state::OpenedState;

/// A service, and the way to its inbox.
#[derive(Debug, Clone)]
pub(in crate::supervisor) struct Handle {
    service: Rc<RefCell<Service>>,
    inputs: Inputs,
}

impl Handle {
    /// Starts to process the inbox. That ends with the last handle.
    pub(in crate::supervisor) fn new(
        config: config::Service,
        opened: OpenedState,
        lanes: Lanes,
        shared: Rc<Shared>,
    ) -> Self {
        let (inputs, inbox) = inbox();
        let service = Rc::new_cyclic(|this| {
            RefCell::new(Service::new(config, opened, lanes, shared, (this.clone(), inputs.clone())))
        });
        spawn_local(inbox.drain(Rc::downgrade(&service)));
        Self { service, inputs }
    }

    pub(super) fn of(service: Rc<RefCell<Service>>, inputs: Inputs) -> Self {
        Self { service, inputs }
    }

    /// Sends an order, and waits for its end.
    pub(in crate::supervisor) async fn request_operation(
        &self,
        order: OperationRequest,
        asked: Option<RequestedOperation>,
        progress: Option<ProgressSink>,
    ) -> Result<api::Outcome, Error> {
        let ended = self.try_request_operation(order, asked, progress).await;
        ended.unwrap_or_else(|| Err(Error::internal("an operation was dropped")))
    }

    /// The same. `None` if the order gets no answer.
    pub(in crate::supervisor) async fn try_request_operation(
        &self,
        order: OperationRequest,
        asked: Option<RequestedOperation>,
        progress: Option<ProgressSink>,
    ) -> Option<Result<api::Outcome, Error>> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Request(order, Operation { reply, progress, requested: asked }));
        answer.await.ok()
    }

    /// Calls off the work before the machine is asked, after the orders that came first.
    pub(in crate::supervisor) async fn call_off(&self, by: CancelCause) -> CancelledWork {
        self.inputs.ask(|reply| Input::CallOff(by, reply)).await.unwrap_or_default()
    }

    /// Looks at the service.
    pub(in crate::supervisor) fn read<T>(&self, look: impl FnOnce(&Service) -> T) -> T {
        look(&self.service.borrow())
    }

    /// Changes something beside the machine, at once.
    pub(in crate::supervisor) fn with<T>(&self, change: impl FnOnce(&mut Service) -> T) -> T {
        let mut service = self.service.borrow_mut();
        let _span = service.span.clone().entered();
        let result = change(&mut service);
        service.publish();
        result
    }

    /// The number of handles on this service.
    pub(in crate::supervisor) fn holders(&self) -> usize {
        Rc::strong_count(&self.service)
    }

    /// Completes when the service is at rest: it is stopped, serves, or waits before its next start, and no process
    /// is on its way out.
    pub(in crate::supervisor) async fn settled(&self) {
        self.until(|service| service.is_settled()).await;
    }

    /// Completes when `holds` is true. It is checked whenever the service comes to rest.
    pub(in crate::supervisor) async fn until(&self, holds: impl Fn(&Service) -> bool) {
        loop {
            let settled = self.read(|service| Rc::clone(&service.settled));
            let waiting = settled.notified();
            if self.read(|service| holds(service)) {
                return;
            }
            waiting.await;
        }
    }
}

/// Shortcuts for what is read most.
impl Handle {
    pub(in crate::supervisor) fn name(&self) -> ServiceName {
        self.read(|service| service.name.clone())
    }

    /// The service file in use.
    pub(in crate::supervisor) fn config(&self) -> config::Service {
        self.read(|service| service.config.clone())
    }

    pub(in crate::supervisor) fn phase(&self) -> Phase {
        self.read(|service| service.machine.phase())
    }

    pub(in crate::supervisor) fn is_stopped(&self) -> bool {
        self.phase() == Phase::Stopped
    }

    pub(in crate::supervisor) fn lanes(&self) -> Lanes {
        self.read(|service| service.lanes.clone())
    }

    pub(in crate::supervisor) fn store(&self) -> Arc<Store> {
        self.read(|service| Arc::clone(service.versions.store()))
    }

    /// Held while a version is brought in, or versions are removed.
    pub(in crate::supervisor) fn import_lock(&self) -> Arc<Mutex<()>> {
        self.read(|service| service.versions.import_lock())
    }

    /// The history.
    pub(in crate::supervisor) fn recorder(&self) -> Recorder {
        self.read(|service| service.operations.recorder().clone())
    }

    /// The state directory of the service.
    pub(in crate::supervisor) fn directory(&self) -> PathBuf {
        self.read(|service| service.shared.dirs.service_state(&service.name))
    }
}
