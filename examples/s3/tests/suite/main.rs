//! The server under a simulated supervisor, and alone.

mod handoff;
mod standalone;
