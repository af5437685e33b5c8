//! Where the lines of a log pipe go, and what is known of their process.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::message::{KeeperRequest, Log, LogStream};
use crate::sys::log_pipe::Stream;

/// Where to write the lines of a log pipe, and how to label them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogSpec {
    /// The service.
    pub service: String,
    /// The directory of the files, an absolute path; created if it is missing.
    pub dir: PathBuf,
    /// Size at which a file is rotated, in bytes.
    pub max_size_bytes: u64,
    /// Number of files to keep, including the current one; at least 2.
    pub files: u32,
    /// Age at which lines are removed, in milliseconds.
    pub max_age_ms: Option<u64>,
    /// Maximum number of bytes per second.
    pub max_rate_bytes: Option<u64>,
    /// Whether journald gets the lines too.
    pub journald: bool,
    /// The generation for which the process was started.
    pub generation: Option<u64>,
    /// Its pid. If it is not known yet, the process itself may mark its pipes with it.
    pub pid: Option<u32>,
    /// Which stream of the process the pipe is.
    pub stream: Option<Stream>,
}

impl LogSpec {
    /// The request for a keeper that labels lines.
    pub(super) fn labelled(&self) -> KeeperRequest {
        KeeperRequest::LogStream(LogStream {
            service: self.service.clone(),
            dir: self.dir.as_os_str().as_bytes().to_vec(),
            max_size_bytes: self.max_size_bytes,
            files: self.files,
            max_age_ms: self.max_age_ms.unwrap_or(0),
            max_rate_bytes: self.max_rate_bytes.unwrap_or(0),
            journald: self.journald,
            generation: self.generation.unwrap_or(0),
            pid: self.pid.unwrap_or(0),
            stream: match self.stream {
                Some(Stream::Out) => 1,
                Some(Stream::Err) => 2,
                None => 0,
            },
        })
    }

    /// The request for a keeper of an older version, which writes lines as they are.
    pub(super) fn unlabelled(&self) -> KeeperRequest {
        KeeperRequest::Log(Log {
            service: self.service.clone(),
            dir: self.dir.as_os_str().as_bytes().to_vec(),
            max_size_bytes: self.max_size_bytes,
            files: self.files,
        })
    }
}
