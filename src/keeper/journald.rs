//! Lines of a log for journald, in its native protocol: one datagram of `FIELD=value` lines each. See
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL>.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::LOG_PREFIX;
use super::log::note;
use crate::log_record::{Record, parse, stream_name};

const SOCKET: &str = "/run/systemd/journal/socket";
/// How long a datagram waits for a journald that does not read.
const TIMEOUT: Duration = Duration::from_millis(100);
/// After a failure, lines are not sent for this long. So a journald that hangs costs little.
const PAUSE: Duration = Duration::from_secs(1);
/// The priority of syslog(3) "informational": a program says nothing about the importance of its lines.
const PRIORITY: u8 = 6;

/// The connection to journald.
#[derive(Debug)]
pub(super) struct Journald {
    path: PathBuf,
    socket: Option<UnixDatagram>,
    paused_until: Option<Instant>,
    /// Lines that it did not get since it was last reached.
    missed: u64,
}

impl Journald {
    pub(super) fn new() -> Self {
        Self { path: SOCKET.into(), socket: None, paused_until: None, missed: 0 }
    }

    /// Sends lines. Returns a line for the log when journald cannot be reached, once, and when it can be again.
    pub(super) fn send_all(&mut self, lines: &[u8]) -> Option<String> {
        let mut news = None;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let Some(record) = parse(line) else { continue };
            if self.paused_until.is_some_and(|until| Instant::now() < until) {
                self.missed += 1;
                continue;
            }
            match self.send(&record) {
                Ok(()) if self.missed > 0 => {
                    let text = format!(
                        "{LOG_PREFIX}journald is reached again; {} lines are missing there",
                        self.missed
                    );
                    self.missed = 0;
                    news = Some(note(record.service, &text));
                }
                Ok(()) => {}
                Err(error) => {
                    if self.missed == 0 {
                        let path = self.path.display();
                        let text = format!(
                            "{LOG_PREFIX}journald does not get the lines from here on: {path}: {error}"
                        );
                        news = Some(note(record.service, &text));
                    }
                    self.missed += 1;
                    self.paused_until = Some(Instant::now() + PAUSE);
                }
            }
        }
        news
    }

    fn send(&mut self, record: &Record<'_>) -> io::Result<()> {
        let message = datagram(record);
        if let Some(socket) = &self.socket
            && socket.send(&message).is_ok()
        {
            return Ok(());
        }
        // It may have been restarted.
        self.socket = None;
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        socket.connect(&self.path)?;
        socket.send(&message)?;
        self.socket = Some(socket);
        Ok(())
    }
}

fn datagram(record: &Record<'_>) -> Vec<u8> {
    let mut message = b"MESSAGE=".to_vec();
    message.extend_from_slice(record.text);
    let service = record.service;
    // A write to memory does not fail.
    let _ =
        write!(message, "\nPRIORITY={PRIORITY}\nSYSLOG_IDENTIFIER={service}\nHANDOFF_SERVICE={service}\n");
    if let Some(pid) = record.pid {
        let _ = writeln!(message, "SYSLOG_PID={pid}");
    }
    if let Some(generation) = record.generation {
        let _ = writeln!(message, "HANDOFF_GENERATION={generation}");
    }
    if record.stream.is_some() {
        let _ = writeln!(message, "HANDOFF_STREAM={}", stream_name(record.stream));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"2026-12-01T11:40:12.123Z web 3 4711 err | it = here\n";

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_line_is_a_datagram_with_its_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut journald = Journald { path, ..Journald::new() };
        assert_eq!(journald.send_all(&[LINE, b"no record\n"].concat()), None);
        let expected = "MESSAGE=it = here\nPRIORITY=6\nSYSLOG_IDENTIFIER=web\nHANDOFF_SERVICE=web\nSYSLOG_PID=4711\n\
            HANDOFF_GENERATION=3\nHANDOFF_STREAM=err\n";
        assert_eq!(received(&socket), expected);
    }

    #[test]
    fn a_missing_journald_is_reported_once_and_a_restarted_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut journald = Journald { path: path.clone(), ..Journald::new() };
        let told = journald.send_all(LINE).unwrap();
        assert!(told.contains(" web - - - | handoff: journald does not get the lines"), "{told}");
        assert!(told.contains("No such file"), "{told}");
        assert_eq!(journald.send_all(&[LINE, LINE].concat()), None);
        for _ in 0..2 {
            let _ = std::fs::remove_file(&path);
            let socket = UnixDatagram::bind(&path).unwrap();
            journald.paused_until = None;
            let told = journald.send_all(LINE);
            assert!(received(&socket).starts_with("MESSAGE=it = here\n"));
            match told {
                Some(told) => assert!(told.contains("is reached again; 3 lines are missing there"), "{told}"),
                None => assert!(journald.missed == 0),
            }
        }
    }

    #[test]
    fn one_that_does_not_read_costs_one_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _socket = UnixDatagram::bind(&path).unwrap();
        let mut journald = Journald { path, ..Journald::new() };
        let began = Instant::now();
        let told = journald.send_all(&LINE.repeat(5_000)).unwrap();
        assert!(told.contains("journald does not get the lines"), "{told}");
        assert!(began.elapsed() < 20 * TIMEOUT, "{:?}", began.elapsed());
        assert!(journald.missed > 1_000, "{}", journald.missed);
    }
}
