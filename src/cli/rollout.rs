//! The order in which several services are upgraded, the number of concurrent upgrades, and when no more start.

use std::collections::{BTreeMap, BTreeSet};

use handoff_protocol::ids::ServiceName;

/// The remaining upgrades. Pure: the caller reports each end, and this says which upgrades may start.
#[derive(Debug)]
pub(super) struct Rollout {
    /// The upgrades that have not started, and the services that each waits for.
    waiting: BTreeMap<ServiceName, BTreeSet<ServiceName>>,
    running: usize,
    parallel_max: usize,
    is_stopped: bool,
}

impl Rollout {
    /// Upgrades the services in `order`, each after the ones that it names. Names outside of `order` do not delay
    /// anything.
    pub(super) fn new(order: BTreeMap<ServiceName, BTreeSet<ServiceName>>, parallel_max: usize) -> Self {
        let all: BTreeSet<ServiceName> = order.keys().cloned().collect();
        let waiting =
            order.into_iter().map(|(name, after)| (name, after.intersection(&all).cloned().collect()));
        Self { waiting: waiting.collect(), running: 0, parallel_max, is_stopped: false }
    }

    /// Removes and returns the upgrades that may start now.
    pub(super) fn begin(&mut self) -> Vec<ServiceName> {
        if self.is_stopped {
            return Vec::new();
        }
        let free = self.waiting.iter().filter(|(_, after)| after.is_empty()).map(|(name, _)| name);
        let next: Vec<ServiceName> =
            free.take(self.parallel_max.saturating_sub(self.running)).cloned().collect();
        self.running += next.len();
        self.waiting.retain(|name, _| !next.contains(name));
        next
    }

    /// Records the end of an upgrade. If the service does not run its new version, no more upgrades start.
    pub(super) fn ended(&mut self, name: &ServiceName, is_good: bool) {
        self.running = self.running.saturating_sub(1);
        self.is_stopped |= !is_good;
        for after in self.waiting.values_mut() {
            after.remove(name);
        }
    }

    /// Whether no upgrade runs and no more start.
    pub(super) fn is_over(&self) -> bool {
        self.running == 0 && (self.is_stopped || self.waiting.is_empty())
    }

    /// The services whose upgrades have not started.
    pub(super) fn not_started(&self) -> Vec<ServiceName> {
        self.waiting.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(order: &[(&str, &[&str])], parallel_max: usize) -> Rollout {
        let set = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        Rollout::new(
            order.iter().map(|(name, after)| (name.parse().unwrap(), set(after))).collect(),
            parallel_max,
        )
    }

    fn begin(rollout: &mut Rollout) -> String {
        rollout.begin().iter().map(ServiceName::as_str).collect::<Vec<_>>().join(" ")
    }

    fn ended(rollout: &mut Rollout, name: &str, is_good: bool) {
        rollout.ended(&name.parse().unwrap(), is_good);
    }

    #[test]
    fn each_comes_after_those_that_it_names() {
        let mut rollout = rollout(&[("a", &["c"]), ("b", &["a", "c"]), ("c", &[]), ("d", &["gone"])], 9);
        assert_eq!(begin(&mut rollout), "c d");
        ended(&mut rollout, "d", true);
        assert_eq!(begin(&mut rollout), "");
        ended(&mut rollout, "c", true);
        assert_eq!(begin(&mut rollout), "a");
        ended(&mut rollout, "a", true);
        assert_eq!(begin(&mut rollout), "b");
        assert!(!rollout.is_over());
        ended(&mut rollout, "b", true);
        assert!(rollout.is_over() && rollout.not_started().is_empty());
    }

    #[test]
    fn no_more_run_at_once_than_may() {
        let mut rollout = rollout(&[("a", &[]), ("b", &[]), ("c", &[])], 2);
        assert_eq!(begin(&mut rollout), "a b");
        assert_eq!(begin(&mut rollout), "");
        ended(&mut rollout, "b", true);
        assert_eq!(begin(&mut rollout), "c");
    }

    #[test]
    fn after_a_failure_what_runs_is_waited_for_and_nothing_begins() {
        let mut rollout = rollout(&[("a", &[]), ("b", &[]), ("c", &[]), ("d", &["a"])], 2);
        assert_eq!(begin(&mut rollout), "a b");
        ended(&mut rollout, "a", false);
        assert_eq!(begin(&mut rollout), "");
        assert!(!rollout.is_over());
        ended(&mut rollout, "b", true);
        assert!(rollout.is_over() && begin(&mut rollout).is_empty());
        assert_eq!(rollout.not_started().len(), 2);
    }
}
