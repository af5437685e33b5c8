//! The load against the S3 server without a supervisor. It finds no failures when nothing is wrong, even while the
//! server drains, seals and resumes; and it finds all of them when the server is killed.

use std::future::pending;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use handoff_demo::load::failure::Kind;
use handoff_demo::load::meter::{Meter, Quantiles, histogram, record};
use handoff_demo::load::{Load, LoadConfig};
use handoff_example_s3::server::{Config, S3Server};
use tokio::time::{sleep, timeout};

const KEYS: (&str, &str) = ("access", "secret");

fn plan(endpoint: SocketAddr) -> LoadConfig {
    let (access_key, secret_key) = (KEYS.0.to_owned(), KEYS.1.to_owned());
    LoadConfig { endpoint, access_key, secret_key, clients: 8, seed: 7 }
}

fn open(data_dir: &Path, listener: TcpListener) -> S3Server {
    let (access_key, secret_key) = (KEYS.0.to_owned(), KEYS.1.to_owned());
    let config = Config { data_dir: data_dir.to_owned(), access_key, secret_key };
    let mut server = S3Server::open(config, listener).unwrap();
    server.serve().unwrap();
    server
}

/// Waits until the meter shows the condition; a timeout is an error.
async fn until(load: &Load, is_found: impl Fn(&Meter) -> bool) {
    let found = async {
        while !is_found(load.meter()) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = timeout(Duration::from_secs(30), found).await;
    assert!(in_time.is_ok(), "{} requests, {:#?}", load.meter().requests(), load.meter().examples());
}

fn assert_clean(meter: &Meter) {
    assert_eq!(meter.failures(), 0, "{:#?}", meter.examples());
    assert!(meter.requests() > 100, "only {} requests", meter.requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_noticed_when_nothing_happens() {
    let dir = tempfile::tempdir().unwrap();
    let server = open(dir.path(), TcpListener::bind("127.0.0.1:0").unwrap());
    let load = Load::start(&plan(server.local_addr())).await.unwrap();
    until(&load, |meter| meter.requests() > 400).await;
    assert_clean(&*load.finish().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_noticed_while_the_server_drains_seals_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = open(dir.path(), TcpListener::bind("127.0.0.1:0").unwrap());
    let load = Load::start(&plan(server.local_addr())).await.unwrap();
    let (mut drains, mut gaps) = (histogram(), histogram());
    for _ in 0..5 {
        let before = load.meter().requests();
        until(&load, |meter| meter.requests() > before + 50).await;
        load.meter().set_upgrading(true);
        let began = Instant::now();
        timeout(Duration::from_secs(30), server.drain(pending())).await.unwrap();
        record(&mut drains, began.elapsed());
        let began = Instant::now();
        server.seal(false).await.unwrap();
        server.serve().unwrap();
        record(&mut gaps, began.elapsed());
        load.meter().set_upgrading(false);
    }
    let meter = load.finish().await;
    println!("drain {:?}\nseal and resume {:?}", Quantiles::of(&drains), Quantiles::of(&gaps));
    println!("latencies, steady and during upgrades: {:?}", meter.latencies());
    assert_clean(&meter);
}

#[test]
fn a_killed_server_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let (clients, host) = (runtime().unwrap(), runtime().unwrap());
    let server = {
        let _inside = host.enter();
        open(dir.path(), TcpListener::bind("127.0.0.1:0").unwrap())
    };
    let load = clients.block_on(Load::start(&plan(server.local_addr()))).unwrap();
    clients.block_on(until(&load, |meter| meter.requests() > 50));
    assert_eq!(load.meter().failures(), 0, "{:#?}", load.meter().examples());

    drop(server);
    host.shutdown_background();
    // An upload that takes seconds was in progress; later clients are refused.
    let cut = |meter: &Meter| meter.count(Kind::Cut) + meter.count(Kind::Reset);
    clients.block_on(async {
        until(&load, |meter| cut(meter) > 0 && meter.count(Kind::Refused) > 10).await;
        load.finish().await
    });
}
