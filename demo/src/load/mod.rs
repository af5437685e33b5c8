//! The load: S3 clients that write, read and compare with what they know they wrote.
//!
//! - [`content`]: what objects hold, made again from a seed whenever it is to be compared;
//! - [`model`]: what a client knows about its objects;
//! - [`failure`]: everything a client must never notice, told apart;
//! - [`http`]: one request on one connection, never repeated;
//! - [`s3`]: the signed operations;
//! - [`client`]: who asks for what, and when;
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

use client::{Client, Habit};
use failure::Failure;
use meter::Meter;
use s3::S3;

/// Whom to load, and how much.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the server listens.
    pub endpoint: SocketAddr,
    /// The access key that requests are signed with.
    pub access_key: String,
    /// The secret that belongs to it.
    pub secret_key: String,
    /// How many clients; each has a bucket of its own. One of four uploads slowly, of the others every
    /// second one keeps its connection alive.
    pub clients: usize,
    /// Decides all that is random about the load.
    pub seed: u64,
}

/// A load that is running.
pub struct Load {
    meter: Arc<Meter>,
    stop: watch::Sender<bool>,
    clients: JoinSet<Client>,
}

impl Load {
    /// Makes the buckets and starts the clients.
    ///
    /// # Errors
    ///
    /// A bucket cannot be made.
    pub async fn start(plan: &Plan) -> Result<Self, Failure> {
        let meter = Arc::new(Meter::default());
        let stop = watch::Sender::new(false);
        let mut ready = Vec::new();
        for number in 0..plan.clients {
            let habit = Habit::of(number);
            let mut s3 = S3::new(plan, &format!("client-{number:02}"), habit.keeps_alive(), meter.clone());
            s3.create_bucket().await?;
            ready.push(Client::new(s3, habit, plan.seed.wrapping_add(number as u64)));
        }
        let mut clients = JoinSet::new();
        for client in ready {
            clients.spawn(client.run(stop.subscribe()));
        }
        Ok(Self { meter, stop, clients })
    }

    /// The counts, as they grow.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Lets every client finish what it is at, and then read back all it has ever written. Returns the
    /// meter, which does not change any more.
    pub async fn finish(mut self) -> Arc<Meter> {
        self.stop.send_replace(true);
        let mut readers = JoinSet::new();
        while let Some(client) = self.clients.join_next().await {
            match client {
                Ok(client) => {
                    readers.spawn(client.read_back());
                }
                Err(error) => self.meter.failed(&Failure::other(format!("a client broke: {error}"))),
            }
        }
        while let Some(done) = readers.join_next().await {
            if let Err(error) = done {
                self.meter.failed(&Failure::other(format!("a client broke: {error}")));
            }
        }
        self.meter
    }
}
