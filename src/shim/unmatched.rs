//! Bound addresses that match no listener of the service while a listener is missing: what to report about them, and
//! when to stop waiting. No side effects.

use std::time::Duration;

use crate::config::ListenAddress;

/// Patience with a program that has bound an address which differs from its listener only by a mistake in the service
/// file.
const SURELY_WRONG: Duration = Duration::from_secs(1);
/// Patience with a program that has bound something else, perhaps the port of its metrics, before its listener. Counted
/// from its last activity of any kind.
const LIKELY_WRONG: Duration = Duration::from_secs(10);

/// A bound address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnmatchedBind {
    /// In the notation of the service file.
    pub(super) address: ListenAddress,
    /// Whether the service file has another address with this port.
    pub(super) same_port: bool,
}

/// A missing listener, and what the program has bound in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mismatch {
    name: String,
    wanted: ListenAddress,
    found: UnmatchedBind,
}

impl Mismatch {
    /// The first missing listener that has a bound address of its kind, with the last such address.
    pub(super) fn find(missing: &[(String, ListenAddress)], elsewhere: &[UnmatchedBind]) -> Option<Mismatch> {
        missing.iter().find_map(|(name, wanted)| {
            let fits = |found: &&UnmatchedBind| {
                let is_unix = |address: &ListenAddress| matches!(address, ListenAddress::Unix(_));
                found.address.is_datagram() == wanted.is_datagram()
                    && is_unix(&found.address) == is_unix(wanted)
            };
            let found = elsewhere.iter().rev().find(fits)?.clone();
            Some(Mismatch { name: name.clone(), wanted: wanted.clone(), found })
        })
    }

    /// Whether a program that has been idle this long will not bind its listener anymore.
    pub(super) fn is_for_good(&self, idle: Duration) -> bool {
        idle >= if self.found.same_port { SURELY_WRONG } else { LIKELY_WRONG }
    }
}

/// A clause with the line to write.
impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, wanted, found: UnmatchedBind { address, .. } } = self;
        write!(
            f,
            "the program binds {address}, and the service file says {name} = \"{wanted}\"; write {name} = \"{address}\" in \
             [listen], or have it bind {wanted}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(addresses: &[&str]) -> Vec<(String, ListenAddress)> {
        addresses.iter().map(|text| ("main".to_owned(), text.parse().unwrap())).collect()
    }

    fn bound(addresses: &[&str]) -> Vec<UnmatchedBind> {
        let elsewhere = |text: &&str| UnmatchedBind { address: text.parse().unwrap(), same_port: false };
        addresses.iter().map(elsewhere).collect()
    }

    #[test]
    fn the_line_to_write_is_told() {
        let found = Mismatch::find(&missing(&["127.0.0.1:8080"]), &bound(&["udp:*:53", "127.0.0.1:8081"]));
        let told = found.unwrap().to_string();
        assert!(told.contains("binds 127.0.0.1:8081, and the service file says main = \"127.0.0.1:8080\""));
        assert!(told.contains("write main = \"127.0.0.1:8081\" in [listen]"), "{told}");
    }

    #[test]
    fn only_what_is_of_the_same_kind_is_in_the_place_of_a_listener() {
        for (wanted, found) in
            [("127.0.0.1:80", "udp:127.0.0.1:81"), ("unix:/a", "127.0.0.1:81"), ("udp:*:53", "*:53")]
        {
            assert_eq!(Mismatch::find(&missing(&[wanted]), &bound(&[found])), None, "{wanted} {found}");
        }
        assert_eq!(Mismatch::find(&missing(&["*:80"]), &[]), None);
        assert_eq!(Mismatch::find(&[], &bound(&["*:80"])), None);
        let quic = Mismatch::find(&missing(&["quic:*:443"]), &bound(&["udp:*:444"]));
        assert!(quic.is_some());
    }

    #[test]
    fn a_program_that_may_still_come_has_longer() {
        let mut mismatch = Mismatch::find(&missing(&["*:80"]), &bound(&["*:81"])).unwrap();
        let long = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(10)];
        assert_eq!(long.map(|idle| mismatch.is_for_good(idle)), [false, false, true]);
        mismatch.found.same_port = true;
        assert_eq!(long.map(|idle| mismatch.is_for_good(idle)), [false, true, true]);
    }
}
