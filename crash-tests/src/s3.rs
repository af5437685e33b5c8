//! The load of the S3 server: the clients of the demo, which check every byte, and one client that measures the longest time without
//! an answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use handoff::crash_test::Error;
use handoff_demo::load::failure::Kind;
use handoff_demo::load::meter::Meter;
use handoff_demo::load::s3::S3;
use handoff_demo::load::{Load, LoadConfig};
use tokio::signal::unix::{SignalKind, signal};

use crate::gap::{Gap, LoadResult};
use crate::services::{ACCESS_KEY, SECRET_KEY};

/// Without one that uploads slowly: a drain would wait for it.
const CLIENTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(1);

pub fn load() -> Result<bool, Error> {
    let endpoint: SocketAddr = std::env::var("HANDOFF_LISTEN_S3")?.parse()?;
    let (access_key, secret_key) = (ACCESS_KEY.to_owned(), SECRET_KEY.to_owned());
    let config = LoadConfig { endpoint, access_key, secret_key, clients: CLIENTS, seed: 1 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(work(&config))?;
    println!("{}", serde_json::to_string(&found)?);
    Ok(found.ok)
}

async fn work(config: &LoadConfig) -> Result<LoadResult, Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let load = Load::start(config).await?;
    let gap = Gap::begin();
    let mut probe = S3::new(config, "client-00", false, Arc::clone(load.meter()));
    tokio::select! {
        _ = terminate.recv() => {}
        never = measure(&mut probe, &gap) => match never {},
    }
    let meter = load.finish().await;
    Ok(found(&meter, &gap))
}

async fn measure(probe: &mut S3, gap: &Gap) -> std::convert::Infallible {
    loop {
        match probe.head("probe").await {
            Ok(_) => gap.answered(),
            Err(failure) => probe.meter().failed(&failure),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn found(meter: &Meter, gap: &Gap) -> LoadResult {
    let harmless = [Kind::Reset, Kind::Cut, Kind::Status];
    LoadResult {
        ok: Kind::ALL.into_iter().all(|kind| harmless.contains(&kind) || meter.count(kind) == 0),
        acknowledged: meter.acknowledged(),
        lost: meter.count(Kind::Lost),
        wrong: meter.count(Kind::Wrong),
        refused: meter.count(Kind::Refused),
        reset: meter.count(Kind::Reset),
        cut: meter.count(Kind::Cut),
        errors: meter.count(Kind::Status),
        longest_gap_ms: gap.longest_ms(),
        first: meter.examples().into_iter().next(),
    }
}
