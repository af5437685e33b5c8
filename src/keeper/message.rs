//! The messages between a supervisor and its keeper.
//!
//! The frames are those of `handoff_protocol`, always with version 1 and without a handoff id: a keeper outlives its
//! supervisor and may meet a newer one. So a kind keeps its meaning and body forever; additions get a new kind, which
//! an old keeper answers with `Failed`.

use handoff_protocol::frame::{self, FrameError, Message};
use serde::{Deserialize, Serialize};

/// The version in every frame.
pub const VERSION: u16 = 1;

/// Maximum length of a descriptor's key, in bytes.
pub const KEY_MAX_BYTES: usize = 512;

/// Maximum number of keys in one fetch.
pub const FETCH_MAX: usize = 64;

/// Store descriptors. One per key travels along, in this order; existing keys are replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// Names with a meaning for the supervisor only.
    pub keys: Vec<String>,
}

/// The key of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The key as stored.
    pub key: String,
}

/// Distinct keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// At most [`FETCH_MAX`].
    pub keys: Vec<String>,
}

/// Write the output of a pipe, whose read end travels along, to rotated files. No effect on a pipe that is already
/// read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The service, for people who query the keeper.
    pub service: String,
    /// The directory of the files, an absolute path. Pipes with the same directory share its files.
    pub dir: Vec<u8>,
    /// Size at which a file is rotated, in bytes.
    pub max_size_bytes: u64,
    /// Number of files to keep, including the current one; at least 2.
    pub files: u32,
}

/// Like [`Log`], for one stream of a process: each line gets the time and this label. On a pipe that is already read,
/// adds what was not known of its label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStream {
    /// The service.
    pub service: String,
    /// The directory of the files, an absolute path. Pipes with the same directory share its files.
    pub dir: Vec<u8>,
    /// Size at which a file is rotated, in bytes.
    pub max_size_bytes: u64,
    /// Number of files to keep, including the current one; at least 2.
    pub files: u32,
    /// Age at which lines are removed, in milliseconds; 0 if they are not.
    pub max_age_ms: u64,
    /// Maximum number of bytes per second; 0 without a limit.
    pub max_rate_bytes: u64,
    /// Whether journald gets the lines too.
    pub journald: bool,
    /// The generation for which the process was started; 0 if not known.
    pub generation: u64,
    /// Its pid; 0 if not known.
    pub pid: u32,
    /// 1 for standard output, 2 for standard error, 0 if not known.
    pub stream: u8,
}

/// Requests a page of the sorted keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Return keys after this one; empty for the first page.
    pub after: String,
}

/// Answer to [`List`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries {
    /// Some of the keys.
    pub keys: Vec<String>,
    /// Whether more keys follow.
    pub more: bool,
}

/// Answer to `Stats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Number of descriptors held by key.
    pub held: u64,
    /// Number of open log pipes.
    pub pipes: u64,
    /// Bytes written to logs.
    pub written_bytes: u64,
    /// Lines that could not be written.
    pub lost_lines: u64,
    /// The last error of a log, for people; empty if there was none.
    pub trouble: String,
}

/// The request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The cause, for people.
    pub reason: String,
}

/// A message without content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

macro_rules! direction {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $kind:literal $variant:ident($body:ty)),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name {
            $($(#[$vdoc])* $variant($body),)*
        }

        impl Message for $name {
            fn kind(&self) -> u8 {
                match self { $(Self::$variant(_) => $kind,)* }
            }
            fn before_agreement(&self) -> bool {
                false
            }
            fn fd_count(&self) -> usize {
                self.descriptors()
            }
            fn encode_body(&self) -> Result<Vec<u8>, FrameError> {
                match self { $(Self::$variant(body) => frame::encode_body($kind, body),)* }
            }
            fn decode_body(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
                match kind {
                    $($kind => frame::decode_body(kind, body).map(Self::$variant),)*
                    _ => Err(FrameError::Kind { kind }),
                }
            }
        }
    };
}

direction! {
    /// Requests of a supervisor. Each gets one reply, in order.
    KeeperRequest {
        /// Check that the keeper answers.
        0x21 Ping(Empty),
        /// Store descriptors.
        0x22 Store(Store),
        /// Close a descriptor, if the key exists.
        0x23 Drop(Key),
        /// Return a duplicate of a descriptor.
        0x24 Fetch(Key),
        /// Return a page of the keys.
        0x25 List(List),
        /// Read this log pipe.
        0x26 Log(Log),
        /// Return the statistics.
        0x27 Stats(Empty),
        /// Drain the pipes, answer, and exit.
        0x28 Quit(Empty),
        /// Return duplicates of the descriptors that exist among these.
        0x29 FetchAll(Keys),
        /// Read this log pipe, and label its lines.
        0x2a LogStream(LogStream),
        /// Check that the keeper labels lines.
        0x2b Labels(Empty),
    }
}

