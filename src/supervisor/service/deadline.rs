//! The deadline of an upgrade, as one daemon leaves it to the next: on a clock that cannot be set.

use handoff_protocol::deadline::Millis;
use handoff_protocol::record::MonotonicTime;
use uuid::Uuid;

use crate::sys::clock::monotonic_ms;
use crate::sys::process::ProcessId;

/// The moment when `left_ms` have passed. `None` if this boot cannot be identified.
pub(in crate::supervisor) fn in_ms(left_ms: Millis) -> Option<MonotonicTime> {
    Some(MonotonicTime { boot_id: boot()?, ms: monotonic_ms().saturating_add(left_ms) })
}

/// The time left until `ends`. `None` if that belongs to another boot.
pub(in crate::supervisor) fn left_ms(ends: MonotonicTime) -> Option<Millis> {
    (boot()? == ends.boot_id).then(|| ends.ms.saturating_sub(monotonic_ms()))
}

fn boot() -> Option<[u8; 16]> {
    let own = ProcessId::own().ok()?;
    Some(own.boot_id.parse::<Uuid>().ok()?.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_is_left_passes_and_ends_and_belongs_to_a_boot() {
        let ends = in_ms(60_000).unwrap();
        let left = left_ms(ends).unwrap();
        assert!((50_000..=60_000).contains(&left), "{left}");
        assert_eq!(left_ms(MonotonicTime { ms: 0, ..ends }), Some(0));
        assert_eq!(left_ms(MonotonicTime { boot_id: [1; 16], ..ends }), None);
    }
}
