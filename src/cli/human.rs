//! Times and sizes in readable form.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A duration with about three significant digits: `850 µs`, `2.1 ms`, `1.25 s`, `2 min 5 s`, `3 h 2 min`, `4 d 1 h`.
pub(super) fn span(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..99_950 => format!("{:.1} ms", us as f64 / 1e3),
        99_950..999_500 => format!("{:.0} ms", us as f64 / 1e3),
        999_500..59_995_000 => format!("{:.2} s", us as f64 / 1e6),
        _ => long_span(us.div_ceil(500_000) / 2),
    }
}

/// A text with a space between the number and the unit of each duration: `within 86 ms` for `within 86ms`.
pub(super) fn spaced(text: &str) -> String {
    let word = |word: &str| {
        let (core, end) = word.split_at(word.trim_end_matches([',', ';', ':', '.', ')']).len());
        let (number, unit) =
            core.split_at(core.find(|it: char| it.is_alphabetic() || it == 'µ').unwrap_or(core.len()));
        let is_duration = matches!(unit, "ns" | "µs" | "ms" | "s") && number.parse::<f64>().is_ok();
        if is_duration { format!("{number} {unit}{end}") } else { word.to_owned() }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// The time since `at_ms` (milliseconds since 1970).
pub(super) fn since(at_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ago = now.saturating_sub(Duration::from_millis(at_ms));
    long_span(ago.as_secs())
}

/// The time from now until `at_ms` (milliseconds since 1970).
pub(super) fn until(at_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match Duration::from_millis(at_ms).checked_sub(now) {
        Some(left) => format!("in {}", span(u64::try_from(left.as_micros()).unwrap_or(u64::MAX))),
        None => "now".to_owned(),
    }
}

/// The date and the time of day, in UTC, to the second.
pub(super) fn date(at_ms: u64) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(at_ms)).unwrap_or(UNIX_EPOCH);
    let text = humantime::format_rfc3339_seconds(at).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}

/// A size with about three significant digits: `512 B`, `1.5 KiB`, `100 MiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ if value < 99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// Enough of a hash to tell versions apart.
pub(super) fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}

fn long_span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_space_before_its_unit() {
        for (text, shown) in [
            ("it ends within 86ms: yes", "it ends within 86 ms: yes"),
            ("1.5s, or 2s.", "1.5 s, or 2 s."),
            ("write stop_grace = \"40s\" and /srv/3s", "write stop_grace = \"40s\" and /srv/3s"),
            ("s ms 7", "s ms 7"),
        ] {
            assert_eq!(spaced(text), shown);
        }
    }

    #[test]
    fn sizes() {
        let table =
            [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (100 << 20, "100 MiB"), (4 << 30, "4.0 GiB")];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn spans() {
        let table = [
            (0, "0 µs"),
            (999, "999 µs"),
            (2_100, "2.1 ms"),
            (99_949, "99.9 ms"),
            (99_950, "100 ms"),
            (350_000, "350 ms"),
            (999_500, "1.00 s"),
            (1_250_000, "1.25 s"),
            (59_994_999, "59.99 s"),
            (59_995_000, "1 min 0 s"),
            (125_000_000, "2 min 5 s"),
            (10_920_000_000, "3 h 2 min"),
            (349_200_000_000, "4 d 1 h"),
        ];
        for (us, text) in table {
            assert_eq!(span(us), text, "{us}");
        }
        assert_eq!(date(1_795_247_771_800), "2026-11-21 07:56:11 UTC");
        assert_eq!(since(u64::MAX), "0 s", "a clock that was set back");
    }
}
