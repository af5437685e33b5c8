//! What a daemon does as the first process of a machine or a container: it reaps what has lost its parent.
//!
//! Its own children are reaped by those who have started them, within a moment. So a zombie that is still there a while
//! later is an orphan that came to this process.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::sys::process::{children_of, is_zombie};
use crate::sys::reaping::reap_number;

/// Whoever waits for a child of its own has reaped it by then.
const WHILE: Duration = Duration::from_secs(1);

/// Reaps orphans for ever, if they come to this process. Wakes only when a child has ended.
pub(super) async fn reap_orphans() -> io::Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    let mut ended = signal(SignalKind::child())?;
    // Some may have ended before this process could be told.
    let mut dead = zombies();
    loop {
        if dead.is_empty() {
            if ended.recv().await.is_none() {
                return Ok(());
            }
            dead = zombies();
        }
        sleep(WHILE).await;
        let still = zombies();
        for pid in still.intersection(&dead) {
            reap_number(*pid);
            tracing::debug!(pid, "an orphan has ended");
        }
        dead = still.difference(&dead).copied().collect();
    }
}

fn zombies() -> BTreeSet<u32> {
    children_of(std::process::id()).into_iter().filter(|pid| is_zombie(*pid)).collect()
}
