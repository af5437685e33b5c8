//! The load: S3 clients that write, read, and compare with their models.
//!
//! - [`content`]: the content of objects, regenerated from a seed for comparison;
//! - [`model`]: a client's model of its objects;
//! - [`failure`]: all failures that a client must never notice;
//! - [`http`]: one request on one connection, never repeated;
//! - [`s3`]: the signed operations;
//! - [`client`]: the clients and their requests;
//! - [`meter`]: the counts and the latencies.

pub mod client;
pub mod content;
pub mod failure;
pub mod http;
mod kept;
pub mod meter;
pub mod model;
pub mod s3;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use client::{Client, ClientBehavior};
use failure::Failure;
use meter::Meter;
use s3::S3;

/// The server to load, and the size of the load.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// The address of the server.
    pub endpoint: SocketAddr,
    /// The access key for signed requests.
    pub access_key: String,
    /// The secret of the access key.
    pub secret_key: String,
    /// Number of clients; each has its own bucket. One in four uploads slowly; of the others, every second one reuses
    /// its connection.
    pub clients: usize,
    /// The seed for all random decisions.
    pub seed: u64,
}

/// A running load.
pub struct Load {
    meter: Arc<Meter>,
    stop: watch::Sender<bool>,
    clients: JoinSet<Client>,
}

impl Load {
    /// Creates the buckets and starts the clients.
    ///
    /// # Errors
    ///
    /// A bucket cannot be created.
    pub async fn start(config: &LoadConfig) -> Result<Self, Failure> {
        let meter = Arc::new(Meter::default());
        let stop = watch::Sender::new(false);
        let mut ready = Vec::new();
        for number in 0..config.clients {
            let habit = ClientBehavior::of(number);
            let mut s3 = S3::new(config, &format!("client-{number:02}"), habit.keeps_alive(), meter.clone());
            s3.create_bucket().await?;
            ready.push(Client::new(s3, habit, config.seed.wrapping_add(number as u64)));
        }
        let mut clients = JoinSet::new();
        for client in ready {
            clients.spawn(client.run(stop.subscribe()));
        }
        Ok(Self { meter, stop, clients })
    }

    /// The counts, which grow.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Lets every client finish its work, and then read back everything that it has written. Returns the final meter.
    pub async fn finish(mut self) -> Arc<Meter> {
        self.stop.send_replace(true);
        let mut readers = JoinSet::new();
        while let Some(client) = self.clients.join_next().await {
            match client {
                Ok(client) => {
                    readers.spawn(client.read_back());
                }
                Err(error) => self.meter.failed(&Failure::other(format!("a client failed: {error}"))),
            }
        }
        while let Some(done) = readers.join_next().await {
            if let Err(error) = done {
                self.meter.failed(&Failure::other(format!("a client failed: {error}")));
            }
        }
        self.meter
    }
}
