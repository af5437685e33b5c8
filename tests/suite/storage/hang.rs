//! How a file system fails, or answers nothing for a while.

use std::sync::{Condvar, Mutex};

/// How an operation fails.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// ENOSPC.
    Full,
    /// EIO.
    Broken,
    /// A write that takes half, and then ENOSPC; EIO if it is no write.
    Short,
}

/// Whether nothing is answered.
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
