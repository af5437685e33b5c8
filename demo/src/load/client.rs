//! The clients and their requests.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::content::{Content, Rng};
use super::failure::Failure;
use super::http::Upload;
use super::model::Model;
use super::s3::S3;

/// Number of keys per client.
const KEYS: u64 = 24;
/// Minimum size of a part other than the last one.
const FULL_PART: usize = 5 * 1024 * 1024;

/// The behavior of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientBehavior {
    /// Short operations on one connection, while the server keeps it open.
    KeepAlive,
    /// Short operations, each on a new connection.
    Fresh,
    /// Uploads that take seconds, so that upgrades happen during them.
    Slow,
}

impl ClientBehavior {
    /// The habit of the client with this number.
    pub fn of(number: usize) -> Self {
        match number % 4 {
            3 => Self::Slow,
            n if n % 2 == 0 => Self::KeepAlive,
            _ => Self::Fresh,
        }
    }

    /// Whether it reuses connections.
    pub fn keeps_alive(self) -> bool {
        self == Self::KeepAlive
    }
}

/// A client with its bucket and its model.
pub struct Client {
    s3: S3,
    behavior: ClientBehavior,
    model: Model,
    rng: Rng,
}

impl Client {
    /// Creates a client of an empty bucket.
    pub fn new(s3: S3, habit: ClientBehavior, seed: u64) -> Self {
        Self { s3, behavior: habit, model: Model::default(), rng: Rng::new(seed) }
    }

    /// Runs until `stop` is true, counts every failure, and returns when nothing is in progress.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Self {
        while !*stop.borrow() {
            let (result, pause_ms) = match self.behavior {
                ClientBehavior::Slow => (self.slow_operation().await, 1500..3500),
                ClientBehavior::KeepAlive | ClientBehavior::Fresh => (self.operation().await, 5..35),
            };
            self.count(result);
            let pause = Duration::from_millis(self.rng.within(pause_ms));
            tokio::select! {
                _ = stop.changed() => {}
                () = sleep(pause) => {}
            }
        }
        self
    }

    /// Reads back everything that was written, and counts deviations.
    pub async fn read_back(mut self) {
        for key in self.model.keys() {
            let result = self.get(&key).await;
            self.count(result);
        }
        let result = self.list("").await;
        self.count(result);
    }

    fn count(&self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.s3.meter().failed(&failure);
        }
    }

    async fn operation(&mut self) -> Result<(), Failure> {
        let key = format!("dir-{}/key-{:02}", self.rng.within(0..3), self.rng.within(0..KEYS / 3));
        match self.rng.within(0..100) {
            0..35 => {
                let content = self.content(0..65_536);
                self.put(&key, content, Upload::all(content.bytes())).await
            }
            35..75 => self.get(&key).await,
            75..85 => {
                let length = self.s3.head(&key).await?;
                self.model.check_length(&key, length)
            }
            85..88 => self.list("").await,
            88..90 => self.list("dir-1/").await,
            90..97 => self.delete(&key).await,
            97..99 => self.multipart(&key, 1, Duration::ZERO).await,
            _ => self.multipart(&key, 2, Duration::ZERO).await,
        }
    }

    async fn slow_operation(&mut self) -> Result<(), Failure> {
        let key = format!("slow/key-{}", self.rng.within(0..4));
        if self.rng.within(0..3) == 0 {
            self.multipart(&key, 2, Duration::from_secs(1)).await?;
        } else {
            let content = self.content(1_500_000..3_000_000);
            let over = Duration::from_millis(self.rng.within(1000..2000));
            self.put(&key, content, Upload::paced(content.bytes(), 30, over)).await?;
        }
        self.get(&key).await
    }

    async fn put(&mut self, key: &str, content: Content, upload: Upload) -> Result<(), Failure> {
        let result = self.s3.put(key, upload).await;
        self.wrote(key, Some(content), result)
    }

    async fn delete(&mut self, key: &str) -> Result<(), Failure> {
        let result = self.s3.delete(key).await;
        self.wrote(key, None, result)
    }

    async fn get(&mut self, key: &str) -> Result<(), Failure> {
        let answer = self.s3.get(key).await?;
        self.model.check_body(key, answer.as_ref().map(|answer| answer.body.as_ref()))
    }

    async fn list(&mut self, prefix: &str) -> Result<(), Failure> {
        let listed = self.s3.list(prefix).await?;
        self.model.check_list(prefix, &listed)
    }

    /// Uploads an object of `parts` parts, optionally slowly and with a pause between the parts.
    async fn multipart(&mut self, key: &str, parts: u16, pause: Duration) -> Result<(), Failure> {
        let last = self.rng.within(1..262_144) as usize;
        let length = usize::from(parts - 1) * FULL_PART + last;
        let content = Content { seed: self.rng.draw(), length };
        let result = self.upload_parts(key, content, pause).await;
        self.wrote(key, Some(content), result)
    }

    async fn upload_parts(&mut self, key: &str, content: Content, pause: Duration) -> Result<(), Failure> {
        let id = self.s3.begin_parts(key).await?;
        let bytes = bytes::Bytes::from(content.bytes());
        let mut tags = Vec::new();
        for start in (0..content.length).step_by(FULL_PART) {
            let part = bytes.slice(start..content.length.min(start + FULL_PART));
            let upload = if pause.is_zero() { Upload::all(part) } else { Upload::paced(part, 20, pause) };
            let number = u16::try_from(tags.len() + 1).expect("few parts");
            tags.push(self.s3.put_part(key, &id, number, upload).await?);
            sleep(pause).await;
        }
        self.s3.complete_parts(key, &id, &tags).await
    }

    fn wrote(
        &mut self,
        key: &str,
        state: Option<Content>,
        result: Result<(), Failure>,
    ) -> Result<(), Failure> {
        match result {
            Ok(()) => {
                self.s3.meter().acknowledge();
                self.model.wrote(key, state);
            }
            Err(_) => self.model.tried(key, state),
        }
        result
    }

    fn content(&mut self, lengths: std::ops::Range<u64>) -> Content {
        Content { seed: self.rng.draw(), length: self.rng.within(lengths) as usize }
    }
}
