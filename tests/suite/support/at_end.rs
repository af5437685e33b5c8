//! A stop flag for threads.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets the flag when it is dropped, even if the test panics: otherwise the test would wait for the threads forever.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
