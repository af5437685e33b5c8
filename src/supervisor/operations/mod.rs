//! What somebody has asked for: who waits for it, how far it is, and what the history tells of it.

mod recording;
mod timeline;

pub(in crate::supervisor) use recording::{Asked, Recorder, merged};
pub(in crate::supervisor) use timeline::{Operation, Timeline, progress};
