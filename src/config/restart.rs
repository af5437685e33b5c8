//! Whether a service starts again after its process has ended, and when: `restart`, `success_exit_codes`, `[backoff]`.

use handoff_protocol::restart::{Restart, When};

use super::error::Report;
use super::kind::ServiceKind;
use super::table::Section;

const KEYS: &[&str] = &["first", "factor", "max", "reset", "attempts", "within"];
const WHEN: [(&str, When); 3] =
    [("always", When::Always), ("on-failure", When::OnFailure), ("never", When::Never)];

pub(super) fn read(report: &mut Report, root: &Section, kind: ServiceKind) -> Restart {
    let usual = Restart::default();
    let when = root.choice(report, "restart", &WHEN).unwrap_or(kind.restart());
    if (kind, when) == (ServiceKind::Oneshot, When::Always) {
        let hint = "write \"on-failure\" or \"never\", or remove type";
        root.refuse(report, "restart", "would run the job without end", hint);
    }
    let mut success = root.numbers(report, "success_exit_codes", 0..=255).unwrap_or_default();
    // As in every shell.
    success.push(0);
    success.sort_unstable();
    success.dedup();
    let restart = Restart { when, success, ..usual };
    let Some(section) = root.section(report, "backoff", "backoff.") else { return restart };
    section.refuse_unknown(report, KEYS);
    let mut duration = |key, usual_ms| section.duration_ms(report, key, 1).map_or(usual_ms, |it| it.value);
    let first_ms = duration("first", restart.first_ms);
    let max_ms = duration("max", restart.max_ms);
    let healthy_ms = duration("reset", restart.healthy_ms);
    let within_ms = duration("within", restart.within_ms);
    let factor = section.count(report, "factor", 1..=100).unwrap_or(restart.factor);
    let budget = section.count(report, "attempts", 0..=255).and_then(|count| u8::try_from(count).ok());
    if first_ms > max_ms {
        section.refuse(
            report,
            "first",
            "is longer than the longest pause",
            "shorten it, or raise backoff.max",
        );
    }
    Restart {
        first_ms,
        factor,
        max_ms,
        healthy_ms,
        budget: budget.unwrap_or(restart.budget),
        within_ms,
        ..restart
    }
}
