//! Tests of the machines, the wire and the journal: by tables, by all reachable states, by bytes and by properties.
//! They are one program, so that it is linked once.

mod common;
mod explore;
mod golden;
mod properties;
mod recovery;
mod transitions;
mod trials;
