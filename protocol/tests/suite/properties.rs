//! For any input: what was written is read back, damaged data is refused, and nothing panics.

use handoff_protocol::frame::{self, FrameError, Message};
use handoff_protocol::ids::{Generation, HandoffId, ListenerName, ServiceName};
use handoff_protocol::log_image::{self, ImageError};
use handoff_protocol::message::{
    Abort, Adopt, Adopted, Begin, Commit, Done, Failed, FromService, Hello, Mode, Prepare, Progress, Ready,
    Release, Resume, Seal, Stage, ToService, Welcome,
};
use handoff_protocol::reason::Exit;
use handoff_protocol::record::{self, Binary, Fact, Process, Record, Standing};
use handoff_protocol::state::{INLINE_MAX, State};
use handoff_protocol::version::{UNAGREED, VersionRange};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::samples;

const VERSION: u16 = 4;

proptest! {
    // A failing case becomes a test of its own, not a file.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_message_of_a_service_survives_the_wire(id: [u8; 16], message in from_service()) {
        survives(id, &message)?;
    }

    #[test]
    fn a_message_to_a_service_survives_the_wire(id: [u8; 16], message in to_service()) {
        survives(id, &message)?;
    }

    #[test]
    fn arbitrary_bytes_are_no_panic(bytes in vec(any::<u8>(), 0..300), fds in 0usize..300, agreed: u16) {
        let _ = frame::decode::<FromService>(&bytes, fds, agreed);
        let _ = frame::decode::<ToService>(&bytes, fds, agreed);
        let _ = log_image::parse(&bytes);
        let _ = log_image::parse(&[&log_image::header()[..], &bytes].concat());
    }

    /// Even with a correct checksum.
    #[test]
    fn an_arbitrary_body_is_no_panic(kind: u8, body in vec(any::<u8>(), 0..300)) {
        let _ = FromService::decode_body(kind, &body);
        let _ = ToService::decode_body(kind, &body);
    }

    #[test]
    fn an_image_survives_the_disk(facts in vec(fact(), 0..12)) {
        let (bytes, records, _) = image(facts);
        let image = log_image::parse(&bytes).expect("a whole image");
        prop_assert_eq!(&image.records, &records);
        prop_assert_eq!(image.end, bytes.len());
        prop_assert_eq!(image.next_sequence, records.len() as u64 + 1);
    }

    #[test]
    fn a_cut_image_yields_the_records_before_the_cut(facts in vec(fact(), 0..6)) {
        let (bytes, records, starts) = image(facts);
        for end in 0..bytes.len() {
            let image = log_image::parse(&bytes[..end]).expect("a torn tail is no damage");
            let whole = starts.iter().skip(1).filter(|start| **start <= end).count();
            prop_assert_eq!(&image.records, &records[..whole]);
            prop_assert_eq!(image.end, if end < log_image::HEADER_LEN { 0 } else { starts[whole] });
        }
    }

    #[test]
    fn a_flipped_bit_is_never_read(
        facts in vec(fact(), 1..8), at: prop::sample::Index, bit in 0u8..8, proven: prop::sample::Index,
    ) {
        let (mut bytes, records, starts) = image(facts);
        let at = log_image::HEADER_LEN + at.index(bytes.len() - log_image::HEADER_LEN);
        let proven = proven.index(records.len() + 1);
        bytes[log_image::PROVEN_AT..log_image::HEADER_LEN].copy_from_slice(&log_image::proven(proven as u64));
        prop_assert_eq!(log_image::parse(&bytes).map(|image| image.proven), Ok(if proven == 0 { 0 } else { starts[proven] }));
        bytes[at] ^= 1 << bit;
        let broken = starts.iter().rposition(|start| *start <= at).expect("it lies in a record");
        match log_image::parse(&bytes) {
            Err(error) => {
                prop_assert!(broken < proven);
                prop_assert_eq!(error, ImageError::Corrupt { offset: starts[broken] });
            }
            Ok(image) => {
                prop_assert!(broken >= proven);
                prop_assert_eq!(&image.records, &records[..broken]);
                prop_assert_eq!(image.end, starts[broken]);
            }
        }
    }

    /// The wall clock may be wrong, and may jump. Times are only for people.
    #[test]
    fn no_standing_depends_on_a_time(facts in vec((fact_of_one_thing(), any::<u64>(), any::<u64>()), 0..40)) {
        let fold_at = |time: fn((u64, u64)) -> u64| {
            let at = |(fact, first, second): &(Fact, u64, u64)| Record {
                at_unix_ms: time((*first, *second)),
                fact: fact.clone(),
            };
            without_times(record::fold(&facts.iter().map(at).collect::<Vec<_>>()))
        };
        let standing = fold_at(|(first, _)| first);
        prop_assert_eq!(&standing, &fold_at(|(_, second)| second));
        prop_assert_eq!(&standing, &fold_at(|_| 0));
    }

    #[test]
    fn any_facts_can_be_folded(facts in vec(fact(), 0..40)) {
        let (_, records, _) = image(facts);
        for end in 0..=records.len() {
            let standing = record::fold(&records[..end]);
            prop_assert!(standing.previous.is_none() || standing.current.is_some());
        }
    }
}

