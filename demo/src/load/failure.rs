//! The kinds of failures that a client must not notice during an upgrade.

use std::error::Error;
use std::fmt;
use std::io;

/// The kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The connection was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// The connection ended before the response did.
    Cut,
    /// The response did not arrive in time.
    Timeout,
    /// The response has an error status.
    Status,
    /// The response contradicts an earlier write.
    Wrong,
    /// An acknowledged write is missing.
    Lost,
    /// Anything else.
    Other,
}

impl Kind {
    /// All kinds, in numerical order.
    pub const ALL: [Self; 8] = [
        Self::Refused,
        Self::Reset,
        Self::Cut,
        Self::Timeout,
        Self::Status,
        Self::Wrong,
        Self::Lost,
        Self::Other,
    ];

    /// A word for tables and JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Cut => "cut",
            Self::Timeout => "timeout",
            Self::Status => "error_status",
            Self::Wrong => "wrong_bytes",
            Self::Lost => "lost_writes",
            Self::Other => "other",
        }
    }
}

/// A failure with its details.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Its kind.
    pub kind: Kind,
    /// A description.
    pub detail: String,
}

impl Failure {
    /// A failure of the given kind.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }

    /// A failure of the kind `Other`.
    pub fn other(detail: impl Into<String>) -> Self {
        Self::new(Kind::Other, detail)
    }

    /// The same failure with `what` as context.
    #[must_use]
    pub fn during(mut self, what: &str) -> Self {
        self.detail = format!("{what}: {}", self.detail);
        self
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(kind_of_io(&error), error.to_string())
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        let mut detail = error.to_string();
        let mut io_kind = None;
        let mut source = error.source();
        while let Some(cause) = source {
            detail = format!("{detail}: {cause}");
            io_kind = io_kind.or_else(|| cause.downcast_ref().map(kind_of_io));
            source = cause.source();
        }
        let ended = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
        let kind = io_kind.unwrap_or(if ended { Kind::Cut } else { Kind::Other });
        Self::new(kind, detail)
    }
}

fn kind_of_io(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Kind::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            Kind::Reset
        }
        io::ErrorKind::UnexpectedEof => Kind::Cut,
        io::ErrorKind::TimedOut => Kind::Timeout,
        _ => Kind::Other,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.word(), self.detail)
    }
}

impl Error for Failure {}
