//! Ways in which a file system fails or hangs.

use std::sync::{Condvar, Mutex};

/// Ways in which an operation fails.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// ENOSPC.
    Full,
    /// EIO.
    Broken,
    /// A write of half the data, and then ENOSPC. EIO for other operations.
    Short,
}

/// Whether operations hang.
#[derive(Debug, Default)]
pub struct Hanging(Mutex<bool>, Condvar);

impl Hanging {
    pub fn set(&self, hangs: bool) {
        *self.0.lock().unwrap() = hangs;
        self.1.notify_all();
    }

    pub fn is_set(&self) -> bool {
        *self.0.lock().unwrap()
    }

    pub fn wait(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |hangs| *hangs).unwrap());
    }
}
