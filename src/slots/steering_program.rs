//! The program that chooses a member of a `SO_REUSEPORT` group for each new connection.
//!
//! Classic BPF. The kernel runs it on the first packet of a connection. The data of the program starts after the
//! transport header; negative offsets, relative to the network header, reach the headers. It returns the index of a
//! member. A load beyond the packet ends the program with 0, so it loads nothing before it knows the IP version.

use std::net::{IpAddr, SocketAddr};

use crate::sys::steer::Instruction;

/// The denominator of a [`ShareRule`].
pub const WHOLE: u32 = 10_000;

/// Where new connections go. Indices are the kernel's: see `member_order.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SteeringProgram {
    /// The index for everything else.
    pub default: u32,
    /// One client with its own index.
    pub probe: Option<ProbeRule>,
    /// QUIC connections that keep their index.
    pub affinities: Vec<QuicAffinity>,
    /// A share of the rest with its own index.
    pub share: Option<ShareRule>,
}

/// Exactly one client of this machine: the socket bound to `client` that connects to its own IP address.
///
/// No outside client can match. If a packet from outside claims an address of this machine, the kernel drops it (IPv4)
/// or sends the answer to this machine (IPv6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeRule {
    /// The client's bound address.
    pub client: SocketAddr,
    /// Its index.
    pub index: u32,
}

/// The QUIC connections whose ids begin with a mark. (RFC 9000, section 17: only ids chosen by the server count, which
/// are in packets with a short header and in handshake packets. The client may have chosen the id of an initial
/// packet.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuicAffinity {
    /// The first byte of the ids.
    pub mark: u8,
    /// Their index.
    pub index: u32,
}

/// A share of the new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareRule {
    /// Its index.
    pub index: u32,
    /// Size in parts of [`WHOLE`]; larger values mean everything.
    pub parts: u32,
    /// How packets are selected.
    pub selection: ShareSelection,
}

/// How packets are selected for a [`ShareRule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareSelection {
    /// By a random number of the kernel. For TCP, where the program runs once per connection. Better than the hash of
    /// the flow, which is 0 on interfaces that do not compute it.
    Random,
    /// By source port and the last word of the source address, the same for all packets of a flow. For UDP, where the
    /// program runs for each datagram.
    Flow,
}

impl SteeringProgram {
    /// Sends everything to one member.
    pub fn constant(index: u32) -> SteeringProgram {
        SteeringProgram { default: index, probe: None, affinities: Vec::new(), share: None }
    }

    /// The BPF instructions.
    pub fn instructions(&self) -> Vec<Instruction> {
        let mut code = Vec::new();
        if let Some(probe) = self.probe {
            code.extend(probe_code(probe));
        }
        if !self.affinities.is_empty() {
            code.extend(kept_code(&self.affinities));
        }
        if let Some(share) = self.share.filter(|share| share.parts > 0) {
            code.extend(share_code(share));
        }
        code.push(give(self.default));
        code
    }
}

/// Returns `index` for the probe's packets; all others continue after this code. IP options or extension headers before
/// the ports prevent a match.
fn probe_code(probe: ProbeRule) -> Vec<Instruction> {
    let checks = match probe.client.ip() {
        IpAddr::V4(ip) => {
            let (first_byte, address) = (vec![load_u8(0)], ip.to_bits());
            vec![
                (first_byte, 0x45),
                (vec![load_u32(V4_SOURCE)], address),
                (vec![load_u32(V4_DESTINATION)], address),
                (vec![load_u16(V4_PORT)], probe.client.port().into()),
            ]
        }
        IpAddr::V6(ip) => {
            let words = (0..4).map(|word| (word * 4, (ip.to_bits() >> (96 - 32 * word)) as u32));
            let version = (vec![load_u8(0), and(0xf0)], 0x60);
            let source = words.clone().map(|(at, word)| (vec![load_u32(V6_SOURCE + at)], word));
            let destination = words.map(|(at, word)| (vec![load_u32(V6_DESTINATION + at)], word));
            let port = (vec![load_u16(V6_PORT)], probe.client.port().into());
            [version].into_iter().chain(source).chain(destination).chain([port]).collect()
        }
    };
    // Built from the end, because a jump needs its distance.
    let mut code = vec![give(probe.index)];
    for (loads, value) in checks.into_iter().rev() {
        let behind = code.len() as u8;
        code.splice(0..0, loads.into_iter().chain([jump_unless_equal(value, behind)]));
    }
    code
}

