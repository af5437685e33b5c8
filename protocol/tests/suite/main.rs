//! The machines, the wire and the journal: by tables, by all states that can be reached, by bytes and by properties. All are in one
//! program, which is linked once.

mod common;
mod explore;
mod golden;
mod properties;
mod recovery;
mod transitions;
mod trials;
