//! Whether a service may start, given the services that it depends on. A pure table.

use alloc::vec::Vec;

/// How a service depends on another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// It starts only when the other one is ready, and is stopped before the other one.
    Requires,
    /// It waits for the other one, and starts without it if that does not come.
    Wants,
    /// The same, but the other one is not started for it.
    After,
}

/// The condition of a service, for those that depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    /// It serves, or its job is done.
    Ready,
    /// It is on its way up, or down.
    Coming,
    /// It does not run, and nothing starts it.
    Down,
    /// There is no such service.
    Missing,
}

/// Whether the start of a service waits for another one in this condition.
pub fn waits(need: Need, condition: Condition) -> bool {
    match (need, condition) {
        (_, Condition::Ready) => false,
        (_, Condition::Coming) => true,
        (Need::Requires, Condition::Down | Condition::Missing) => true,
        (Need::Wants | Need::After, Condition::Down | Condition::Missing) => false,
    }
}

/// The dependencies for which a service waits, in the given order; it starts when there is none.
pub fn awaited<T>(needs: impl IntoIterator<Item = (Need, Condition, T)>) -> Vec<(Condition, T)> {
    let needs = needs.into_iter().filter(|(need, condition, _)| waits(*need, *condition));
    needs.map(|(_, condition, which)| (condition, which)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_required_or_coming_is_waited_for() {
        let conditions = [Condition::Ready, Condition::Coming, Condition::Down, Condition::Missing];
        for (need, expected) in [
            (Need::Requires, [false, true, true, true]),
            (Need::Wants, [false, true, false, false]),
            (Need::After, [false, true, false, false]),
        ] {
            assert_eq!(conditions.map(|condition| waits(need, condition)), expected, "{need:?}");
        }
        let needs = [
            (Need::Wants, Condition::Down, "cache"),
            (Need::Requires, Condition::Down, "db"),
            (Need::After, Condition::Coming, "net"),
            (Need::Requires, Condition::Ready, "disk"),
        ];
        assert_eq!(awaited(needs), [(Condition::Down, "db"), (Condition::Coming, "net")]);
        assert_eq!(awaited([(Need::Requires, Condition::Ready, "db")]), []);
    }
}
