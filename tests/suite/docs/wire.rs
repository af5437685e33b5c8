//! Checks the protocol pages in docs/internals.

use std::ops::Range;

use handoff_protocol::frame;
use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::message::{
    Adopt, Adopted, Begin, Commit, Done, FromService, Hello, Mode, Prepare, Progress, Ready, Seal, Stage,
    ToService, Welcome,
};
use handoff_protocol::state::State;
use handoff_protocol::version::{MINIMUM, UNAGREED, VersionRange};

use super::{blocks, pages, quoted, table};

/// The text of all protocol pages.
fn protocol() -> String {
    pages()
        .into_iter()
        .filter(|(name, _)| name.starts_with("docs/internals/protocol"))
        .map(|(_, text)| text)
        .collect()
}

fn bytes(block: &str) -> Vec<u8> {
    let digits = block.lines().filter_map(|line| line.split(';').next()).flat_map(str::split_whitespace);
    digits.map(|digits| u8::from_str_radix(digits, 16).expect("two hexadecimal digits")).collect()
}

/// A frame of the worked exchange by direction, with the number of its descriptors.
enum Sent {
    Up(FromService, u16),
    Down(ToService, u16),
}

/// The ids, in the order of the page.
const IDS: [&str; 2] = ["01932f4a-8c00-7abc-8def-0123456789ab", "01932f4b-1a40-7bcd-8ef0-112233445566"];
const FRAMES_OF_THE_SECOND: Range<usize> = 12..14;

fn exchange() -> Vec<Sent> {
    use Sent::{Down, Up};
    let name = || "s3".parse().expect("a name");
    let welcome = Welcome {
        version: 1,
        service: "s3".parse().expect("a name"),
        generation: Generation(2),
        mode: Mode::Exclusive,
        listeners: vec![name()],
        lease_ms: 5_000,
    };
    let adopted = Adopted {
        version: 1,
        pid: 4711,
        service: "s3".parse().expect("a name"),
        generation: Generation(2),
        stage: Stage::Serving,
        listeners: vec![name()],
    };
    vec![
        Up(FromService::Hello(Hello { versions: VersionRange { minimum: 1, current: 1 }, pid: 4711 }), 0),
        Down(ToService::Welcome(welcome), 1),
        Down(ToService::Prepare(Prepare { grace_ms: 299_990, lease_ms: 304_990 }), 0),
        Up(FromService::Progress(Progress { note: String::new() }), 0),
        Up(FromService::Prepared(Done {}), 0),
        Down(ToService::Prepare(Prepare { grace_ms: 30_000, lease_ms: 35_000 }), 0),
        Up(FromService::Drained(Done {}), 0),
        Down(ToService::Seal(Seal { lease_ms: 5_000, cut: false }), 0),
        Up(FromService::Sealed(Done {}), 0),
        Down(ToService::Begin(Begin {}), 0),
        Up(FromService::Ready(Ready { healthy: true, reason: String::new() }), 0),
        Down(ToService::Commit(Commit {}), 0),
        Down(
            ToService::Adopt(Adopt { versions: VersionRange { minimum: 1, current: 1 }, lease_ms: 5_000 }),
            0,
        ),
        Up(FromService::Adopted(adopted), 1),
        Up(FromService::State(State::new(3, b"two sessions").expect("a state")), 0),
    ]
}

#[test]
fn the_worked_exchange_is_byte_for_byte_what_is_sent() {
    let text = protocol();
    let written = blocks(&text, "hex");
    let exchange = exchange();
    assert_eq!(written.len(), exchange.len());
    for (number, (block, sent)) in written.iter().zip(&exchange).enumerate() {
        let id = IDS[usize::from(FRAMES_OF_THE_SECOND.contains(&number))];
        assert!(text.contains(&format!("`{id}`")));
        let id: HandoffId = id.parse().expect("an id");
        let (encoded, found) = match sent {
            Sent::Up(message, fds) => {
                (frame::encode(version_of(message), id, message), decode(block, message, *fds))
            }
            Sent::Down(message, fds) => {
                (frame::encode(version_of(message), id, message), decode(block, message, *fds))
            }
        };
        assert_eq!(bytes(block), encoded.expect("a frame"), "step {}", number + 1);
        assert_eq!(found, id);
    }
}

/// The page shows each kind in its first version.
fn version_of(message: &impl frame::Message) -> u16 {
    message.since().max(MINIMUM)
}

/// Checks that the frame in `block` is `message`. Returns its id.
fn decode<M: frame::Message + PartialEq + std::fmt::Debug>(block: &str, message: &M, fds: u16) -> HandoffId {
    let agreed = if message.before_agreement() { UNAGREED } else { version_of(message) };
    let (id, found) = frame::decode::<M>(&bytes(block), fds.into(), agreed).expect("a frame");
    assert_eq!(&found, message);
    id
}

#[test]
fn the_example_of_the_checksum_is_right() {
    let text = protocol();
    let head =
        bytes(blocks(&text, "text").iter().find(|block| block.starts_with("68 6f 66 66")).expect("a header"));
    assert_eq!(head.len(), 32);
    let frame = bytes(&blocks(&text, "hex")[6]);
    assert_eq!(frame[..32], head);
    let crc = u32::from_le_bytes(frame[32..36].try_into().expect("four bytes"));
    assert!(text.contains(&format!("`{crc:#010x}`")), "{crc:#010x}");
    let stands: Vec<String> = frame[32..36].iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(text.contains(&format!("`{}`", stands.join(" "))), "{stands:?}");
}

#[test]
fn the_messages_are_those_of_the_code() {
    let rows = table(&protocol(), &["kind", "name", "from", "body"]);
    let documented: Vec<(String, String)> =
        rows.iter().map(|row| (row[0].clone(), quoted(&row[1])[0].to_owned())).collect();
    let kinds = FromService::KINDS.iter().chain(ToService::KINDS);
    let known: Vec<_> = kinds.map(|(kind, name)| (format!("{kind:#04x}"), (*name).to_owned())).collect();
    assert_eq!(documented, known);
    for (_, name) in known {
        assert!(protocol().contains(&format!("\n### {name}\n")), "{name} has no section");
    }
}
