//! The requirements for a new version before it is trusted: first a share of the connections, then a time after the
//! commit in which the previous version stands by.

use handoff_protocol::deadline::CanaryStep;
use handoff_protocol::message::Mode;

use super::address::ListenAddress;
use super::error::Report;
use super::listen::Listener;
use super::probe;
use super::table::Section;
use super::units::parse_duration_ms;

const KEYS: &[&str] = &["time", "interval", "failures", "errors", "max_errors"];
const CANARY_EXAMPLE: &str = "write canary = [\"5% 30s\", \"25% 30s\"]";
const ERRORS_EXAMPLE: &str = "write errors = [\"/path/of/command\"], which prints a number";

const INTERVAL_MS: u64 = 1_000;
const FAILURES: u32 = 3;
/// Maximum number of canary steps.
const STEPS_MAX: usize = 16;

/// The requirements for a new version. Without any, it is trusted when it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialSettings {
    /// The shares of the new connections that it gets before the commit.
    pub canary: Vec<CanaryStep>,
    /// How long the previous version stands by after the commit, in milliseconds; 0 for not at all.
    pub probation_ms: u64,
    /// Pause between two checks, in milliseconds.
    pub interval_ms: u64,
    /// Consecutive failed checks that end the probation; a failing command counts as one.
    pub failures: u32,
    /// How errors are counted.
    pub errors: Option<ErrorCount>,
}

/// A command that prints how many errors there were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorCount {
    /// An absolute path and its arguments. It prints a number.
    pub command: Vec<String>,
    /// A check fails if there are more errors than this.
    pub max: u32,
}

impl Default for TrialSettings {
    fn default() -> Self {
        Self {
            canary: Vec::new(),
            probation_ms: 0,
            interval_ms: INTERVAL_MS,
            failures: FAILURES,
            errors: None,
        }
    }
}

/// Reads `canary`, and `probation` as a time or as a table.
pub(super) fn read(report: &mut Report, root: &Section, mode: Mode, listeners: &[Listener]) -> TrialSettings {
    let canary = canary(report, root, mode, listeners).unwrap_or_default();
    if !root.is_table("probation") {
        let time = root.duration_ms(report, "probation", 1).map_or(0, |found| found.value);
        return TrialSettings { canary, probation_ms: time, ..TrialSettings::default() };
    }
    let Some(section) = root.section(report, "probation", "probation.") else {
        return TrialSettings { canary, ..TrialSettings::default() };
    };
    section.refuse_unknown(report, KEYS);
    if !section.has("time") {
        section.missing(report, "time", "write time = \"30s\"");
    }
    let mut duration =
        |key, default| section.duration_ms(report, key, 1).map_or(default, |found| found.value);
    let (probation_ms, interval_ms) = (duration("time", 0), duration("interval", INTERVAL_MS));
    let failures = section.count(report, "failures", 1..=1_000).unwrap_or(FAILURES);
    TrialSettings { canary, probation_ms, interval_ms, failures, errors: errors(report, &section) }
}

fn errors(report: &mut Report, section: &Section) -> Option<ErrorCount> {
    if !section.has("errors") {
        section.refuse(report, "max_errors", "there is nothing that counts errors", ERRORS_EXAMPLE);
        return None;
    }
    let command = probe::command(report, section, "errors")?;
    Some(ErrorCount { command, max: section.count(report, "max_errors", 0..=u32::MAX).unwrap_or(0) })
}

fn canary(
    report: &mut Report,
    root: &Section,
    mode: Mode,
    listeners: &[Listener],
) -> Option<Vec<CanaryStep>> {
    let texts = root.strings(report, "canary")?;
    if mode == Mode::Exclusive {
        let cause = "in exclusive mode one process serves at a time, so none can have a share";
        root.refuse(
            report,
            "canary",
            cause,
            "remove it, or write mode = \"overlap\" if the service allows that",
        );
        return None;
    }
    let is_unix = |listener: &Listener| matches!(listener.address, ListenAddress::Unix(_));
    if listeners.iter().all(is_unix) {
        let cause = "the kernel can share out the connections of TCP listeners only, and there is none";
        root.refuse(report, "canary", cause, "remove it");
        return None;
    }
    match steps(&texts) {
        Ok(steps) => Some(steps),
        Err(cause) => {
            root.refuse(report, "canary", &cause, CANARY_EXAMPLE);
            None
        }
    }
}

/// Steps such as `5% 30s`, each with a larger share than the one before. The error is one clause.
fn steps(texts: &[String]) -> Result<Vec<CanaryStep>, String> {
    if texts.len() > STEPS_MAX {
        return Err(format!("has {} steps; at most {STEPS_MAX} are allowed", texts.len()));
    }
    let steps = texts.iter().map(|text| step(text)).collect::<Result<Vec<_>, _>>()?;
    match steps.windows(2).position(|pair| pair[1].permille <= pair[0].permille) {
        Some(at) => Err(format!("{:?} is no greater share than {:?} before it", texts[at + 1], texts[at])),
        None => Ok(steps),
    }
}

fn step(text: &str) -> Result<CanaryStep, String> {
    let Some((share, time)) = text.split_once('%') else {
        return Err(format!("{text:?} has no share in %"));
    };
    let permille = permille(share.trim())
        .ok_or_else(|| format!("{:?} is no share from 0.1 to 100 with at most one decimal", share.trim()))?;
    match parse_duration_ms(time.trim())? {
        0 => Err(format!("{text:?} lasts no time")),
        time_ms => Ok(CanaryStep { permille, time_ms }),
    }
}

fn permille(share: &str) -> Option<u16> {
    let (whole, tenths) = share.split_once('.').unwrap_or((share, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(tenths) || tenths.len() != 1 {
        return None;
    }
    let permille = whole.parse::<u16>().ok()?.checked_mul(10)?.checked_add(tenths.parse().ok()?)?;
    (1..=1_000).contains(&permille).then_some(permille)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_a_share_and_a_time() {
        let parsed = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            steps(&texts).map(|steps| steps.iter().map(|it| (it.permille, it.time_ms)).collect::<Vec<_>>())
        };
        assert_eq!(parsed(&["5% 30s", "25 % 1m"]), Ok(vec![(50, 30_000), (250, 60_000)]));
        assert_eq!(parsed(&["0.5% 1s", "100% 1s"]), Ok(vec![(5, 1_000), (1_000, 1_000)]));
        assert_eq!(parsed(&[]), Ok(vec![]));
        for (texts, cause) in [
            (&["5 30s"][..], "no share in %"),
            (&["0% 30s"], "no share from 0.1"),
            (&["101% 30s"], "no share from 0.1"),
            (&["5.55% 30s"], "no share from 0.1"),
            (&["-5% 30s"], "no share from 0.1"),
            (&["5% soon"], "no duration"),
            (&["5% 0s"], "lasts no time"),
            (&["25% 1s", "5% 1s"], "no greater share"),
            (&["5% 1s", "5% 1s"], "no greater share"),
        ] {
            assert!(parsed(texts).unwrap_err().contains(cause), "{texts:?}");
        }
    }
}