fn without_times(mut standing: Standing) -> Standing {
    let Standing { current, previous, leaving, attempt, .. } = &mut standing;
    for generation in [current, previous, leaving].into_iter().flatten() {
        (generation.started_unix_ms, generation.since_unix_ms) = (0, 0);
    }
    if let Some(attempt) = attempt {
        attempt.started_unix_ms = 0;
    }
    standing
}

#[test]
fn every_flipped_bit_of_a_frame_is_refused() {
    for message in samples::from_service() {
        refuses_damage(&message);
    }
    for message in samples::to_service() {
        refuses_damage(&message);
    }
}

fn refuses_damage<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
    let whole = frame::encode(VERSION, samples::id(), message).expect("a frame");
    let agreed = if message.before_agreement() { UNAGREED } else { VERSION };
    let read = |bytes: &[u8]| frame::decode::<M>(bytes, message.fd_count(), agreed);
    assert!(read(&whole).is_ok());
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&bytes).is_err(), "{message:?} with bit {bit} flipped");
    }
    for end in 0..whole.len() {
        assert!(read(&whole[..end]).is_err(), "{message:?} cut after {end} bytes");
    }
    assert!(read(&[&whole[..], &[0]].concat()).is_err(), "{message:?} with a byte too many");
    assert!(
        frame::decode::<M>(&whole, message.fd_count() + 1, agreed).is_err(),
        "{message:?} with an fd too many"
    );
    if !message.before_agreement() {
        let read = frame::decode::<M>(&whole, message.fd_count(), VERSION + 1);
        assert_eq!(read.err(), Some(FrameError::Version { found: VERSION, agreed: VERSION + 1 }));
    }
}

