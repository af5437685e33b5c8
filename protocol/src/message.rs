//! The messages, one enum per direction.
//!
//! A kind is never reused. `Hello`, `Welcome`, `Adopt` and `Adopted` never change.
//!
//! | kind | message | from | to |
//! |---|---|---|---|
//! | 0x01 | `Hello` | service | supervisor |
//! | 0x02 | `Prepared` | service | supervisor |
//! | 0x03 | `Drained` | service | supervisor |
//! | 0x04 | `Sealed` | service | supervisor |
//! | 0x05 | `SealFailed` | service | supervisor |
//! | 0x06 | `Ready` | service | supervisor |
//! | 0x07 | `Resumed` | service | supervisor |
//! | 0x08 | `ResumeFailed` | service | supervisor |
//! | 0x09 | `Progress` | service | supervisor |
//! | 0x0a | `Adopted` | service | supervisor |
//! | 0x0b | `State` | service | supervisor |
//! | 0x0c | `Release` | service | supervisor |
//! | 0x81 | `Welcome` | supervisor | service |
//! | 0x82 | `Prepare` | supervisor | service |
//! | 0x83 | `Seal` | supervisor | service |
//! | 0x84 | `Begin` | supervisor | service |
//! | 0x85 | `Commit` | supervisor | service |
//! | 0x86 | `Abort` | supervisor | service |
//! | 0x87 | `Resume` | supervisor | service |
//! | 0x88 | `Adopt` | supervisor | service |
//! | 0x89 | `State` | supervisor | service |
//! | 0x8a | `Grant` | supervisor | service |

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::frame::{self, FrameError, Message};
use crate::ids::{Generation, ListenerName, ServiceName};
use crate::state::{self, State};
use crate::version::{self, VersionRange};

/// How processes of a service may overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One writer: the successor opens the data only after the incumbent has released it.
    Exclusive,
    /// Stateless: both may serve at the same time.
    Overlap,
}

/// First message of a service on its channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hello {
    /// The versions that the service supports.
    pub versions: VersionRange,
    /// The process that will serve. It differs from the started process if a wrapper forked.
    pub pid: u32,
}

/// Answer to [`Hello`]. The listeners travel with it, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Welcome {
    /// The version of all later messages.
    pub version: u16,
    /// The service of the process.
    pub service: ServiceName,
    /// The generation of the process once it is committed.
    pub generation: Generation,
    /// Whether the process must take the data lock before it opens its data.
    pub mode: Mode,
    /// One name per file descriptor.
    pub listeners: Vec<ListenerName>,
    /// A process that works longer than this without an answer must send [`Progress`]. Milliseconds.
    pub lease_ms: u64,
}

/// To the successor: do all slow start-up, touch no data, then answer `Prepared`. To the incumbent: keep accepting, ask
/// clients to reconnect, wait for long requests, then answer `Drained`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prepare {
    /// Time limit for this step. Milliseconds.
    pub grace_ms: u64,
    /// If no message follows within this time, the incumbent resumes by itself and the successor leaves. Milliseconds.
    pub lease_ms: u64,
}

/// To the incumbent: stop accepting, finish what was accepted, flush, release the lock, then answer `Sealed`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seal {
    /// The incumbent resumes by itself if no message follows its `Sealed` within this time. Milliseconds.
    pub lease_ms: u64,
    /// Whether running requests may be cut.
    pub cut: bool,
}

/// To the process that seals next: how long its server, or the program it runs, may take to end after the request to
/// end. It is not killed earlier. Since version 3.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// Milliseconds.
    pub end_ms: u64,
}

/// To the successor: take the lock, open the data, accept, then answer `Ready`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Begin {}

/// To the successor: you are the incumbent. To the incumbent: leave; drain and seal first if you still serve.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Commit {}

/// To the successor: leave; drain and seal first if you already serve.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Abort {}

/// To the incumbent: take the lock, reopen, accept, then answer `Resumed`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resume {}

/// An answer without content.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Done {}

/// An answer that reports a failure.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Failed {
    /// The cause, for people.
    pub reason: String,
}

/// Answer to [`Begin`]. A successor that is not healthy may also send it at any earlier time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ready {
    /// Whether the successor serves. If `false`, it must not accept.
    pub healthy: bool,
    /// The cause if it is not healthy, for people.
    pub reason: String,
}

/// A sign of life during long work.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Progress {
    /// What the process is waiting for, for people; may be empty.
    pub note: String,
}

/// First message of a supervisor that takes over a service whose supervisor is gone. Sent on a new channel; both use
/// the handoff id of its frame from then on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Adopt {
    /// The versions that the supervisor supports.
    pub versions: VersionRange,
    /// As in [`Welcome`]. Milliseconds.
    pub lease_ms: u64,
}

