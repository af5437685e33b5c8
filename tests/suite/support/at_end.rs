//! For threads that go on until they are told.

use std::sync::atomic::{AtomicBool, Ordering};

/// Tells them when it is dropped: also if the test fails, which would wait for them for ever otherwise.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