/// Loads the first byte of a server-chosen connection id and compares it with each mark. All other packets continue
/// after this code.
fn kept_code(kept: &[QuicAffinity]) -> Vec<Instruction> {
    const LONG_HEADER: u32 = 0x80;
    const KIND: u32 = 0x30;
    const HANDSHAKE: u32 = 0x20;
    const ID_IN_SHORT: u32 = 1;
    /// After the version and the length of the id.
    const ID_IN_LONG: u32 = 6;
    let compare: Vec<_> =
        kept.iter().flat_map(|kept| [jump_unless_equal(kept.mark.into(), 1), give(kept.index)]).collect();
    let end = compare.len() as u8;
    let mut code = vec![
        op(LOAD_LENGTH, 0),
        Instruction { code: JUMP_IF_AT_LEAST, jt: 0, jf: end + 7, k: ID_IN_LONG + 1 },
        op(LOAD_DATA_U8, 0),
        Instruction { code: JUMP_IF_ANY, jt: 2, jf: 0, k: LONG_HEADER },
        op(LOAD_DATA_U8, ID_IN_SHORT),
        op(JUMP, 3),
        and(KIND),
        jump_unless_equal(HANDSHAKE, end + 1),
        op(LOAD_DATA_U8, ID_IN_LONG),
    ];
    code.extend(compare);
    code
}

fn share_code(share: ShareRule) -> Vec<Instruction> {
    if share.parts >= WHOLE {
        return vec![give(share.index)];
    }
    let threshold = (u64::from(share.parts) << 32) / u64::from(WHOLE);
    let mut code = match share.selection {
        ShareSelection::Random => vec![load_random()],
        ShareSelection::Flow => flow_code(),
    };
    code.push(Instruction { code: JUMP_IF_AT_LEAST, jt: 1, jf: 0, k: threshold as u32 });
    code.push(give(share.index));
    code
}

/// Mixes the source port and the last word of the source address. Two multiplications by odd numbers with a fold in
/// between spread neighboring ports over the whole range.
fn flow_code() -> Vec<Instruction> {
    let part = |address: u32, port: u32| [load_u32(address), op(TO_X, 0), load_u16(port)];
    let v4 = part(V4_SOURCE, V4_PORT);
    let v6 = part(V6_SOURCE + 12, V6_PORT);
    let mut code = vec![load_u8(0), and(0xf0)];
    code.push(Instruction { code: JUMP_IF_EQUAL, jt: v4.len() as u8 + 1, jf: 0, k: 0x60 });
    code.extend(v4);
    code.push(op(JUMP, v6.len() as u32));
    code.extend(v6);
    code.extend([op(MULTIPLY, 0x9e37_79b1), op(XOR_X, 0), op(MULTIPLY, 0x85eb_ca77)]);
    code.extend([op(TO_X, 0), op(SHIFT_RIGHT, 15), op(XOR_X, 0), op(MULTIPLY, 0xc2b2_ae3d)]);
    code
}

// From linux/bpf_common.h and linux/filter.h.
const LOAD_U32: u16 = 0x20;
const LOAD_U16: u16 = 0x28;
const LOAD_U8: u16 = 0x30;
const MULTIPLY: u16 = 0x24;
const AND: u16 = 0x54;
const SHIFT_RIGHT: u16 = 0x74;
const XOR_X: u16 = 0xac;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const JUMP_IF_ANY: u16 = 0x45;
const LOAD_LENGTH: u16 = 0x80;
/// The same instruction as [`LOAD_U8`], which reads headers; here with an offset in the data.
const LOAD_DATA_U8: u16 = LOAD_U8;
const RETURN: u16 = 0x06;
const TO_X: u16 = 0x07;
/// `SKF_NET_OFF`: relative to the network header.
const NETWORK: u32 = -0x10_0000_i32 as u32;
/// `SKF_AD_OFF + SKF_AD_RANDOM`.
const RANDOM: u32 = (-0x1000_i32 + 56) as u32;

// Header offsets. The source port is the first field of the next header.
const V4_SOURCE: u32 = 12;
const V4_DESTINATION: u32 = 16;
const V4_PORT: u32 = 20;
const V6_SOURCE: u32 = 8;
const V6_DESTINATION: u32 = 24;
const V6_PORT: u32 = 40;

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn load_u8(at: u32) -> Instruction {
    op(LOAD_U8, NETWORK + at)
}

fn load_u16(at: u32) -> Instruction {
    op(LOAD_U16, NETWORK + at)
}

fn load_u32(at: u32) -> Instruction {
    op(LOAD_U32, NETWORK + at)
}

fn load_random() -> Instruction {
    op(LOAD_U32, RANDOM)
}

/// Skips `count` instructions unless the loaded value equals `value`.
fn jump_unless_equal(value: u32, count: u8) -> Instruction {
    Instruction { code: JUMP_IF_EQUAL, jt: 0, jf: count, k: value }
}

fn and(mask: u32) -> Instruction {
    op(AND, mask)
}

fn give(index: u32) -> Instruction {
    op(RETURN, index)
}

#[cfg(test)]
mod tests;
