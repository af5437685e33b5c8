//! Releases that go wrong on purpose, so that an upgrade to one can be watched. See [`Fault`].

use std::future::pending;

use tokio::time::sleep;

use crate::BoxError;
use crate::stamp::Fault;

/// Does what the fault of this release does before the server says that it is ready.
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

/// Does what the fault of this release does after the server has said that it is ready.
pub fn after_ready(fault: Option<Fault>) {
    if fault == Some(Fault::CrashAfterReady) {
        log!("this release is stamped to crash now");
        std::process::abort();
    }
}