/// Answer to [`Adopt`]. The listeners of the process travel with it, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Adopted {
    /// The version of all later messages.
    pub version: u16,
    /// The process.
    pub pid: u32,
    /// As in its [`Welcome`].
    pub service: ServiceName,
    /// As in its [`Welcome`].
    pub generation: Generation,
    /// The activity of the process.
    pub stage: Stage,
    /// One name per file descriptor.
    pub listeners: Vec<ListenerName>,
}

/// The activity of a process at its adoption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// It serves, and considers itself the incumbent.
    Serving,
    /// It holds the lock, if there is one, and is about to serve; `Resumed` or `Ready` follows.
    Working,
    /// It waits for the lock: the holder serves, and this process is its standby.
    Waiting,
    /// It is leaving.
    Leaving,
}

/// The server's own version text, for people. Sent as soon as it is known, and again after each [`Adopted`]. Since
/// version 4.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Release {
    /// The text, such as `1.2.3`.
    pub version: String,
}

macro_rules! direction {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $kind:literal $variant:ident($body:ty)),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* $variant($body),)*
        }

        impl $name {
            /// The name of the message, as in docs/internals/protocol-messages.md.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => stringify!($variant),)* }
            }

            /// Every kind of this direction, with its name.
            pub const KINDS: &'static [(u8, &'static str)] = &[$(($kind, stringify!($variant)),)*];
        }

        impl Message for $name {
            fn kind(&self) -> u8 {
                match self { $(Self::$variant(_) => $kind,)* }
            }
            fn before_agreement(&self) -> bool {
                matches!(self.kind(), HELLO | WELCOME | ADOPT | ADOPTED)
            }
            fn fd_count(&self) -> usize {
                self.fds()
            }
            fn needs_fds(&self) -> bool {
                matches!(self, Self::State(state) if state.is_beside())
            }
            fn since(&self) -> u16 {
                match self.kind() {
                    STATE_UP | STATE_DOWN => state::SINCE,
                    GRANT => GRANT_SINCE,
                    RELEASE => RELEASE_SINCE,
                    _ => version::UNAGREED,
                }
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

const HELLO: u8 = 0x01;
const WELCOME: u8 = 0x81;
const ADOPT: u8 = 0x88;
const ADOPTED: u8 = 0x0a;
const STATE_UP: u8 = 0x0b;
const STATE_DOWN: u8 = 0x89;
const RELEASE: u8 = 0x0c;
const GRANT: u8 = 0x8a;
/// The first version with [`Grant`].
const GRANT_SINCE: u16 = 3;
/// The first version with [`Release`].
const RELEASE_SINCE: u16 = 4;

direction! {
    /// Messages from a service to its supervisor.
    FromService {
        /// First message.
        0x01 Hello(Hello),
        /// The successor has started and is parked.
        0x02 Prepared(Done),
        /// The incumbent has only short requests left.
        0x03 Drained(Done),
        /// The incumbent does not accept, has nothing in flight, and has released its data.
        0x04 Sealed(Done),
        /// The incumbent could not drain or seal; it still holds its data.
        0x05 SealFailed(Failed),
        /// The successor serves, or cannot.
        0x06 Ready(Ready),
        /// The incumbent serves again.
        0x07 Resumed(Done),
        /// The incumbent cannot serve again, and exits.
        0x08 ResumeFailed(Failed),
        /// A sign of life.
        0x09 Progress(Progress),
        /// Answer to a new supervisor.
        0x0a Adopted(Adopted),
        /// State for the successor.
        0x0b State(State),
        /// The server's version text.
        0x0c Release(Release),
    }
}

direction! {
    /// Messages from a supervisor to a service.
    ToService {
        /// Answer to `Hello`.
        0x81 Welcome(Welcome),
        /// Start up, or drain.
        0x82 Prepare(Prepare),
        /// Stop and release.
        0x83 Seal(Seal),
        /// Take over.
        0x84 Begin(Begin),
        /// The commit is durable.
        0x85 Commit(Commit),
        /// You are dismissed.
        0x86 Abort(Abort),
        /// Serve again.
        0x87 Resume(Resume),
        /// A new supervisor adopts you.
        0x88 Adopt(Adopt),
        /// State from the predecessor.
        0x89 State(State),
        /// Time that you have to end.
        0x8a Grant(Grant),
    }
}

impl FromService {
    fn fds(&self) -> usize {
        match self {
            Self::Adopted(adopted) => adopted.listeners.len(),
            Self::State(state) => usize::from(state.is_beside()),
            _ => 0,
        }
    }
}

impl ToService {
    fn fds(&self) -> usize {
        match self {
            Self::Welcome(welcome) => welcome.listeners.len(),
            Self::State(state) => usize::from(state.is_beside()),
            _ => 0,
        }
    }
}
