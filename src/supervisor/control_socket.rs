//! Keeps the control socket at its path as long as the daemon lives, whatever happens to the directory.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::sleep;

use super::daemon::Daemon;
use crate::config::Dirs;
use crate::control::{Listener, serve};
use crate::watch::PathWatcher;

/// A program that removes a directory does so step by step, and gets this time to finish.
const REMOVAL_GRACE: Duration = Duration::from_millis(100);
/// The pause before another attempt.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Serves clients forever. A socket that is removed comes back, with the directories above it.
pub(super) async fn serve_always(mut control: Listener, daemon: Rc<Daemon>) -> io::Result<Infallible> {
    let dirs = daemon.shared.dirs.clone();
    let mut watch = PathWatcher::new(&dirs.control_socket())
        .inspect_err(|error| tracing::warn!(%error, "a control socket that is removed would not come back"))
        .ok();
    loop {
        tokio::select! {
            ended = serve(&control, Rc::clone(&daemon)) => return ended,
            () = lost(&control, &mut watch) => {}
        }
        control = again(&dirs, control).await;
    }
}

/// Completes when clients cannot find the socket any more.
async fn lost(control: &Listener, watch: &mut Option<PathWatcher>) {
    while let Some(watch) = watch {
        if watch.next().await.is_err() {
            break;
        }
        if !control.is_there() {
            return;
        }
    }
    std::future::pending().await
}

async fn again(dirs: &Dirs, lost: Listener) -> Listener {
    let path = dirs.control_socket();
    tracing::warn!(path = %path.display(), "the control socket was removed; it is made again");
    sleep(REMOVAL_GRACE).await;
    drop(lost);
    loop {
        let made = dirs.create().map_err(|error| error.to_string());
        match made.and_then(|()| Listener::bind(&path).map_err(|error| error.to_string())) {
            Ok(control) => return control,
            Err(error) => tracing::error!(
                error,
                "the control socket cannot be made again; trying again in {RETRY_PAUSE:?}"
            ),
        }
        sleep(RETRY_PAUSE).await;
    }
}
