//! The daemon as the first process of a machine or a container: it reaps processes that have lost their parent.
//!
//! The code that has started a child of the daemon reaps it within a moment. So a zombie that is still there a while
//! later is an orphan that came to this process.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::sys::process::{children_of, is_zombie};
use crate::sys::reaping::reap_number;

/// A child of the daemon's own has been reaped by then.
const REAPED_WITHIN: Duration = Duration::from_secs(1);

/// Reaps orphans forever, if they come to this process. Wakes only when a child has ended.
pub(super) async fn reap_orphans() -> io::Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    let mut ended = signal(SignalKind::child())?;
    // Some may have ended before the signal was caught.
    let mut dead = zombies();
    loop {
        if dead.is_empty() {
            if ended.recv().await.is_none() {
                return Ok(());
            }
            dead = zombies();
        }
        sleep(REAPED_WITHIN).await;
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
