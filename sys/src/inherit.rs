//! How a service finds the channel from its supervisor.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::channel::Channel;
use super::descriptor::{is_close_on_exec, set_close_on_exec};
use super::errno::Errno;

/// The environment variable with the number of the inherited channel.
///
/// This library leaves the variable set: removing it would race with other threads of the process. A service that
/// starts programs should remove it from their environment.
pub const CHANNEL_VARIABLE: &str = "HANDOFF_FD";

/// The environment variable with the absolute path at which a process listens for a new supervisor after its own is
/// gone. Without it the process cannot be adopted. As with [`CHANNEL_VARIABLE`], remove it from the environment of
/// child programs.
pub const ADOPT_VARIABLE: &str = "HANDOFF_ADOPT";

/// The environment variable with the kind of socket of the channel: unset, or [`STREAM`].
pub const KIND_VARIABLE: &str = "HANDOFF_CHANNEL";

/// The value of [`KIND_VARIABLE`] for a `SOCK_STREAM` socket. This library needs packets and refuses such a channel.
pub const STREAM: &str = "stream";

/// Why the inherited channel cannot be used. `Display` is a sentence without a full stop.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// The variable does not hold the number of a descriptor above the standard ones.
    #[error("{CHANNEL_VARIABLE}={0:?} is not the number of a descriptor")]
    Number(String),
    /// The descriptor is not open.
    #[error(
        "{CHANNEL_VARIABLE}={0}, but descriptor {0} is not open; was it closed by a wrapper, or was \
         {CHANNEL_VARIABLE} left set by a parent that is itself a service?"
    )]
    NotOpen(RawFd),
    /// The descriptor is not a usable channel.
    #[error("{CHANNEL_VARIABLE}={fd} cannot be used: {error}")]
    Unfit {
        /// The number of the descriptor.
        fd: RawFd,
        /// The reason.
        error: io::Error,
    },
    /// The service file asks for a stream, which is for libraries in other languages.
    #[error(
        "{KIND_VARIABLE}={STREAM}, but this library speaks over packets; remove channel = \"stream\" from the service file"
    )]
    Stream,
    /// The channel of this process has been taken before.
    #[error("the channel of this process has been taken already")]
    Taken,
}

/// Takes the channel that this process inherited and makes it close-on-exec. `None` if the variable is unset, so there
/// is no supervisor. Returns the channel once, then [`InheritError::Taken`]. Does not block.
pub fn take_channel() -> Result<Option<Channel>, InheritError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);

    let Some(value) = std::env::var_os(CHANNEL_VARIABLE) else { return Ok(None) };
    // Also checked first: once the channel is dropped, its number may belong to another file.
    if TAKEN.load(Ordering::Relaxed) {
        return Err(InheritError::Taken);
    }
    let fd = parse(&value.to_string_lossy())?;
    check_open(fd)?;
    if std::env::var_os(KIND_VARIABLE).is_some_and(|kind| kind == STREAM) {
        return Err(InheritError::Stream);
    }
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(InheritError::Taken);
    }
    // SAFETY: the descriptor is open, and the setter of the variable passed it to this process for this call, which
    // gets here once.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    let unfit = |error| InheritError::Unfit { fd, error };
    set_close_on_exec(&owned, true).map_err(|error| unfit(error.into()))?;
    Channel::from_fd(owned).map(Some).map_err(unfit)
}

fn parse(text: &str) -> Result<RawFd, InheritError> {
    // 0 to 2 are the standard streams: owning one of them would close it.
    match text.parse::<RawFd>() {
        Ok(fd) if fd > 2 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(fd),
        _ => Err(InheritError::Number(text.to_owned())),
    }
}

fn check_open(fd: RawFd) -> Result<(), InheritError> {
    // SAFETY: this only queries the number; EBADF is a valid answer.
    let asked = is_close_on_exec(unsafe { BorrowedFd::borrow_raw(fd) });
    match asked {
        Ok(_) => Ok(()),
        Err(Errno::EBADF) => Err(InheritError::NotOpen(fd)),
        Err(error) => Err(InheritError::Unfit { fd, error: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_numbers_above_the_standard_streams() {
        assert_eq!(parse("3").unwrap(), 3);
        assert_eq!(parse("250").unwrap(), 250);
        for bad in ["", "0", "2", "-1", "+5", " 5", "5 ", "0x5", "99999999999", "five"] {
            assert!(matches!(parse(bad), Err(InheritError::Number(_))), "{bad}");
        }
    }

    #[test]
    fn a_closed_number_is_told() {
        let error = check_open(RawFd::MAX).unwrap_err();
        assert!(error.to_string().contains("is not open"), "{error}");
    }

    /// The test runs itself as a child, the second time with a channel.
    #[test]
    fn the_channel_is_given_once_and_not_passed_on() {
        use crate::process::reap_blocking;
        use crate::spawn::{SpawnSpec, spawn};
        use std::os::fd::AsFd;

        if let Some(channel) = take_channel().unwrap() {
            assert!(is_close_on_exec(&channel).unwrap());
            assert!(matches!(take_channel(), Err(InheritError::Taken)));
            channel.send(b"taken", &[]).unwrap();
            drop(channel);
            assert!(matches!(take_channel(), Err(InheritError::Taken)));
            return;
        }
        let (ours, theirs) = Channel::pair().unwrap();
        let null = std::fs::File::options().write(true).open("/dev/null").unwrap();
        let name = "inherit::tests::the_channel_is_given_once_and_not_passed_on";
        let spawned = spawn(SpawnSpec {
            binary: std::env::current_exe().unwrap(),
            args: ["--exact", name].map(Into::into).to_vec(),
            env: Vec::new(),
            working_dir: "/".into(),
            stdout: null.try_clone().unwrap().into(),
            stderr: null.into(),
            channel: Some(theirs),
            files_limit: None,
        });
        let mut buffer = Vec::new();
        let packet = ours.recv(&mut buffer).unwrap().unwrap();
        assert_eq!(buffer[..packet.len], *b"taken");
        assert_eq!(reap_blocking(spawned.unwrap().pidfd.as_fd()).unwrap().code, Some(0));
    }
}
