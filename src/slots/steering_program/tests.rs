//! Runs the programs in an interpreter on generated packets.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

/// Interprets the instructions used here like the kernel. A load beyond the packet returns 0.
fn run(program: &SteeringProgram, packet: &[u8], random: u32) -> u32 {
    run_with(program, packet, &[], random)
}

/// The same with data after the transport header.
fn run_with(program: &SteeringProgram, packet: &[u8], data: &[u8], random: u32) -> u32 {
    let code = program.instructions();
    let (mut a, mut x, mut at) = (0_u32, 0_u32, 0);
    loop {
        let Instruction { code, jt, jf, k } = code[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            LOAD_U32 if k == RANDOM => a = random,
            LOAD_LENGTH => a = data.len() as u32,
            LOAD_U8 if k < 0x100 => match data.get(k as usize) {
                Some(byte) => a = (*byte).into(),
                None => return 0,
            },
            LOAD_U32 | LOAD_U16 | LOAD_U8 => {
                let width =
                    [(LOAD_U32, 4), (LOAD_U16, 2), (LOAD_U8, 1)].into_iter().find(|(c, _)| *c == code);
                let from = k.wrapping_sub(NETWORK) as usize;
                let Some(bytes) = packet.get(from..from + width.unwrap().1) else { return 0 };
                a = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
            }
            MULTIPLY => a = a.wrapping_mul(k),
            AND => a &= k,
            SHIFT_RIGHT => a >>= k,
            XOR_X => a ^= x,
            TO_X => x = a,
            JUMP => at += k as usize,
            JUMP_IF_EQUAL => at += jump(a == k),
            JUMP_IF_AT_LEAST => at += jump(a >= k),
            JUMP_IF_ANY => at += jump(a & k != 0),
            RETURN => return k,
            other => panic!("no such instruction here: {other:#x}"),
        }
    }
}

/// The headers of a first packet: network header, then the two ports and some more.
fn packet(source: &str, destination: &str) -> Vec<u8> {
    let (source, destination): (SocketAddr, SocketAddr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let mut bytes = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let head = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
            [&head[..], &from.octets(), &to.octets()].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            // A traffic class and a flow label next to the version.
            let head = [0x6b, 0xcd, 0x12, 0x34, 0, 20, 6, 64];
            [&head[..], &from.octets(), &to.octets()].concat()
        }
        _ => panic!("two families"),
    };
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes.extend([0; 16]);
    bytes
}

fn with_probe(client: &str) -> SteeringProgram {
    let probe = ProbeRule { client: client.parse().unwrap(), index: 7 };
    SteeringProgram { probe: Some(probe), ..SteeringProgram::constant(3) }
}

#[test]
fn a_constant_is_one_instruction() {
    assert_eq!(SteeringProgram::constant(5).instructions(), [op(RETURN, 5)]);
    assert_eq!(run(&SteeringProgram::constant(5), &[], 0), 5);
}

#[test]
fn only_the_probe_goes_elsewhere() {
    let v4 = with_probe("127.0.0.1:40000");
    let v6 = with_probe("[fd00::1:2:3:4]:40000");
    let cases = [
        (&v4, "127.0.0.1:40000", "127.0.0.1:80", true),
        (&v4, "127.0.0.1:40001", "127.0.0.1:80", false),
        (&v4, "127.0.0.1:80", "127.0.0.1:40000", false),
        (&v4, "127.0.0.2:40000", "127.0.0.2:80", false),
        (&v4, "127.0.0.1:40000", "127.0.0.2:80", false),
        (&v4, "127.0.0.2:40000", "127.0.0.1:80", false),
        (&v4, "[::1]:40000", "[::1]:80", false),
        (&v6, "[fd00::1:2:3:4]:40000", "[fd00::1:2:3:4]:80", true),
        (&v6, "[fd00::1:2:3:4]:40001", "[fd00::1:2:3:4]:80", false),
        (&v6, "[fd00::1:2:3:5]:40000", "[fd00::1:2:3:4]:80", false),
        (&v6, "[fd00::1:2:3:4]:40000", "[fd00::1:2:3:5]:80", false),
        (&v6, "[fd00:0:1:1:2:2:3:4]:40000", "[fd00:0:1:1:2:2:3:4]:80", false),
        (&v6, "[fd01::1:2:3:4]:40000", "[fd01::1:2:3:4]:80", false),
        (&v6, "127.0.0.1:40000", "127.0.0.1:80", false),
    ];
    for (program, from, to, elsewhere) in cases {
        let index = if elsewhere { 7 } else { 3 };
        assert_eq!(run(program, &packet(from, to), 0), index, "{from} to {to}");
    }
}

#[test]
fn options_between_the_headers_are_not_taken_for_ports() {
    let mut with_options = packet("127.0.0.1:40000", "127.0.0.1:80");
    with_options[0] = 0x46;
    assert_eq!(run(&with_probe("127.0.0.1:40000"), &with_options, 0), 3);
}

