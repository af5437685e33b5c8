//! Points at which a crash test can end, stop or fail this process.
//!
//! `crash_point!("library/successor/{}", what)` names a point. Without the feature `active` it does nothing. With it,
//! and with [`VARIABLE`] in the environment, the process reports the point to the harness at that socket and waits
//! for the answer. So the harness alone decides, sees the true order of events in all processes, and can kill or stop
//! any of them while this one stands still at a known place. If the harness is gone, the process continues.
//!
//! One text packet each way: `<name>\n<incumbent> <successor> <outgoing>`, with the pids of the processes of the
//! service as the supervisor has them (0 if there is none). The answer is `go`, `exit <code>`, `panic` or
//! `wait <ms>`.

/// A point of the crash tests. Takes the arguments of `format!`; the text names the point.
#[cfg(feature = "active")]
#[macro_export]
macro_rules! crash_point {
    ($($name:tt)+) => {
        $crate::reach(|| format!($($name)+))
    };
}

/// A point of the crash tests, which does nothing in this build. Takes the arguments of `format!`.
#[cfg(not(feature = "active"))]
#[macro_export]
macro_rules! crash_point {
    ($($name:tt)+) => {{
        let _ = || format_args!($($name)+).to_string();
    }};
}

/// The environment variable that holds the path of the harness's socket, of type `SOCK_SEQPACKET`.
#[cfg(feature = "active")]
pub const VARIABLE: &str = "HANDOFF_CRASH_POINTS";

#[cfg(feature = "active")]
pub use harness::{Instruction, parties, reach};

#[cfg(feature = "active")]
mod harness {
    use std::io;
    use std::os::fd::AsFd;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError};
    use std::time::Duration;

    use super::VARIABLE;
    use handoff_sys::channel::Channel;
    use handoff_sys::socket::{AddressFamily, SockFlag, SockType, connect_path, socket};

    /// What the harness orders at a point.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Instruction {
        /// Continue.
        Go,
        /// The process exits with this code.
        Exit(i32),
        /// The thread panics.
        Panic,
        /// The thread waits this many milliseconds.
        Wait(u64),
    }

    impl Instruction {
        /// Reads what `Display` writes.
        pub fn parse(text: &str) -> Option<Self> {
            match text.split_once(' ') {
                None if text == "go" => Some(Self::Go),
                None if text == "panic" => Some(Self::Panic),
                Some(("exit", code)) => code.parse().ok().map(Self::Exit),
                Some(("wait", ms)) => ms.parse().ok().map(Self::Wait),
                _ => None,
            }
        }
    }

    impl std::fmt::Display for Instruction {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            match self {
                Self::Go => f.write_str("go"),
                Self::Exit(code) => write!(f, "exit {code}"),
                Self::Panic => f.write_str("panic"),
                Self::Wait(ms) => write!(f, "wait {ms}"),
            }
        }
    }

    static HARNESS: OnceLock<Option<Mutex<Channel>>> = OnceLock::new();
    static PARTIES: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

    /// Sets the pids that go with each point: incumbent, successor and outgoing process.
    pub fn parties(pids: [Option<u32>; 3]) {
        for (known, pid) in PARTIES.iter().zip(pids) {
            known.store(pid.unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// Reports a point, and waits until the harness lets this thread continue.
    pub fn reach(name: impl FnOnce() -> String) {
        let Some(harness) = HARNESS.get_or_init(find) else { return };
        let name = name();
        match ask(harness, &name) {
            Instruction::Go => {}
            Instruction::Exit(code) => std::process::exit(code),
            Instruction::Panic => panic!("told to panic at {name}"),
            Instruction::Wait(ms) => std::thread::sleep(Duration::from_millis(ms)),
        }
    }

    fn find() -> Option<Mutex<Channel>> {
        let path = std::env::var_os(VARIABLE)?;
        let channel = call(Path::new(&path)).ok()?;
        handoff_sys::own_table::keep(channel.as_fd());
        Some(Mutex::new(channel))
    }

    fn call(path: &Path) -> io::Result<Channel> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty())?;
        connect_path(&socket, path)?;
        Channel::from_fd(socket)
    }

    fn ask(harness: &Mutex<Channel>, name: &str) -> Instruction {
        let [incumbent, successor, outgoing] = [0, 1, 2].map(|at: usize| PARTIES[at].load(Ordering::Relaxed));
        let channel = harness.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answer = Vec::new();
        let asked = channel
            .send(format!("{name}\n{incumbent} {successor} {outgoing}").as_bytes(), &[])
            .and_then(|()| channel.recv(&mut answer));
        match asked {
            Ok(Some(packet)) => {
                let text = String::from_utf8_lossy(&answer[..packet.len]);
                Instruction::parse(&text).unwrap_or(Instruction::Go)
            }
            Ok(None) | Err(_) => Instruction::Go,
        }
    }
}

/// The environment variable that a child of this process needs to reach the harness too.
pub fn passed_on() -> Option<(std::ffi::OsString, std::ffi::OsString)> {
    #[cfg(feature = "active")]
    return Some((VARIABLE.into(), std::env::var_os(VARIABLE)?));
    #[cfg(not(feature = "active"))]
    None
}

/// The name of an enum value, and of the value in it: `ToIncumbent(HandoffId(…), Seal(Seal { … }))` is
/// `ToIncumbent.Seal`.
pub fn name(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    let before_texts = text.split('"').next().unwrap_or_default();
    let words = before_texts.split(|c: char| !c.is_alphanumeric() && c != '_');
    let mut names: Vec<&str> = words
        .filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()) && *word != "HandoffId")
        .collect();
    names.dedup();
    names.truncate(2);
    names.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff_protocol::ids::HandoffId;
    use handoff_protocol::message::{Seal, ToService};

    #[test]
    fn names_are_short_and_tell_values_apart() {
        let seal = ToService::Seal(Seal { lease_ms: 1, cut: false });
        assert_eq!(name(&seal), "Seal");
        assert_eq!(name(&Some((HandoffId::NIL, seal))), "Some.Seal");
        assert_eq!(name(&Err::<(), _>("Because It Is")), "Err");
    }
}
