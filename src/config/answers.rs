//! The time limit of answers to datagrams.

use handoff_protocol::message::Mode;

use super::error::Report;
use super::listen::Listener;
use super::service::Adapter;
use super::table::Section;
use super::units::format_duration_ms;

const KEY: &str = "answer_grace";

/// A client that waits this long for an answer has already asked again.
const MAX_MS: u64 = 60_000;

/// Reads `answer_grace`. Refuses it where it would have no effect.
pub(super) fn read(
    report: &mut Report,
    root: &Section,
    (adapter, mode): (Adapter, Mode),
    listeners: &[Listener],
) -> Option<u64> {
    let grace_ms = root.duration_ms(report, KEY, 0)?.value;
    if !listeners.iter().any(|listener| listener.address.is_datagram()) {
        root.refuse(report, KEY, "is for listeners that take datagrams, and there is none", "remove it");
    } else if mode == Mode::Exclusive && !adapter.is_foreign() {
        let cause = "in exclusive mode a service that speaks the protocol knows itself when it has answered";
        root.refuse(report, KEY, cause, "remove it, and wait for the answers in the drain or the seal");
    } else if grace_ms > MAX_MS {
        let cause = format!("is more than {}", format_duration_ms(MAX_MS));
        root.refuse(report, KEY, &cause, "write answer_grace = \"5s\"");
    }
    Some(grace_ms)
}
