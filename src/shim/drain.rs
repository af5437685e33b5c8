//! When the wait for long requests is over, in exclusive mode. No side effects.
//!
//! The program still accepts, so some requests are always young. The wait is over when none is long. Requests that follow
//! each other without a pause would make some of them look long at every moment. So what counts as long grows with the
//! time waited, and after a while only these are waited for: requests that were in progress when the wait began, and those
//! that take longer than [`LONGEST`]. The rest is answered while new requests are held back (see `quiescence.rs`).
//! Where nothing can be held back, the limit stays: to end the program would cut requests.

use std::time::Duration;

use crate::slots::census::LongRequest;

/// A request this old is long at first.
pub(super) const LONG: Duration = Duration::from_millis(100);
/// A request this old is always long: the time in which requests are answered in the gap is short.
const LONGEST: Duration = Duration::from_secs(1);
/// How long it takes until only such requests are long.
const GROWS_FOR: Duration = Duration::from_secs(3);

/// From which age on a request is long. All requests that began before the wait are older than that, or short.
pub(super) fn long_after(waited: Duration) -> Duration {
    let share = waited.as_secs_f64() / GROWS_FOR.as_secs_f64();
    LONG + (LONGEST - LONG).mul_f64(share.min(1.0))
}

/// Whether the wait is over. `may_hold_back`: whether new requests can be held back, or the program finishes all by itself.
pub(super) fn is_over(
    waited: Duration,
    oldest: Option<Duration>,
    may_hold_back: impl FnOnce() -> bool,
) -> bool {
    match oldest {
        Some(age) if age >= long_after(waited) => false,
        Some(age) if age >= LONG => may_hold_back(),
        Some(_) | None => true,
    }
}

/// What the wait is for: a clause. `None` if it is for nothing.
pub(super) fn description(requests: &[LongRequest]) -> Option<String> {
    let oldest = requests.iter().max_by_key(|request| request.age)?;
    let whose = oldest.client.map_or_else(|| "a client of the unix socket".to_owned(), |it| it.to_string());
    let what = match requests.len() {
        1 => format!("the request is one of {whose}"),
        many => format!("of the {many} requests the oldest is one of {whose}"),
    };
    let LongRequest { age, still, .. } = oldest;
    let quiet = match still.as_secs() {
        0 => "data still moves on its connection".to_owned(),
        _ => format!("no data has moved on its connection for {}", seconds(*still)),
    };
    Some(format!(
        "{what}, which began {} ago; {quiet}; a client that sends and expects no answer looks the same: for such clients set \
         drain = \"nothing\"",
        seconds(*age)
    ))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Each row: the time waited, from which age on a request is long, and the oldest age that is not.
    #[test]
    fn what_counts_as_long_grows_with_the_time_waited() {
        for (waited, long) in [
            (0, 100),
            (50, 115),
            (1_000, 400),
            (2_000, 700),
            (3_000, 1_000),
            (30_000, 1_000),
            (300_000, 1_000),
        ] {
            assert_eq!(long_after(ms(waited)), ms(long), "{waited}");
            let is_over = |age, holds| super::is_over(ms(waited), Some(ms(age)), || holds);
            let short = [99, long - 1].map(|age| is_over(age, true));
            assert_eq!(short, [true, true], "{waited}");
            assert!(is_over(99, false), "{waited}");
            assert_eq!([long, long + 1, 60_000].map(|age| is_over(age, true)), [false; 3], "{waited}");
            assert!(!is_over(100, false), "{waited}: its end would cut requests");
        }
        assert!(is_over(ms(0), None, || false));
    }

    /// What was in progress before is older than the wait.
    #[test]
    fn what_was_in_progress_before_is_waited_for() {
        for waited in (50..60_000).step_by(50) {
            for before in [100, 200, 1_000, 30_000] {
                let age = Some(ms(waited + before));
                assert!(!is_over(ms(waited), age, || true), "{waited} {before}");
            }
        }
    }

    /// Eight clients, each of which asks again as soon as it has its answer.
    #[test]
    fn requests_without_a_pause_let_the_wait_end() {
        for takes in [120, 400, 800, 950] {
            let oldest = |waited: u64| (0..8).map(|n| (waited + n * takes / 8) % takes).max();
            let over =
                (0..).step_by(50).find(|waited| is_over(ms(*waited), oldest(*waited).map(ms), || true));
            assert!(over.is_some_and(|waited| waited <= 3_000), "{takes}: {over:?}");
        }
    }

    #[test]
    fn the_oldest_request_is_told_with_what_to_set() {
        let request = |port, age: u64, still| LongRequest {
            client: Some(([127, 0, 0, 1], port).into()),
            age: ms(age),
            still: ms(still),
        };
        assert_eq!(description(&[]), None);
        let one = description(&[request(7, 31_000, 31_000)]).unwrap();
        assert!(
            one.starts_with("the request is one of 127.0.0.1:7, which began 31.0 s ago; no data has moved"),
            "{one}"
        );
        assert!(one.ends_with("set drain = \"nothing\""), "{one}");
        let two = description(&[request(7, 200, 200), request(8, 4_200, 100)]).unwrap();
        assert!(
            two.starts_with(
                "of the 2 requests the oldest is one of 127.0.0.1:8, which began 4.2 s ago; data"
            ),
            "{two}"
        );
        let unix = description(&[LongRequest { client: None, ..request(7, 200, 0) }]).unwrap();
        assert!(unix.contains("a client of the unix socket"), "{unix}");
    }
}
