//! The signals that a user can send to the program of a service.

use crate::sys::process::Signal;

/// Signals to which programs give a meaning, and signals that end them. The shim of a program passes each of these
/// on. Others, such as SIGSEGV, are for the process that gets them.
const SIGNALS: [(&str, Signal); 8] = [
    ("HUP", Signal::SIGHUP),
    ("INT", Signal::SIGINT),
    ("QUIT", Signal::SIGQUIT),
    ("USR1", Signal::SIGUSR1),
    ("USR2", Signal::SIGUSR2),
    ("WINCH", Signal::SIGWINCH),
    ("TERM", Signal::SIGTERM),
    ("KILL", Signal::SIGKILL),
];

/// Reads a signal: its name with or without `SIG`, in upper or lower case, or its number.
pub(crate) fn signal_of(text: &str) -> Option<Signal> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let found = SIGNALS.iter().find(|(known, signal)| *known == name || (*signal as i32).to_string() == name);
    found.map(|(_, signal)| *signal)
}

/// The names, for messages.
pub(crate) fn signal_names() -> String {
    SIGNALS.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_its_name_and_its_number() {
        for text in ["HUP", "hup", "SIGHUP", "sighup", "1"] {
            assert_eq!(signal_of(text), Some(Signal::SIGHUP), "{text}");
        }
        for text in ["", "SIG", "SEGV", "11", "STOP", "HUP "] {
            assert_eq!(signal_of(text), None, "{text}");
        }
    }
}
