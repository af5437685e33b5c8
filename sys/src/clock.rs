//! Monotonic clocks.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since boot, without suspended time (`CLOCK_MONOTONIC`), as the timers of a process count them.
pub fn monotonic_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        let (seconds, nanoseconds) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
        seconds.saturating_mul(1_000).saturating_add(nanoseconds / 1_000_000)
    })
}

/// A duration in whole milliseconds.
pub fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Time since boot, with suspended time (`CLOCK_BOOTTIME`), as the kernel notes the start of processes.
pub(super) fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
