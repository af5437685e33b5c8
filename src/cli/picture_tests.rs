//! Tests of the pictures.

use handoff_protocol::ids::{Generation, HandoffId};

use super::*;
use crate::control::Caller;
use crate::history::Version;

fn entry(mode: Mode, outcome: Ending, phases: &[(&str, u64)]) -> Entry {
    let version = |path: &str| Some(Version { path: path.into(), sha256: None, version: None });
    let mut started_us = 0;
    let mut time = |(phase, took_us): &(&str, u64)| {
        let time = PhaseTime { phase: (*phase).to_owned(), started_us, took_us: *took_us };
        started_us += took_us;
        time
    };
    let phases = phases.iter().map(&mut time).collect();
    Entry {
        id: HandoffId::NIL,
        service: "s3".parse().unwrap(),
        operation: Operation::Upgrade,
        mode,
        from: version("/1"),
        to: version("/2"),
        by: Caller { uid: 0, pid: 1, command: String::new() },
        at: 0,
        took_us: started_us,
        phases,
        accept_gap_us: None,
        restarted: false,
        connections: None,
        lost_datagrams: 0,
        outcome,
        reason: None,
        generation: Generation(2),
        killed: Vec::new(),
    }
}

const EXCLUSIVE: [(&str, u64); 8] = [
    ("greeting", 100_000),
    ("warming", 2_000),
    ("draining", 1_000),
    ("sealing", 1_000),
    ("beginning", 2_000),
    ("committing", 16_000),
    ("retiring", 2_000),
    ("serving", 1),
];

fn drawn(entry: &Entry, width: usize) -> String {
    format!("\n{}\n", draw(entry, width).join("\n"))
}

#[test]
fn an_upgrade_in_exclusive_mode() {
    let picture = drawn(&entry(Mode::Exclusive, Ending::Committed, &EXCLUSIVE), 100);
    let expected = "
            greeting            warming draining sealing beginning committing  retiring
            |0 µs               |100 ms |102 ms  |103 ms |104 ms   |106 ms     |122 ms  |124 ms
supervisor  ·······················································▒ records ▒▒·········
incumbent   ████████████████████████████ drains █ seals ▒······················ leaves ▒
successor   ▒▒▒▒▒▒▒▒▒▒ starts ▒▒▒▒▒▒▒▒▒▒·················▒ begins ▒█████████████████████
";
    assert_eq!(picture, expected);
}

#[test]
fn an_upgrade_in_overlap_mode() {
    let phases = [("importing", 300_000), ("preflight", 20_000), ("greeting", 100_000), ("warming", 5_000)];
    let more = [("beginning", 2_000), ("probing", 9_000), ("committing", 1_000), ("retiring", 900_000)];
    let picture = drawn(&entry(Mode::Overlap, Ending::Committed, &[&phases[..], &more[..]].concat()), 70);
    let expected = "
            1       2  3   4  5  6  7  retiring
            |0 µs   |300 ms   |425 ms  |437 ms            |1.34 s
supervisor  ▒▒▒▒▒▒▒▒▒▒▒··········▒▒▒▒▒▒···················
incumbent   ███████████████████████████▒▒▒▒▒ leaves ▒▒▒▒▒▒
successor              ▒▒▒▒▒▒▒▒▒▒▒▒▒██████████████████████
";
    assert_eq!(picture, expected);
}

#[test]
fn an_upgrade_that_was_rolled_back() {
    let phases = [
        ("greeting", 10),
        ("draining", 10),
        ("sealing", 10),
        ("beginning", 50),
        ("reaping", 10),
        ("resuming", 9),
    ];
    let picture = drawn(&entry(Mode::Exclusive, Ending::RolledBack, &phases), 90);
    let expected = "
            greeting  draining  sealing  beginning        reaping  resuming
            |0 µs     |10 µs    |20 µs   |30 µs           |80 µs   |90 µs    |99 µs
supervisor  ·································································
incumbent   ███████████ drains █▒ seals ▒·························· resumes ▒
successor   ▒ starts ▒···················▒▒▒▒ begins ▒▒▒▒▒▒▒▒▒▒▒▒▒▒
";
    assert_eq!(picture, expected);
}

#[test]
fn a_start_and_a_stop() {
    let start = Entry {
        operation: Operation::Start,
        from: None,
        ..entry(Mode::Exclusive, Ending::Started, &[("greeting", 5), ("beginning", 5), ("committing", 5)])
    };
    let expected = "
            greeting   beginning   committing
            |0 µs      |5 µs       |10 µs       |15 µs
supervisor  ·······················▒▒ records ▒▒
incumbent
successor   ▒ starts ▒▒▒▒ begins ▒▒█████████████
";
    assert_eq!(drawn(&start, 60), expected);
    let stop = Entry {
        operation: Operation::Stop,
        to: None,
        ..entry(Mode::Exclusive, Ending::Stopped, &[("stopping", 5)])
    };
    let expected = "
            stopping
            |0 µs             |5 µs
supervisor  ··················
incumbent   ▒▒▒▒▒ stops ▒▒▒▒▒▒
successor
";
    assert_eq!(drawn(&stop, 40), expected);
}

#[test]
fn no_width_is_too_narrow_and_nothing_is_wider_than_it_may() {
    let entry = entry(Mode::Exclusive, Ending::Committed, &EXCLUSIVE);
    for width in 0..200 {
        let lines = draw(&entry, width);
        assert_eq!(lines.len(), 5);
        let widest = lines.iter().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= width.max(46), "{widest} of {width}");
    }
    assert!(draw(&Entry { phases: Vec::new(), ..entry }, 80).is_empty());
}
