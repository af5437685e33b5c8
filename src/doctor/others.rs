//! Remarks on what a program binds besides its listeners. The kernel carries that out, so a second process of the
//! program may find the address taken. Only the port range is read from the system.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use crate::config::{Mode, Service};
use crate::shim::trial::OtherBind;

/// The remarks for this service.
pub(super) fn remarks(service: &Service, others: &[OtherBind]) -> Vec<String> {
    // One program at a time, from its start to its end.
    if service.mode == Mode::Exclusive && !service.program.warm {
        return Vec::new();
    }
    collisions(others, &kernel_ports())
}

/// The ports from which the kernel chooses: ip(7), `ip_local_port_range`.
fn kernel_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = text.split_ascii_whitespace().filter_map(|port| port.parse().ok());
    ports.next().zip(ports.next()).map_or(32_768..=60_999, |(first, last)| first..=last)
}

fn collisions(others: &[OtherBind], ports: &RangeInclusive<u16>) -> Vec<String> {
    let is_chosen = |other: &&OtherBind| {
        other.address.parse::<SocketAddr>().is_ok_and(|address| ports.contains(&address.port()))
    };
    let (chosen, fixed): (Vec<_>, Vec<_>) =
        others.iter().filter(|other| !names_its_process(other)).partition(is_chosen);
    let mut remarks: Vec<String> = fixed
        .into_iter()
        .map(|OtherBind { address, why, .. }| {
            format!(
                "it binds {address}: {why}; the kernel carries that out, so two generations may collide there"
            )
        })
        .collect();
    if let Some(OtherBind { address, .. }) = chosen.first() {
        let more = if chosen.len() > 1 { format!(" and {} more", chosen.len() - 1) } else { String::new() };
        let (first, last) = (ports.start(), ports.end());
        remarks.push(format!(
            "it binds {address}{more}, of the ports from {first} to {last}, which programs get by chance; if one is the same \
             at each start, two generations may collide there"
        ));
    }
    remarks
}

/// Whether the name of a unix socket contains the pid, so that each process has another one.
fn names_its_process(OtherBind { address, pid, .. }: &OtherBind) -> bool {
    let is_name = address.parse::<SocketAddr>().is_err();
    is_name && address.split(|it: char| !it.is_ascii_digit()).any(|number| number == pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others(addresses: &[&str]) -> Vec<OtherBind> {
        let one = |address: &&str| OtherBind {
            address: (*address).to_owned(),
            why: "no listener".to_owned(),
            pid: 4711,
        };
        addresses.iter().map(one).collect()
    }

    #[test]
    fn ports_by_chance_are_one_remark() {
        let all = others(&["[::]:52946", "127.0.0.1:9100", "[::]:40001", "127.0.0.1:33000"]);
        let told = collisions(&all, &(32_768..=60_999));
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("it binds 127.0.0.1:9100: no listener;"), "{told:?}");
        assert!(told[1].starts_with("it binds [::]:52946 and 2 more, of the ports from 32768"), "{told:?}");
        let told = collisions(&all[..1], &(32_768..=60_999));
        assert!(told[0].starts_with("it binds [::]:52946, of the ports"), "{told:?}");
        assert_eq!(collisions(&[], &(1..=2)), Vec::<String>::new());
    }

    #[test]
    fn a_name_with_the_pid_collides_with_none() {
        let all = others(&["/run/x.4711", "/tmp/a/4711/s.sock", "/run/x.47110", "/run/x", "127.0.0.1:4711"]);
        let told = collisions(&all, &(32_768..=60_999));
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told.iter().all(|told| !told.contains("x.4711:") && !told.contains("/4711/")), "{told:?}");
    }
}
