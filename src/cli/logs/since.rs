//! Moments that a user writes: `10m`, `yesterday`, `2026-12-01T11:40:00Z`.

use jiff::civil::{Date, DateTime};
use jiff::{Timestamp, Zoned};

/// The forms, for messages.
pub(super) const FORMS: &str = "write for example 10m, \"2h 30m\", today, yesterday, \"2026-12-01 11:40\" or \
    2026-12-01T11:40:00Z";

/// A moment, in milliseconds since 1970-01-01 UTC. A duration counts back from `now`. What names no time zone is in that
/// of `now`.
pub(super) fn parse(text: &str, now: &Zoned) -> Result<u64, String> {
    let ms = parse_ms(text.trim(), now).ok_or_else(|| format!("{text:?} is no moment; {FORMS}"))?;
    u64::try_from(ms).map_err(|_| format!("{text:?} is before 1970; {FORMS}"))
}

fn parse_ms(text: &str, now: &Zoned) -> Option<i64> {
    let zoned = |moment: DateTime| moment.to_zoned(now.time_zone().clone()).ok();
    let midnight = |date: Date| date.to_zoned(now.time_zone().clone()).ok();
    let found = match text {
        "now" => Some(now.clone()),
        "today" => midnight(now.date()),
        "yesterday" => midnight(now.date().yesterday().ok()?),
        _ => None,
    };
    if let Some(found) = found {
        return Some(found.timestamp().as_millisecond());
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return now.timestamp().as_millisecond().checked_sub(i64::try_from(ago.as_millis()).ok()?);
    }
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment.as_millisecond());
    }
    let local = match text.parse::<Date>() {
        Ok(date) if !text.contains([':', 'T']) => midnight(date),
        _ => zoned(text.parse::<DateTime>().ok()?),
    };
    Some(local?.timestamp().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::{TimeZone, offset};

    #[test]
    fn a_moment_has_many_forms() {
        let zone = TimeZone::fixed(offset(2));
        let now = "2026-12-01T11:40:12.123Z".parse::<Timestamp>().unwrap().to_zoned(zone);
        let at = |text: &str| text.parse::<Timestamp>().unwrap().as_millisecond() as u64;
        for (text, expected) in [
            ("now", "2026-12-01T11:40:12.123Z"),
            ("10m", "2026-12-01T11:30:12.123Z"),
            ("2h 30m", "2026-12-01T09:10:12.123Z"),
            ("1day", "2026-11-30T11:40:12.123Z"),
            ("today", "2026-11-30T22:00:00Z"),
            ("yesterday", "2026-11-29T22:00:00Z"),
            ("2026-12-01T11:40:12.123Z", "2026-12-01T11:40:12.123Z"),
            ("2026-12-01T11:40:12+01:00", "2026-12-01T10:40:12Z"),
            ("2026-12-01", "2026-11-30T22:00:00Z"),
            ("2026-12-01 11:40", "2026-12-01T09:40:00Z"),
            ("2026-12-01T11:40:05", "2026-12-01T09:40:05Z"),
        ] {
            assert_eq!(parse(text, &now), Ok(at(expected)), "{text}");
        }
        for wrong in
            ["", "soon", "10", "-5m", "2026-13-01", "2026-12-01T25:00:00Z", "99999999y", "1960-01-01"]
        {
            assert!(parse(wrong, &now).is_err_and(|error| error.contains("yesterday")), "{wrong}");
        }
    }
}
