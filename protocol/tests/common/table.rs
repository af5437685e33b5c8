//! The table of a machine as text: every state that it can reach, and what each event does there.

use std::collections::{HashSet, VecDeque};
use std::fmt::{Debug, Write};

use handoff_protocol::ids::HandoffId;

/// Every state that `key` tells apart, in the order in which it is first reached, and what each event does there.
pub fn table<M: Clone, E: Clone + Debug, A: Debug>(
    start: M,
    key: impl Fn(&M) -> String,
    events: impl Fn(&M) -> Vec<(&'static str, E)>,
    step: impl Fn(&mut M, E) -> Vec<A>,
) -> String {
    table_from(vec![start], key, events, step)
}

/// Likewise, from several states.
pub fn table_from<M: Clone, E: Clone + Debug, A: Debug>(
    starts: Vec<M>,
    key: impl Fn(&M) -> String,
    events: impl Fn(&M) -> Vec<(&'static str, E)>,
    step: impl Fn(&mut M, E) -> Vec<A>,
) -> String {
    let mut known = HashSet::new();
    let mut todo: VecDeque<M> = starts.into_iter().filter(|start| known.insert(key(start))).collect();
    let mut text = String::new();
    while let Some(machine) = todo.pop_front() {
        let state = key(&machine);
        let _ = writeln!(text, "{state}");
        let mut nothing = Vec::new();
        for (name, event) in events(&machine) {
            let mut next = machine.clone();
            let actions = step(&mut next, event);
            let after = key(&next);
            let mut parts: Vec<String> = actions.iter().map(named).collect();
            if after != state {
                parts.insert(0, format!("[{after}]"));
            }
            if parts.is_empty() {
                nothing.push(name);
            } else {
                let _ = writeln!(text, "    {name} -> {}", parts.join(" "));
            }
            if known.insert(after) {
                todo.push_back(next);
            }
        }
        let _ = writeln!(text, "    nothing: {}\n", nothing.join(", "));
    }
    text
}

/// An action without the ids: which handoff is meant follows from the table.
pub fn named(action: &impl Debug) -> String {
    let text = format!("{action:?}");
    [(id(1), "id"), (id(2), "id")]
        .iter()
        .fold(text, |text, (id, name)| text.replace(&format!("{id:?}"), name))
}

pub fn id(number: u8) -> HandoffId {
    let mut bytes = [0; 16];
    bytes[15] = number;
    HandoffId::from_bytes(bytes)
}

pub fn other(own: HandoffId) -> HandoffId {
    if own == id(1) { id(2) } else { id(1) }
}
