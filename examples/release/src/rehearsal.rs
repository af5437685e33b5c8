//! Releases that fail on purpose, to rehearse upgrades. See [`Fault`].

use std::future::pending;

use tokio::time::sleep;

use crate::BoxError;
use crate::stamp::Fault;

/// Executes this release's fault before the server reports readiness.
///
/// # Errors
///
/// The release is unhealthy.
pub async fn before_ready(fault: Option<Fault>) -> Result<(), BoxError> {
    match fault {
        Some(Fault::NeverReady) => pending().await,
        Some(Fault::SlowBegin(delay)) => sleep(delay).await,
        Some(Fault::Unhealthy) => return Err("this release is stamped as unhealthy".into()),
        Some(Fault::CrashAfterReady) | None => {}
    }
    Ok(())
}

/// Executes this release's fault after the server has reported readiness.
pub fn after_ready(fault: Option<Fault>) {
    if fault == Some(Fault::CrashAfterReady) {
        log!("this release is stamped to crash now");
        std::process::abort();
    }
}
