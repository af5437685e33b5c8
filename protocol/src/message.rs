//! The messages, one enum per direction.
//!
//! A kind, once given, is never given again. `Hello`, `Welcome`, `Adopt` and `Adopted` never change.
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

/// How the processes of a service may overlap.
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
    /// The versions that the service speaks.
    pub versions: VersionRange,
    /// The process that will serve. It differs from the one that was started if a wrapper forked.
    pub pid: u32,
}

/// Answer to [`Hello`]. The listeners travel with it, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that is spoken from now on.
    pub version: u16,
    /// The service that the process is to be.
    pub service: ServiceName,
    /// The generation that the process becomes when it is committed.
    pub generation: Generation,
    /// Whether the process must take the data lock before it opens its data.
    pub mode: Mode,
    /// A name per file descriptor.
    pub listeners: Vec<ListenerName>,
    /// A role that works for longer than this without an answer sends [`Progress`] meanwhile. Milliseconds.
    pub lease_ms: u64,
}

/// To the successor: do all slow start-up, touch no data, then answer `Prepared`. To the incumbent: go on accepting,
/// ask clients to move on, wait for long requests, then answer `Drained`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prepare {
    /// The time that this may take. Milliseconds.
    pub grace_ms: u64,
    /// The incumbent resumes by itself, and the successor leaves, if nothing follows within this time. Milliseconds.
    pub lease_ms: u64,
}

/// To the incumbent: stop accepting, finish what was accepted, flush, release the lock, then answer `Sealed`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seal {
    /// The incumbent resumes by itself if nothing follows its `Sealed` within this time. Milliseconds.
    pub lease_ms: u64,
    /// Whether requests that are still running may be cut.
    pub cut: bool,
}

/// To the process that is sealed next: how long the server, or the program that it runs, may take to end from the moment at which it
/// is asked to. It is not killed earlier. Since version 3.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// Milliseconds.
    pub end_ms: u64,
}

/// To the successor: take the lock, open the data, accept, then answer `Ready`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Begin {}

/// To the successor: you are the incumbent. To the incumbent: leave, in order if you still serve.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Commit {}

/// To the successor: leave, in order if you already serve.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Abort {}

/// To the incumbent: take the lock, reopen, accept, then answer `Resumed`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resume {}

/// An answer that says no more than its kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Done {}

/// An answer that says that something failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Failed {
    /// Cause, for a person.
    pub reason: String,
}

/// Answer to [`Begin`]; a successor that is not healthy may send it at any time before that too.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ready {
    /// Whether the successor serves. If not, it must not be accepting.
    pub healthy: bool,
    /// Cause if it is not healthy, for a person.
    pub reason: String,
}

/// A sign of life during long work.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Progress {
    /// What the role is waiting for, for a person; may be empty.
    pub note: String,
}

/// First message of a supervisor that takes over a service whose supervisor is gone. It is sent on a new channel; the id
/// of its frame is the handoff that both belong to from now on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Adopt {
    /// The versions that the supervisor speaks.
    pub versions: VersionRange,
    /// As in [`Welcome`]. Milliseconds.
    pub lease_ms: u64,
}

/// Answer to [`Adopt`]. The listeners of the process travel with it, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Adopted {
    /// The version that is spoken from now on.
    pub version: u16,
    /// The process.
    pub pid: u32,
    /// As in its [`Welcome`].
    pub service: ServiceName,
    /// As in its [`Welcome`].
    pub generation: Generation,
    /// What the process is doing.
    pub stage: Stage,
    /// A name per file descriptor.
    pub listeners: Vec<ListenerName>,
}

/// What a process that is adopted is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// It serves, and takes itself for the incumbent.
    Serving,
    /// It holds the lock, if there is one, and is about to serve; `Resumed` or `Ready` follows.
    Working,
    /// It waits for the lock: whoever holds it serves, and this process is its standby.
    Waiting,
    /// It is on its way out.
    Leaving,
}

/// What the server that a process runs calls its version, for people. Sent as soon as it is known, and again after each [`Adopted`].
/// Since version 4.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Release {
    /// As the server writes it, as `1.2.3`.
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
/// The first version that has [`Grant`].
const GRANT_SINCE: u16 = 3;
/// The first version that has [`Release`].
const RELEASE_SINCE: u16 = 4;

direction! {
    /// What a service says to its supervisor.
    FromService {
        /// First message.
        0x01 Hello(Hello),
        /// The successor is started and parked.
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
        /// The answer to another supervisor.
        0x0a Adopted(Adopted),
        /// For the process that follows.
        0x0b State(State),
        /// What the server calls its version.
        0x0c Release(Release),
    }
}

direction! {
    /// What a supervisor says to a service.
    ToService {
        /// Answer to `Hello`.
        0x81 Welcome(Welcome),
        /// Start up, or drain.
        0x82 Prepare(Prepare),
        /// Stop and release.
        0x83 Seal(Seal),
        /// Take over.
        0x84 Begin(Begin),
        /// It is decided.
        0x85 Commit(Commit),
        /// You are not wanted.
        0x86 Abort(Abort),
        /// Serve again.
        0x87 Resume(Resume),
        /// Another supervisor is here.
        0x88 Adopt(Adopt),
        /// From the process that went before.
        0x89 State(State),
        /// How long it may take to end.
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