#[test]
fn a_packet_that_is_too_short_ends_the_program_with_0() {
    let short = &packet("127.0.0.1:40000", "127.0.0.1:80")[..18];
    assert_eq!(run(&with_probe("127.0.0.1:40000"), short, 0), 0);
}

fn with_share(parts: u32, by: ShareSelection) -> SteeringProgram {
    SteeringProgram {
        share: Some(ShareRule { index: 7, parts, selection: by }),
        ..SteeringProgram::constant(3)
    }
}

#[test]
fn a_share_is_as_large_as_is_said() {
    const LAST: u32 = u32::MAX;
    let a_tenth = LAST / 10;
    let cases = [
        (0, 0, 3),
        (1, 0, 7),
        (1, 429_495, 7),
        (1, 429_496, 3),
        (1000, a_tenth - 1, 7),
        (1000, a_tenth + 1, 3),
        (9999, LAST - 500_000, 7),
        (9999, LAST, 3),
        (WHOLE, LAST, 7),
        (WHOLE + 1, LAST, 7),
    ];
    for (parts, random, index) in cases {
        assert_eq!(
            run(&with_share(parts, ShareSelection::Random), &[], random),
            index,
            "{parts} at {random}"
        );
    }
}

#[test]
fn a_probe_comes_before_a_share() {
    let program = SteeringProgram {
        share: with_share(5000, ShareSelection::Random).share,
        ..with_probe("127.0.0.1:40000")
    };
    let program =
        SteeringProgram { probe: program.probe.map(|probe| ProbeRule { index: 9, ..probe }), ..program };
    let (probe, other) =
        (packet("127.0.0.1:40000", "127.0.0.1:80"), packet("127.0.0.1:40001", "127.0.0.1:80"));
    assert_eq!([0, u32::MAX].map(|random| run(&program, &probe, random)), [9, 9]);
    assert_eq!([0, u32::MAX].map(|random| run(&program, &other, random)), [7, 3]);
}

#[test]
fn a_flow_has_one_lot_and_flows_are_spread() {
    let program = with_share(1000, ShareSelection::Flow);
    for (name, flows) in [("neighbouring ports", ports()), ("v4 addresses", v4()), ("v6 addresses", v6())] {
        let count = flows.len();
        let elsewhere = flows.iter().filter(|packet| run(&program, packet, 0) == 7).count();
        let again = flows.iter().filter(|packet| run(&program, packet, u32::MAX) == 7).count();
        assert_eq!(elsewhere, again);
        assert!((count / 14..count / 7).contains(&elsewhere), "{name}: {elsewhere} of {count}");
    }
}

fn ports() -> Vec<Vec<u8>> {
    (32768..60000).map(|port| packet(&format!("127.0.0.1:{port}"), "127.0.0.1:80")).collect()
}

fn v4() -> Vec<Vec<u8>> {
    let addresses = (0..5000).map(|number| Ipv4Addr::from_bits(0x0a00_0000 + number));
    addresses.map(|ip| packet(&format!("{ip}:40000"), "127.0.0.1:80")).collect()
}

fn v6() -> Vec<Vec<u8>> {
    let addresses = (0..5000).map(|number| Ipv6Addr::from_bits((0xfd00 << 112) + number));
    addresses.map(|ip| packet(&format!("[{ip}]:40000"), "[::1]:80")).collect()
}

#[test]
fn packets_of_known_connections_go_by_their_mark() {
    let kept = vec![QuicAffinity { mark: 0x11, index: 5 }, QuicAffinity { mark: 0x22, index: 6 }];
    let share = Some(ShareRule { index: 9, parts: WHOLE, selection: ShareSelection::Flow });
    let plain = SteeringProgram { affinities: kept.clone(), ..SteeringProgram::constant(3) };
    let shared = SteeringProgram { affinities: kept, share, ..SteeringProgram::constant(3) };
    let long = |kind: u8, id: u8| vec![0xc0 | kind, 0, 0, 0, 1, 8, id, 1, 2, 3, 4, 5, 6, 7];
    let short = |id: u8| vec![0x40, id, 1, 2, 3, 4, 5, 6, 7, 8];
    let headers = packet("127.0.0.1:40000", "127.0.0.1:443");
    for (data, expected) in [
        (short(0x11), Some(5)),
        (short(0x22), Some(6)),
        (short(0x33), None),
        (long(0x20, 0x11), Some(5)),
        (long(0x20, 0x22), Some(6)),
        (long(0x20, 0x33), None),
        // An initial packet, 0-RTT, a retry.
        (long(0x00, 0x11), None),
        (long(0x10, 0x22), None),
        (long(0x30, 0x11), None),
        // Too short for QUIC.
        (vec![], None),
        (vec![0x40, 0x11], None),
    ] {
        assert_eq!(run_with(&plain, &headers, &data, 0), expected.unwrap_or(3), "{data:?}");
        assert_eq!(run_with(&shared, &headers, &data, 0), expected.unwrap_or(9), "{data:?}");
    }
}
