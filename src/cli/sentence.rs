//! The one sentence at the end of an operation.

use super::human::span;
use crate::control::api::{Ending, Outcome};

/// What runs now, how long it took and how long the accept gap was; or why it was rolled back and what still runs.
pub(super) fn of(outcome: &Outcome) -> String {
    let Outcome { service, reason, generation, took_us, .. } = outcome;
    let binary = outcome.binary.display();
    let took = span(*took_us);
    let pid = outcome.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
    let gap = outcome.accept_gap_us.map(span);
    match outcome.outcome {
        Ending::Committed => {
            let gap = gap.map_or_else(
                || "there was no accept gap".to_owned(),
                |gap| format!("the accept gap was {gap}"),
            );
            let how = reason.as_deref().map_or_else(|| format!("upgraded in {took}, {gap}"), str::to_owned);
            format!("{service} now runs {binary} (generation {generation}{pid}): {how}.")
        }
        Ending::RolledBack => {
            let reason = reason.as_deref().unwrap_or("no reason was given");
            let gap = gap.map_or_else(String::new, |gap| format!("; the accept gap was {gap}"));
            format!(
                "{service} was rolled back after {took}: {reason}; {binary} (generation {generation}{pid}) still \
                 serves{gap}."
            )
        }
        Ending::Started => {
            format!("{service} now runs {binary} (generation {generation}{pid}): started in {took}.")
        }
        Ending::Unchanged => {
            format!("{service} runs {binary} already (generation {generation}{pid}): nothing was done.")
        }
        Ending::Stopped => format!("{service} is stopped; that took {took}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff_protocol::ids::{Generation, HandoffId};

    #[test]
    fn each_ending_has_its_sentence() {
        let mut outcome = Outcome {
            service: "s3".parse().unwrap(),
            handoff: HandoffId::NIL,
            outcome: Ending::Committed,
            reason: None,
            generation: Generation(3),
            pid: Some(42),
            binary: "/srv/s3".into(),
            sha256: None,
            stored: None,
            version: None,
            took_us: 2_100,
            accept_gap_us: Some(600),
            phases: vec![],
        };
        let now = "s3 now runs /srv/s3 (generation 3, pid 42)";
        assert_eq!(of(&outcome), format!("{now}: upgraded in 2.1 ms, the accept gap was 600 µs."));
        outcome.accept_gap_us = None;
        assert_eq!(of(&outcome), format!("{now}: upgraded in 2.1 ms, there was no accept gap."));
        outcome.outcome = Ending::Started;
        assert_eq!(of(&outcome), format!("{now}: started in 2.1 ms."));
        outcome.outcome = Ending::RolledBack;
        outcome.reason = Some("the new process exited with status 1".into());
        assert_eq!(
            of(&outcome),
            "s3 was rolled back after 2.1 ms: the new process exited with status 1; /srv/s3 (generation 3, pid 42) \
             still serves."
        );
        outcome.outcome = Ending::Unchanged;
        assert_eq!(of(&outcome), "s3 runs /srv/s3 already (generation 3, pid 42): nothing was done.");
        outcome.outcome = Ending::Stopped;
        outcome.pid = None;
        assert_eq!(of(&outcome), "s3 is stopped; that took 2.1 ms.");
    }
}
