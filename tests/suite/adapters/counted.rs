//! What an upgrade says about the connections of the old program, compared with what their clients have seen.

use handoff::control::api::Ending;

use super::moment::with_clients;
use super::plain::Plain;

/// The test program blocks in its reads. Holding back the data of its clients needs privilege.
pub(super) fn is_privileged() -> bool {
    let may_ask = handoff::sys::tcp::may_ask();
    if !may_ask {
        eprintln!("not tested here: it takes CAP_NET_ADMIN");
    }
    may_ask
}

/// The test program blocks in its reads: what is held back is dropped by the kernel, and is in no queue.
#[test]
fn a_request_that_was_held_back_at_the_stop_signal_is_counted_as_unread() {
    if !is_privileged() {
        return;
    }
    for mode in ["exclusive", "overlap"] {
        let plain = Plain::serve("inject", mode, "");
        plain.set("drain_grace = \"2s\"\ndrain = \"long-requests\"\n");
        let (outcome, saw) = with_clients(&plain, &[(8, 10, 0)], || plain.upgrade("1", ""));
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
        let (left, lost) = (outcome.connections.expect("they are counted"), saw.unanswered.len() as u64);
        // A client may send its request between the last look and the end.
        assert!(lost > 0 && left.unread <= 8 && left.unread + 2 >= lost, "{mode}: {lost} of {left:?}");
    }
}
