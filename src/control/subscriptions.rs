//! The subscriptions of one connection.
//!
//! The changes of all services go through one ring of limited size. A client that reads more slowly than they come
//! loses the oldest ones, and learns how many. So no client makes the daemon wait or grow.

use std::collections::BTreeMap;

use handoff_protocol::ids::ServiceName;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::changes::{Change, Notice};
use super::error::{Error, Kind};

/// Maximum number of subscriptions of a connection.
const SUBSCRIPTIONS_MAX: usize = 16;

/// The number of changes for which a client may be late.
pub const CHANGES_KEPT: usize = 256;

#[derive(Default)]
pub(super) struct Subscriptions {
    changes: Option<Receiver<Change>>,
    /// The wanted services of each; all if there are none.
    wanted: BTreeMap<u64, Vec<ServiceName>>,
    last: u64,
}

impl Subscriptions {
    /// Receives changes from now on, so that none is missing after the states that are read next. The error says that
    /// there are too many.
    pub(super) fn prepare(
        &mut self,
        changes: impl FnOnce() -> Option<Receiver<Change>>,
    ) -> Result<(), Error> {
        if self.wanted.len() >= SUBSCRIPTIONS_MAX {
            let message = format!("This connection has {SUBSCRIPTIONS_MAX} subscriptions already.");
            return Err(Error::new(
                Kind::InvalidRequest,
                message,
                "End one with `unsubscribe`, or connect again.",
            ));
        }
        if self.changes.is_none() {
            self.changes = changes();
        }
        match self.changes {
            Some(_) => Ok(()),
            None => Err(Error::internal("it has no changes to send")),
        }
    }

    /// Adds a subscription and returns its number.
    pub(super) fn add(&mut self, services: Vec<ServiceName>) -> u64 {
        self.last += 1;
        self.wanted.insert(self.last, services);
        self.last
    }

    /// Ends a subscription.
    pub(super) fn remove(&mut self, subscription: u64) -> Result<(), Error> {
        if self.wanted.remove(&subscription).is_none() {
            let message = format!("This connection has no subscription {subscription}.");
            return Err(Error::new(
                Kind::InvalidParams,
                message,
                "Use the number that `subscribe` has returned.",
            ));
        }
        self.receive_only_if_wanted();
        Ok(())
    }

    /// Receives nothing more if there is no subscription: then the daemon has no work with changes.
    pub(super) fn receive_only_if_wanted(&mut self) {
        if self.wanted.is_empty() {
            self.changes = None;
        }
    }

    /// The next messages: of one change, or of the lost ones. Can be dropped at any time without a loss.
    pub(super) async fn next(&mut self) -> Vec<Notice> {
        loop {
            let Some(changes) = &mut self.changes else { return std::future::pending().await };
            let (lost, event) = match changes.recv().await {
                Ok(change) => (0, Some(change)),
                Err(RecvError::Lagged(lost)) => (lost, None),
                Err(RecvError::Closed) => {
                    self.changes = None;
                    continue;
                }
            };
            let wants = |services: &[ServiceName]| {
                event.as_ref().is_none_or(|event| services.is_empty() || services.contains(&event.service))
            };
            let fitting = self.wanted.iter().filter(|(_, services)| wants(services));
            let notice = |(&subscription, _): (&u64, &Vec<ServiceName>)| Notice {
                subscription,
                lost,
                event: event.clone(),
            };
            let notices: Vec<Notice> = fitting.map(notice).collect();
            if !notices.is_empty() {
                return notices;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;

    use super::*;
    use crate::control::api::State;

    fn change(service: &str, at: u64) -> Change {
        Change {
            service: service.parse().unwrap(),
            at,
            state: State::Serving,
            phase: None,
            detail: None,
            generation: handoff_protocol::ids::Generation(1),
            pid: None,
            problem: None,
        }
    }

    fn next(subscriptions: &mut Subscriptions) -> Vec<Notice> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(subscriptions.next())
    }

    #[test]
    fn each_subscription_gets_what_it_wants_and_a_slow_client_the_count_of_what_it_lost() {
        let (sender, _) = broadcast::channel(4);
        let mut subscriptions = Subscriptions::default();
        subscriptions.prepare(|| Some(sender.subscribe())).unwrap();
        let (all, web) = (subscriptions.add(Vec::new()), subscriptions.add(vec!["web".parse().unwrap()]));
        sender.send(change("db", 1)).unwrap();
        sender.send(change("web", 2)).unwrap();
        let of = |notices: Vec<Notice>| -> Vec<(u64, u64, Option<u64>)> {
            notices.into_iter().map(|it| (it.subscription, it.lost, it.event.map(|event| event.at))).collect()
        };
        assert_eq!(of(next(&mut subscriptions)), [(all, 0, Some(1))]);
        assert_eq!(of(next(&mut subscriptions)), [(all, 0, Some(2)), (web, 0, Some(2))]);
        for at in 10..20 {
            sender.send(change("web", at)).unwrap();
        }
        assert_eq!(of(next(&mut subscriptions)), [(all, 6, None), (web, 6, None)]);
        assert_eq!(of(next(&mut subscriptions)), [(all, 0, Some(16)), (web, 0, Some(16))]);
        subscriptions.remove(all).unwrap();
        assert_eq!(of(next(&mut subscriptions)), [(web, 0, Some(17))]);
        assert!(subscriptions.remove(all).is_err());
        subscriptions.remove(web).unwrap();
        assert_eq!(sender.receiver_count(), 0, "a client without subscriptions costs nothing");
    }

    #[test]
    fn a_connection_has_a_limited_number_of_subscriptions() {
        let (sender, _) = broadcast::channel(4);
        let mut subscriptions = Subscriptions::default();
        for _ in 0..SUBSCRIPTIONS_MAX {
            subscriptions.prepare(|| Some(sender.subscribe())).unwrap();
            subscriptions.add(Vec::new());
        }
        let refused = subscriptions.prepare(|| Some(sender.subscribe())).unwrap_err();
        assert!(refused.message.contains("16 subscriptions"), "{refused}");
        subscriptions.remove(3).unwrap();
        assert!(subscriptions.prepare(|| None).is_ok());
    }
}
