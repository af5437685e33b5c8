//! The distribution of a measurement.

use serde::Serialize;

/// Quantiles in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// Number of values; if 0, the others are 0.
    pub count: usize,
    /// The median.
    pub p50_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
    /// The maximum.
    pub max_us: u64,
}

impl Spread {
    /// The distribution of these values.
    pub fn of(values: impl IntoIterator<Item = u64>) -> Self {
        let mut values: Vec<u64> = values.into_iter().collect();
        values.sort_unstable();
        let rank = |percent: usize| (values.len() * percent).div_ceil(100).saturating_sub(1);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        Self {
            count: values.len(),
            p50_us: at(rank(50)),
            p99_us: at(rank(99)),
            max_us: values.last().copied().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_exact() {
        let spread = Spread::of((1..=200).rev());
        assert_eq!(spread, Spread { count: 200, p50_us: 100, p99_us: 198, max_us: 200 });
        assert_eq!(Spread::of([7]), Spread { count: 1, p50_us: 7, p99_us: 7, max_us: 7 });
        assert_eq!(Spread::of([]), Spread::default());
    }
}