/// A correct checksum does not make a header valid.
#[test]
fn every_field_of_the_header_is_checked() {
    let message = FromService::Sealed(Done {});
    let with = |at: usize, byte: u8, fds: usize| {
        let mut bytes = frame::encode(VERSION, samples::id(), &message).expect("a frame");
        bytes[at] = byte;
        let crc = crc32fast::hash(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        frame::decode::<FromService>(&bytes, fds, VERSION).err()
    };
    assert_eq!(with(0, b'h', 0), None, "nothing changed");
    assert_eq!(with(0, b'H', 0), Some(FrameError::Magic));
    assert_eq!(with(4, 2, 0), Some(FrameError::Version { found: 2, agreed: VERSION }));
    assert_eq!(with(6, 0x84, 0), Some(FrameError::Kind { kind: 0x84 }));
    assert_eq!(with(6, 0x05, 0), Some(FrameError::Body { kind: 0x05 }));
    assert_eq!(with(7, 1, 0), Some(FrameError::Flags));
    assert_eq!(with(10, 1, 0), Some(FrameError::Flags));
    assert_eq!(with(12, 1, 0), Some(FrameError::Length { announced: 1, found: 0 }));
    assert_eq!(with(8, 1, 1), Some(FrameError::FdCount { expected: 0, found: 1 }));
    assert_eq!(with(0, b'h', 2), Some(FrameError::FdCount { expected: 0, found: 2 }));
}

#[test]
fn frames_over_the_limit_are_neither_made_nor_read() {
    let note = "x".repeat(frame::FRAME_MAX);
    let made = frame::encode(VERSION, samples::id(), &FromService::Progress(Progress { note }));
    assert!(made.is_err());
    let read = frame::decode::<FromService>(&vec![0; frame::FRAME_MAX + 1], 0, VERSION);
    assert_eq!(read.err(), Some(FrameError::TooLong));
}

fn survives<M: Message + PartialEq + std::fmt::Debug>(
    id: [u8; 16],
    message: &M,
) -> Result<(), TestCaseError> {
    let id = HandoffId::from_bytes(id);
    let bytes = frame::encode(VERSION, id, message).expect("a frame");
    let agreed = if message.before_agreement() { UNAGREED } else { VERSION };
    let (read_id, read) = frame::decode::<M>(&bytes, message.fd_count(), agreed).expect("the same frame");
    prop_assert_eq!(read_id, id);
    prop_assert_eq!(&read, message);
    Ok(())
}

/// A journal, its records, and the start of each record; at the end, the start of the next one.
fn image(facts: Vec<Fact>) -> (Vec<u8>, Vec<Record>, Vec<usize>) {
    let mut bytes = log_image::header().to_vec();
    let mut starts = vec![bytes.len()];
    let mut records = Vec::new();
    for (at, fact) in facts.into_iter().enumerate() {
        let record = Record { at_unix_ms: at as u64, fact };
        bytes.extend(log_image::encode(at as u64 + 1, &record).expect("a record"));
        starts.push(bytes.len());
        records.push(record);
    }
    (bytes, records, starts)
}

fn text() -> impl Strategy<Value = String> {
    ".{0,40}"
}

fn from_service() -> impl Strategy<Value = FromService> {
    prop_oneof![
        (any::<(u16, u16, u32)>()).prop_map(|(minimum, current, pid)| {
            FromService::Hello(Hello { versions: VersionRange { minimum, current }, pid })
        }),
        Just(FromService::Prepared(Done {})),
        Just(FromService::Drained(Done {})),
        Just(FromService::Sealed(Done {})),
        text().prop_map(|reason| FromService::SealFailed(Failed { reason })),
        (any::<bool>(), text()).prop_map(|(healthy, reason)| FromService::Ready(Ready { healthy, reason })),
        Just(FromService::Resumed(Done {})),
        text().prop_map(|reason| FromService::ResumeFailed(Failed { reason })),
        text().prop_map(|note| FromService::Progress(Progress { note })),
        (welcome(), any::<u32>(), stage()).prop_map(|(welcome, pid, stage)| {
            let Welcome { version, service, generation, listeners, .. } = welcome;
            FromService::Adopted(Adopted { version, pid, service, generation, stage, listeners })
        }),
        state().prop_map(FromService::State),
        text().prop_map(|version| FromService::Release(Release { version })),
    ]
}

fn to_service() -> impl Strategy<Value = ToService> {
    prop_oneof![
        welcome().prop_map(ToService::Welcome),
        any::<(u64, u64)>()
            .prop_map(|(grace_ms, lease_ms)| ToService::Prepare(Prepare { grace_ms, lease_ms })),
        any::<(u64, bool)>().prop_map(|(lease_ms, cut)| ToService::Seal(Seal { lease_ms, cut })),
        Just(ToService::Begin(Begin {})),
        Just(ToService::Commit(Commit {})),
        Just(ToService::Abort(Abort {})),
        Just(ToService::Resume(Resume {})),
        any::<(u16, u16, u64)>().prop_map(|(minimum, current, lease_ms)| {
            ToService::Adopt(Adopt { versions: VersionRange { minimum, current }, lease_ms })
        }),
        state().prop_map(ToService::State),
    ]
}

/// Lengths around the limit above which a state travels outside of the message.
fn state() -> impl Strategy<Value = State> {
    let length = prop_oneof![0..100usize, INLINE_MAX - 2..INLINE_MAX + 3];
    (any::<(u32, u8)>(), length)
        .prop_map(|((format, byte), length)| State::new(format, &vec![byte; length]).expect("a state"))
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![Just(Stage::Serving), Just(Stage::Working), Just(Stage::Waiting), Just(Stage::Leaving)]
}

fn welcome() -> impl Strategy<Value = Welcome> {
    let name = "[a-z0-9_][a-z0-9_-]{0,63}";
    (any::<(u16, u64, bool, u64)>(), name, vec(name, 0..8)).prop_map(|(numbers, service, listeners)| {
        let (version, generation, exclusive, lease_ms) = numbers;
        Welcome {
            version,
            service: service.parse::<ServiceName>().expect("a name"),
            generation: Generation(generation),
            mode: if exclusive { Mode::Exclusive } else { Mode::Overlap },
            listeners: listeners.iter().map(|name| name.parse::<ListenerName>().expect("a name")).collect(),
            lease_ms,
        }
    })
}

fn fact() -> impl Strategy<Value = Fact> {
    let snapshot = vec((any::<u64>(), fact_of_one_thing()), 0..8).prop_map(|facts| {
        let records: Vec<_> =
            facts.into_iter().map(|(at_unix_ms, fact)| Record { at_unix_ms, fact }).collect();
        Fact::Snapshot(Box::new(record::fold(&records)))
    });
    prop_oneof![9 => fact_of_one_thing(), 1 => snapshot]
}

/// Few different handoffs and generations, so that facts collide.
fn fact_of_one_thing() -> impl Strategy<Value = Fact> {
    let handoff = (0u8..3).prop_map(|number| HandoffId::from_bytes([number; 16]));
    let generation = (0u64..4).prop_map(Generation);
    let exit = prop_oneof![
        any::<i32>().prop_map(Exit::Code),
        any::<i32>().prop_map(Exit::Signal),
        Just(Exit::Unknown)
    ];
    prop_oneof![
        any::<bool>().prop_map(|up| Fact::Wanted { up }),
        (handoff.clone(), generation.clone(), text(), any::<[u8; 32]>()).prop_map(
            |(handoff, generation, path, sha256)| Fact::Intent {
                handoff,
                generation,
                binary: Binary { path, sha256 }
            }
        ),
        (handoff.clone(), any::<(u32, u64, [u8; 16])>()).prop_map(
            |(handoff, (pid, start_ticks, boot_id))| {
                Fact::Spawned { handoff, process: Process { pid, start_ticks, boot_id } }
            }
        ),
        handoff.clone().prop_map(|handoff| Fact::Begun { handoff }),
        handoff.clone().prop_map(|handoff| Fact::Committed { handoff }),
        (handoff.clone(), text()).prop_map(|(handoff, reason)| Fact::RolledBack { handoff, reason }),
        handoff.prop_map(|handoff| Fact::Reverted { handoff }),
        (generation, exit).prop_map(|(generation, exit)| Fact::Exited { generation, exit }),
    ]
}
