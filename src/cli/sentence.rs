//! The sentence at the end of an operation.

use super::human::span;
use crate::control::api::{Connections, Ending, Killed, Outcome};

/// The version that runs now, the duration and the accept gap; or the reason of a rollback and what still runs.
pub(super) fn of(outcome: &Outcome) -> String {
    [ending(outcome), lost(outcome.lost_datagrams), killed(&outcome.killed)].concat()
}

/// The number of lost datagrams, as an additional sentence.
pub(super) fn lost(datagrams: u64) -> String {
    match datagrams {
        0 => String::new(),
        1 => " One datagram was lost: no program has read it.".to_owned(),
        many => format!(" {many} datagrams were lost: no program has read them."),
    }
}

/// The killed processes, as additional sentences.
pub(super) fn killed(killed: &[Killed]) -> String {
    let one = |it: &Killed| {
        let after = span(it.after_ms.saturating_mul(1_000));
        format!(
            " Process {} ({}) was killed: it had not ended {after} after it was asked to.",
            it.pid, it.name
        )
    };
    killed.iter().map(one).collect()
}

fn ending(outcome: &Outcome) -> String {
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
            let left = remaining_connections(outcome.connections);
            format!("{service} now runs {binary} (generation {generation}{pid}): {how}.{left}")
        }
        Ending::RolledBack => {
            let reason = reason.as_deref().unwrap_or("no reason was given");
            let gap = gap.map_or_else(String::new, |gap| format!("; the accept gap was {gap}"));
            let still = match outcome.restarted {
                true => "was ended and serves again",
                false => "still serves",
            };
            let left = remaining_connections(outcome.connections);
            format!(
                "{service} was rolled back after {took}: {reason}; {binary} (generation {generation}{pid}) \
                 {still}{gap}.{left}"
            )
        }
        Ending::Started => {
            format!("{service} now runs {binary} (generation {generation}{pid}): started in {took}.")
        }
        Ending::Completed => {
            format!("{service} is done ({binary}, generation {generation}): that took {took}.")
        }
        Ending::Unchanged if outcome.pid.or(outcome.shim).is_none() => {
            format!("{service} is started from {binary} already: nothing was done.")
        }
        Ending::Staged => {
            format!("{service} is stopped: its next start is one of {binary}, which is kept for it.")
        }
        Ending::Unchanged => {
            format!("{service} runs {binary} already (generation {generation}{pid}): nothing was done.")
        }
        Ending::Failed => {
            let reason = reason.as_deref().unwrap_or("no reason was given");
            format!("{service} failed after {took}: {reason}.")
        }
        Ending::Stopped => {
            let reason = reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
            format!("{service} is stopped; that took {took}{reason}.")
        }
    }
}

/// The connections of the old process at the stop signal, if there were any.
fn remaining_connections(connections: Option<Connections>) -> String {
    match connections {
        Some(Connections { open: open @ 1.., unread, unanswered }) => format!(
            " The old process had {open} {} when it got its stop signal: {unread} with a request that it had not read, \
             {unanswered} with one under way.",
            if open == 1 { "connection" } else { "connections" }
        ),
        Some(Connections { open: 0, .. }) | None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff_protocol::ids::Generation;

    #[test]
    fn each_ending_has_its_sentence() {
        let mut outcome = Outcome {
            service: "s3".parse().unwrap(),
            handoff: None,
            outcome: Ending::Committed,
            reason: None,
            generation: Generation(3),
            pid: Some(42),
            shim: None,
            binary: "/srv/s3".into(),
            sha256: None,
            stored: None,
            version: None,
            took_us: 2_100,
            accept_gap_us: Some(600),
            restarted: false,
            connections: None,
            lost_datagrams: 0,
            phases: vec![],
            killed: vec![],
            last_lines: None,
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
        outcome.restarted = true;
        outcome.connections = Some(Connections { open: 8, unread: 2, unanswered: 1 });
        assert_eq!(
            of(&outcome),
            "s3 was rolled back after 2.1 ms: the new process exited with status 1; /srv/s3 (generation 3, pid 42) \
             was ended and serves again. The old process had 8 connections when it got its stop signal: 2 with a request that it \
             had not read, 1 with one under way."
        );
        outcome.connections = Some(Connections { open: 1, unread: 0, unanswered: 1 });
        assert!(of(&outcome).contains("had 1 connection when"));
        (outcome.restarted, outcome.connections) = (false, None);
        outcome.outcome = Ending::Failed;
        assert_eq!(of(&outcome), "s3 failed after 2.1 ms: the new process exited with status 1.");
        outcome.outcome = Ending::Unchanged;
        assert_eq!(of(&outcome), "s3 runs /srv/s3 already (generation 3, pid 42): nothing was done.");
        outcome.outcome = Ending::Stopped;
        outcome.pid = None;
        let staged = Outcome { outcome: Ending::Staged, ..outcome.clone() };
        assert_eq!(of(&staged), "s3 is stopped: its next start is one of /srv/s3, which is kept for it.");
        assert_eq!(of(&outcome), "s3 is stopped; that took 2.1 ms: the new process exited with status 1.");
        outcome.lost_datagrams = 115;
        assert_eq!(
            of(&outcome),
            "s3 is stopped; that took 2.1 ms: the new process exited with status 1. 115 datagrams were lost: no program has read them."
        );
        outcome.lost_datagrams = 0;
        outcome.killed = vec![Killed { pid: 7, name: "redis-server".into(), after_ms: 30_000 }];
        assert_eq!(
            of(&outcome),
            "s3 is stopped; that took 2.1 ms: the new process exited with status 1. Process 7 (redis-server) was killed: it had \
             not ended 30.00 s after it was asked to."
        );
    }
}
