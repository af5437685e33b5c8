//! Version 1 of the wire and of the journal, pinned byte by byte: these files never change, or old and new processes
//! no longer understand each other.

mod common;
#[path = "common/samples.rs"]
mod samples;

use std::fmt::Write;

use handoff_protocol::frame::{self, Message};
use handoff_protocol::log_image;
use handoff_protocol::message::{FromService, ToService};
use handoff_protocol::record::Record;

const VERSION: u16 = 1;

#[test]
fn messages_of_a_service_are_pinned() {
    for message in samples::from_service() {
        pin(&message, message.name());
    }
}

#[test]
fn messages_to_a_service_are_pinned() {
    for message in samples::to_service() {
        pin(&message, message.name());
    }
}

#[test]
fn records_are_pinned() {
    for (name, fact) in samples::facts() {
        let record = Record { at_unix_ms: 1_700_000_000_000, fact };
        let bytes = log_image::encode(1, &record).expect("a record");
        common::assert_golden(&format!("v1/record_{name}.hex"), &hex(&bytes));
    }
}

#[test]
fn the_header_of_the_journal_is_pinned() {
    common::assert_golden("v1/journal_header.hex", &hex(&log_image::header()));
}

#[test]
fn there_is_a_sample_of_every_kind() {
    let kinds = |all: Vec<(u8, &'static str)>, known: &[(u8, &'static str)]| assert_eq!(all, known);
    kinds(samples::from_service().iter().map(|it| (it.kind(), it.name())).collect(), FromService::KINDS);
    kinds(samples::to_service().iter().map(|it| (it.kind(), it.name())).collect(), ToService::KINDS);
}

#[test]
fn kinds_are_given_once_and_tell_the_direction() {
    let kinds: Vec<u8> = FromService::KINDS.iter().chain(ToService::KINDS).map(|(kind, _)| *kind).collect();
    let mut distinct = kinds.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), kinds.len());
    assert!(FromService::KINDS.iter().all(|(kind, _)| kind & 0x80 == 0));
    assert!(ToService::KINDS.iter().all(|(kind, _)| kind & 0x80 != 0));
}

#[test]
fn the_table_of_kinds_tells_the_truth() {
    let row = |kind: u8, name: &str, from: &str, to: &str| {
        format!("//! | {kind:#04x} | `{name}` | {from} | {to} |")
    };
    let ours = FromService::KINDS.iter().map(|(kind, name)| row(*kind, name, "service", "supervisor"));
    let theirs = ToService::KINDS.iter().map(|(kind, name)| row(*kind, name, "supervisor", "service"));
    let source = include_str!("../src/message.rs");
    let written: Vec<&str> = source.lines().filter(|line| line.starts_with("//! | 0x")).collect();
    assert_eq!(written, ours.chain(theirs).collect::<Vec<_>>());
}

#[test]
fn the_ledger_has_a_line_for_each_version() {
    use handoff_protocol::version::{CURRENT, MINIMUM};
    let source = include_str!("../src/version.rs");
    for version in MINIMUM..=CURRENT {
        assert!(
            source.lines().any(|line| line.starts_with(&format!("//! | {version} | "))),
            "version {version}"
        );
    }
}

fn pin<M: Message + PartialEq + std::fmt::Debug>(message: &M, name: &str) {
    let bytes = frame::encode(VERSION, samples::id(), message).expect("a frame");
    common::assert_golden(&format!("v1/{:02x}_{name}.hex", message.kind()), &hex(&bytes));
    let agreed = if message.before_agreement() { handoff_protocol::version::UNAGREED } else { VERSION };
    let read = frame::decode(&bytes, message.fd_count(), agreed);
    assert_eq!(read.as_ref(), Ok(&(samples::id(), clone(&bytes, message))));
}

/// The message as it is read back from its body alone.
fn clone<M: Message>(frame: &[u8], message: &M) -> M {
    M::decode_body(message.kind(), &frame[frame::HEADER_LEN..]).expect("a body")
}

/// 16 bytes a line.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(16) {
        let _ =
            writeln!(text, "{}", line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "));
    }
    text
}
