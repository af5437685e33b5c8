//! The table of a machine as text: all reachable states, and the effect of each event there.

use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;

use handoff_protocol::ids::HandoffId;

/// All states that `key` distinguishes, in the order in which they are first reached, and the effect of each event
/// there.
pub fn table<M: Clone, E: Clone + Debug, A>(
    start: M,
    key: impl Fn(&M) -> String,
    events: impl Fn(&M) -> Vec<(&'static str, E)>,
    step: impl Fn(&mut M, E) -> Vec<A>,
    did: impl Fn(&[A]) -> String,
) -> String {
    table_from(vec![start], key, events, step, did)
}

/// The same, from several states.
pub fn table_from<M: Clone, E: Clone + Debug, A>(
    starts: Vec<M>,
    key: impl Fn(&M) -> String,
    events: impl Fn(&M) -> Vec<(&'static str, E)>,
    step: impl Fn(&mut M, E) -> Vec<A>,
    did: impl Fn(&[A]) -> String,
) -> String {
    let mut known = HashSet::new();
    let mut todo: VecDeque<M> = starts.into_iter().filter(|start| known.insert(key(start))).collect();
    let mut text = String::new();
    while let Some(machine) = todo.pop_front() {
        let state = key(&machine);
        text.push_str(&row(&state));
        let mut nothing = Vec::new();
        for (name, event) in events(&machine) {
            let name = short(name);
            let mut next = machine.clone();
            let actions = step(&mut next, event);
            let after = key(&next);
            let mut parts = Vec::new();
            if after != state {
                parts.push(format!("[{after}]"));
            }
            if !actions.is_empty() {
                parts.push(did(&actions));
            }
            if parts.is_empty() {
                nothing.push(name);
            } else {
                text.push_str(&row(&format!("    {name} -> {}", parts.join(" "))));
            }
            if known.insert(after) {
                todo.push_back(next);
            }
        }
        text.push_str(&nothing_for(&nothing));
        text.push('\n');
    }
    text
}

/// A message of a process, as in the actions: `I:` is the incumbent, `S:` the successor, `O:` the outgoing process.
fn short(event: &str) -> String {
    let roles = [("incumbent", "I"), ("successor", "S"), ("outgoing", "O")];
    let forms = roles.map(|(long, short)| [(long, short, ": ", ":"), (long, short, " ", " ")]);
    forms
        .as_flattened()
        .iter()
        .find_map(|(long, short, colon, end)| {
            Some(format!("{short}{end}{}", event.strip_prefix(long)?.strip_prefix(colon)?))
        })
        .unwrap_or_else(|| event.to_owned())
}

/// Maximum width at which two lines can be compared side by side.
const WIDTH: usize = 160;

/// One row, as one line.
pub fn row(text: &str) -> String {
    assert!(text.chars().count() <= WIDTH, "longer than {WIDTH} characters: {text}");
    format!("{text}\n")
}

/// The events without effect, in as many lines as needed.
fn nothing_for(events: &[String]) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for event in events {
        if line.len() + event.len() + 16 > WIDTH {
            lines.push_str(&row(&std::mem::take(&mut line)));
        }
        line.push_str(if line.is_empty() { "    nothing: " } else { ", " });
        line.push_str(event);
    }
    if !line.is_empty() {
        lines.push_str(&row(&line));
    }
    lines
}

pub fn id(number: u8) -> HandoffId {
    let mut bytes = [0; 16];
    bytes[15] = number;
    HandoffId::from_bytes(bytes)
}

pub fn other(own: HandoffId) -> HandoffId {
    if own == id(1) { id(2) } else { id(1) }
}
