//! Durations ("5m") and sizes ("10MiB") in readable form.

use std::time::Duration;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// No phase of an upgrade reasonably lasts longer, and every clock counts this far without overflow.
const LONGEST_MS: u64 = 30 * DAY_MS;

const SIZE_UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Milliseconds of a duration such as `250ms`, `30s`, `5m` or `1h 30m`. The error is one clause without a full stop
/// that says what is wrong with `text`.
pub fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{text:?} is no duration: {error}"))?;
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        return Err(format!("{text:?} is finer than a millisecond"));
    }
    u64::try_from(duration.as_millis())
        .ok()
        .filter(|&ms| ms <= LONGEST_MS)
        .ok_or_else(|| format!("{text:?} is longer than 30 days"))
}

/// The same for a word of the command line, with an example in the error.
pub fn parse_duration_word_ms(text: &str) -> Result<u64, String> {
    parse_duration_ms(text).map_err(|cause| format!("{cause}; write a duration such as 30s or 5m"))
}

/// A duration as written in a service file: `5m`, `1h 30m`, `250ms`.
pub fn format_duration_ms(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

/// Bytes of a size such as `512KiB` or `10MiB`. The error is one clause without a full stop.
pub fn parse_size_bytes(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} does not begin with a whole number"))?;
    let unit = unit.trim_start();
    let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| match unit {
        "" => format!("{text:?} has no unit"),
        _ => format!("{unit:?} is no unit of size"),
    })?;
    number.checked_mul(*factor).ok_or_else(|| format!("{text:?} is more than can be counted"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration_ms("5m"), Ok(300_000));
        assert_eq!(parse_duration_ms("1h 30m"), Ok(5_400_000));
        assert_eq!(parse_duration_ms("250ms"), Ok(250));
        assert_eq!(parse_duration_ms("0s"), Ok(0));
        assert_eq!(parse_duration_ms("30days"), Ok(LONGEST_MS));
        for (text, cause) in [("5", "unit"), ("", "no duration"), ("1us", "finer"), ("31days", "30 days")] {
            assert!(parse_duration_ms(text).unwrap_err().contains(cause), "{text}");
        }
        assert_eq!(format_duration_ms(300_000), "5m");
        assert_eq!(format_duration_ms(1_500), "1s 500ms");
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size_bytes("10MiB"), Ok(10 << 20));
        assert_eq!(parse_size_bytes("1 GiB"), Ok(1 << 30));
        assert_eq!(parse_size_bytes("7B"), Ok(7));
        for (text, cause) in [
            ("", "whole number"),
            ("MiB", "whole number"),
            ("-1MiB", "whole number"),
            ("10", "no unit"),
            ("10MB", "no unit of size"),
            ("18446744073709551615GiB", "counted"),
            ("99999999999999999999B", "whole number"),
        ] {
            assert!(parse_size_bytes(text).unwrap_err().contains(cause), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_formatted_duration_reads_back(ms in 0..=LONGEST_MS) {
            prop_assert_eq!(parse_duration_ms(&format_duration_ms(ms)), Ok(ms));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse_duration_ms(&text);
            let _ = parse_size_bytes(&text);
        }
    }
}
