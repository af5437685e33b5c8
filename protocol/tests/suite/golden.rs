//! All versions of the wire, and the journal, byte by byte. These files never change: otherwise old and new processes
//! could not understand each other.

use std::fmt::Write;

use handoff_protocol::frame::{self, FrameError, Message};
use handoff_protocol::log_image;
use handoff_protocol::message::{FromService, ToService};
use handoff_protocol::record::Record;
use handoff_protocol::version::{CURRENT, MINIMUM, UNAGREED};

use crate::common::samples;

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
    for (format, facts) in [(1, samples::facts()), (2, samples::newer_facts()), (3, samples::newest_facts())]
    {
        for (name, fact) in facts {
            let record = Record { at_unix_ms: 1_700_000_000_000, fact };
            let bytes = log_image::encode(1, &record).expect("a record");
            crate::common::assert_golden(&format!("v{format}/record_{name}.hex"), &hex(&bytes));
        }
    }
}

#[test]
fn the_header_of_the_journal_is_pinned() {
    crate::common::assert_golden("v3/journal_header.hex", &hex(&log_image::header()));
    crate::common::assert_golden("v1/journal_header.hex", &hex(&first_header()));
}

/// The header as written by the first version of this project.
fn first_header() -> Vec<u8> {
    let mut header = log_image::header().to_vec();
    header[log_image::FORMAT_AT..log_image::PROVEN_AT].copy_from_slice(&1_u32.to_le_bytes());
    header
}

#[test]
fn a_journal_of_the_first_format_is_read() {
    let mut bytes = first_header();
    let facts: Vec<_> = samples::facts().into_iter().map(|(_, fact)| fact).collect();
    for (sequence, fact) in (1..).zip(&facts) {
        let record = Record { at_unix_ms: 1, fact: fact.clone() };
        bytes.extend(log_image::encode(sequence, &record).expect("a record"));
    }
    let image = log_image::parse(&bytes).expect("a journal");
    assert_eq!((image.format, image.end), (1, bytes.len()));
    assert_eq!(image.records.into_iter().map(|record| record.fact).collect::<Vec<_>>(), facts);
    bytes[log_image::FORMAT_AT] = 4;
    assert!(log_image::parse(&bytes).is_err());
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
    let source = include_str!("../../src/message.rs");
    let written: Vec<&str> = source.lines().filter(|line| line.starts_with("//! | 0x")).collect();
    assert_eq!(written, ours.chain(theirs).collect::<Vec<_>>());
}

#[test]
fn the_ledger_has_a_line_for_each_version() {
    let source = include_str!("../../src/version.rs");
    for version in MINIMUM..=CURRENT {
        assert!(
            source.lines().any(|line| line.starts_with(&format!("//! | {version} | "))),
            "version {version}"
        );
    }
}

/// A frame with a kind, in the bytes of a version that does not have that kind.
#[test]
fn a_kind_is_unknown_in_a_version_before_it() {
    for message in samples::from_service().iter().filter(|message| message.since() > MINIMUM) {
        let mut bytes = frame::encode(CURRENT, samples::id(), message).expect("a frame");
        bytes[4..6].copy_from_slice(&MINIMUM.to_le_bytes());
        let crc = crc32fast::hash(&[&bytes[..32], &bytes[36..]].concat());
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        let read = frame::decode::<FromService>(&bytes, message.fd_count(), MINIMUM);
        assert_eq!(read, Err(FrameError::Kind { kind: message.kind() }));
    }
}

/// A state in a file cannot travel on a stream, but a state in the message can.
#[test]
fn a_state_in_a_file_does_not_travel_on_a_stream() {
    for message in samples::to_service().iter().filter(|message| message.name() == "State") {
        let encoded = frame::encode_for_stream(CURRENT, samples::id(), message);
        assert_eq!(encoded, Err(FrameError::FdCount { expected: 1, found: 0 }));
        let mut bytes = frame::encode(CURRENT, samples::id(), message).expect("a frame");
        bytes[8] = 0;
        let crc = crc32fast::hash(&[&bytes[..32], &bytes[36..]].concat());
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        let read = frame::decode_from_stream::<ToService>(&bytes, CURRENT);
        assert_eq!(read, Err(FrameError::FdCount { expected: 1, found: 0 }));
    }
    for message in samples::from_service().iter().filter(|message| message.name() == "State") {
        let bytes = frame::encode_for_stream(CURRENT, samples::id(), message).expect("a frame");
        let read = frame::decode_from_stream::<FromService>(&bytes, CURRENT);
        assert_eq!(read, Ok((samples::id(), clone(&bytes, message))));
    }
}

fn pin<M: Message + PartialEq + std::fmt::Debug>(message: &M, name: &str) {
    for version in MINIMUM..=CURRENT {
        let encoded = frame::encode(version, samples::id(), message);
        if version < message.since() {
            assert_eq!(encoded, Err(FrameError::Kind { kind: message.kind() }));
            continue;
        }
        let bytes = encoded.expect("a frame");
        crate::common::assert_golden(&format!("v{version}/{:02x}_{name}.hex", message.kind()), &hex(&bytes));
        let agreed = if message.before_agreement() { UNAGREED } else { version };
        let read = frame::decode(&bytes, message.fd_count(), agreed);
        assert_eq!(read.as_ref(), Ok(&(samples::id(), clone(&bytes, message))));
    }
}

/// The message as read back from its body.
fn clone<M: Message>(frame: &[u8], message: &M) -> M {
    M::decode_body(message.kind(), &frame[frame::HEADER_LEN..]).expect("a body")
}

/// 16 bytes per line.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(16) {
        let _ =
            writeln!(text, "{}", line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "));
    }
    text
}
