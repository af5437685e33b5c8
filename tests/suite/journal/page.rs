//! Checks docs/internals/journal.md.

use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::log_image;
use handoff_protocol::reason::Exit;
use handoff_protocol::record::{Binary, Fact, Process, Record};

const PAGE: &str = include_str!("../../../docs/internals/journal.md");

#[test]
fn the_worked_example_is_what_is_written() {
    let record = Record {
        at_unix_ms: 1_760_000_000_000,
        fact: Fact::Committed {
            handoff: HandoffId::from_bytes(*b"\x01\x99\xc8\x2c\xc0\0\x70\0\x80\0\0\0\0\0\0\x01"),
        },
    };
    let mut bytes = log_image::header().to_vec();
    bytes.extend(log_image::encode(1, &record).unwrap());
    bytes[log_image::PROVEN_AT..log_image::HEADER_LEN].copy_from_slice(&log_image::proven(1));
    let block = PAGE.split("```hex\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let shown: String = block
        .lines()
        .map(|line| line.split('│').next().unwrap_or_default())
        .flat_map(str::split_whitespace)
        .collect();
    let written: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(shown, written);
    assert_eq!(log_image::parse(&bytes).unwrap().records, [record]);
}

#[test]
fn every_kind_is_described_and_marked_if_it_is_durable() {
    let binary = Binary { path: String::new(), sha256: [0; 32] };
    let process = Process { pid: 0, start_ticks: 0, boot_id: [0; 16] };
    let exit = Exit::Unknown;
    let (handoff, generation) = (HandoffId::NIL, Generation(0));
    let facts = [
        Fact::Wanted { up: true },
        Fact::Intent { handoff, generation, binary },
        Fact::Spawned { handoff, process },
        Fact::Begun { handoff },
        Fact::Committed { handoff },
        Fact::RolledBack { handoff, reason: String::new() },
        Fact::Reverted { handoff },
        Fact::Exited { generation, exit },
        Fact::Snapshot(Box::default()),
    ];
    for (kind, fact) in facts.iter().enumerate() {
        let debug = format!("{fact:?}");
        let name = debug.split([' ', '(']).next().unwrap();
        let needs = if fact.is_durable() { "the disk" } else { "the page cache" };
        let described = format!("| {kind} | `{name}` |");
        assert!(PAGE.contains(&described), "no {described:?}");
        let needed = format!("| `{name}` | {needs} |");
        assert!(PAGE.contains(&needed), "no {needed:?}");
    }
}
