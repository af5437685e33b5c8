//! Keeps the control socket at its path as long as the daemon lives, whatever happens to the directory.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::sleep;

use super::daemon::Daemon;
use super::lane::Lane;
use super::state::STATE_TIMEOUT;
use crate::config::{self, DaemonSettings, Dirs};
use crate::control::{Access, Listener, serve};
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
    let access = lost.access();
    drop(lost);
    loop {
        let made = dirs.create().map_err(|error| error.to_string());
        match made.and_then(|()| Listener::bind(&path).map_err(|error| error.to_string())) {
            Ok(mut control) => {
                open_to(&mut control, access, dirs);
                return control;
            }
            Err(error) => tracing::error!(
                error,
                "the control socket cannot be made again; trying again in {RETRY_PAUSE:?}"
            ),
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Lets the members of the configured groups use the socket. A mistake there, or a file system that does not answer,
/// lets no one in.
pub(super) async fn open_to_groups(control: &mut Listener, dirs: &Dirs) {
    let config_dir = dirs.config.clone();
    let read =
        Lane::for_files("settings").run_within(STATE_TIMEOUT, config_dir.display().to_string(), move || {
            let text = |errors: Vec<config::Error>| {
                errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            };
            DaemonSettings::read(&config_dir)
                .and_then(|settings| settings.groups().map_err(|error| vec![error]))
                .map_err(text)
        });
    match read.await.map_err(|error| error.to_string()).and_then(|read| read) {
        Ok((operate, read)) => open_to(control, Access { operate, read }, dirs),
        Err(error) => {
            tracing::error!(error, "only the user of the daemon and root may use the control socket");
        }
    }
}

fn open_to(control: &mut Listener, access: Access, dirs: &Dirs) {
    if access == Access::default() {
        return;
    }
    if let Err(error) = dirs.let_others_pass().and_then(|()| control.open_to(access)) {
        tracing::error!(%error, "the control socket cannot be opened to its groups");
    }
}