direction! {
    /// Replies of a keeper.
    KeeperReply {
        /// The request succeeded.
        0xa1 Done(Empty),
        /// The request failed.
        0xa2 Failed(Failed),
        /// Answer to `Fetch`, with the descriptor.
        0xa3 Fetched(Empty),
        /// Answer to `List`.
        0xa4 Entries(Entries),
        /// Answer to `Stats`.
        0xa5 Stats(Stats),
        /// Answer to `FetchAll`: the existing keys, with one descriptor each, in this order.
        0xa6 FetchedAll(Keys),
    }
}

impl KeeperRequest {
    fn descriptors(&self) -> usize {
        match self {
            Self::Store(store) => store.keys.len(),
            Self::Log(_) | Self::LogStream(_) => 1,
            _ => 0,
        }
    }
}

impl KeeperReply {
    fn descriptors(&self) -> usize {
        match self {
            Self::Fetched(_) => 1,
            Self::FetchedAll(found) => found.keys.len(),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff_protocol::ids::HandoffId;

    #[test]
    fn requests_keep_their_bytes() {
        let store = KeeperRequest::Store(Store { keys: vec!["s3/main/0".into()] });
        let frame = frame::encode(VERSION, HandoffId::NIL, &store).unwrap();
        assert_eq!(frame[..12], [b'h', b'o', b'f', b'f', 1, 0, 0x22, 0, 1, 0, 0, 0]);
        assert_eq!(frame[36..], *b"\x01\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0s3/main/0");
        assert_eq!(frame::decode::<KeeperRequest>(&frame, 1, VERSION).unwrap().1, store);

        let log = Log { service: "s3".into(), dir: b"/l".to_vec(), max_size_bytes: 7, files: 2 };
        let body = KeeperRequest::Log(log).encode_body().unwrap();
        assert_eq!(body, b"\x02\0\0\0\0\0\0\0s3\x02\0\0\0\0\0\0\0/l\x07\0\0\0\0\0\0\0\x02\0\0\0");

        let stream = KeeperRequest::LogStream(LogStream {
            service: "s3".into(),
            dir: b"/l".to_vec(),
            max_size_bytes: 7,
            files: 2,
            max_age_ms: 3,
            max_rate_bytes: 4,
            journald: true,
            generation: 5,
            pid: 6,
            stream: 1,
        });
        let body = stream.encode_body().unwrap();
        let numbers = b"\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x01\x05\0\0\0\0\0\0\0\x06\0\0\0\x01";
        assert_eq!(body[20..], [&b"\x07\0\0\0\0\0\0\0\x02\0\0\0"[..], numbers].concat()[..]);
        assert_eq!((stream.kind(), KeeperRequest::Labels(Empty {}).kind()), (0x2a, 0x2b));

        let fetch = KeeperRequest::FetchAll(Keys { keys: vec!["a".into()] });
        let frame = frame::encode(VERSION, HandoffId::NIL, &fetch).unwrap();
        assert_eq!(
            (frame[6], frame[8], &frame[36..]),
            (0x29, 0, b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a".as_slice())
        );
    }

    #[test]
    fn replies_keep_their_bytes() {
        let stats = Stats { held: 1, pipes: 2, written_bytes: 3, lost_lines: 4, trouble: String::new() };
        let body = KeeperReply::Stats(stats).encode_body().unwrap();
        assert_eq!(body.iter().step_by(8).copied().collect::<Vec<_>>(), [1, 2, 3, 4, 0]);
        let entries = KeeperReply::Entries(Entries { keys: vec!["a".into()], more: true });
        assert_eq!(entries.encode_body().unwrap(), b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a\x01");
        assert!(KeeperReply::Done(Empty {}).encode_body().unwrap().is_empty());
        let found = KeeperReply::FetchedAll(Keys { keys: vec!["a".into(), "b".into()] });
        let frame = frame::encode(VERSION, HandoffId::NIL, &found).unwrap();
        assert_eq!((frame[6], frame[8], frame[36]), (0xa6, 2, 2));
    }
}
