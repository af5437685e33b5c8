//! Packets of a service, of a supervisor, and of both sides of a keeper.

use std::fmt::Debug;

use handoff::keeper::{KeeperReply, KeeperRequest};
use handoff_protocol::frame::{FrameError, HEADER_LEN, MAGIC, Message, decode, encode};
use handoff_protocol::message::{FromService, ToService};
use handoff_protocol::version::UNAGREED;

/// Any packet is refused with a reason, or has exactly one meaning: what is read is written as the same bytes.
pub fn frame(packet: &[u8]) {
    in_each_direction(packet);
    // No fuzzer finds a checksum by itself.
    if let Some(mended) = mended(packet) {
        in_each_direction(&mended);
    }
}

fn in_each_direction(packet: &[u8]) {
    means_one_thing::<FromService>(packet);
    means_one_thing::<ToService>(packet);
    means_one_thing::<KeeperRequest>(packet);
    means_one_thing::<KeeperReply>(packet);
}

fn means_one_thing<M: Message + Debug + PartialEq>(packet: &[u8]) {
    let (version, fds) = (u16_at(packet, 4), usize::from(u16_at(packet, 8)));
    for agreed in [UNAGREED, version] {
        match decode::<M>(packet, fds, agreed) {
            Ok((id, message)) => {
                assert_eq!(message.fd_count(), fds);
                assert_eq!(encode(agreed, id, &message).expect("what was read can be written"), packet);
                let lost = decode::<M>(packet, fds + 1, agreed);
                assert!(matches!(lost, Err(FrameError::FdCount { .. })), "{lost:?}");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// The packet with a magic, a length and a checksum that fit.
fn mended(packet: &[u8]) -> Option<Vec<u8>> {
    let mut packet = packet.to_vec();
    let length = u32::try_from(packet.len().checked_sub(HEADER_LEN)?).ok()?;
    packet[..4].copy_from_slice(&MAGIC);
    packet[12..16].copy_from_slice(&length.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&packet[..32]);
    hasher.update(&packet[HEADER_LEN..]);
    packet[32..HEADER_LEN].copy_from_slice(&hasher.finalize().to_le_bytes());
    Some(packet)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(bytes) => u16::from_le_bytes([bytes[0], bytes[1]]),
        None => 0,
    }
}
