//! The server: under a supervisor that the test plays, and by itself.

mod handoff;
mod standalone;
