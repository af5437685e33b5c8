//! The doctor tests a program's reaction to the stop signal while a request is in progress.

use std::path::Path;

use super::{examine, of, rig, write};
use crate::support::free_address;

/// Answers after a short time, and reacts to SIGTERM as its argument says. It also listens at a port chosen by the
/// kernel.
const PYTHON: &str = r#"
import http.server, os, signal, socket, sys, threading
from time import sleep as take
host, port = sys.argv[1].split(":")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        take(0.2)
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_): pass
def finish(*_):
    threading.Thread(target=server.shutdown).start()
other = socket.create_server((host, 0))
http.server.ThreadingHTTPServer.daemon_threads = False
server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
if sys.argv[2] == "finishes":
    signal.signal(signal.SIGTERM, finish)
elif sys.argv[2] == "exits":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server.serve_forever(poll_interval=0.01)
# Some servers do this: they finish the requests, and then end as if they had no handler.
server.server_close()
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.kill(os.getpid(), signal.SIGTERM)
take(10)
"#;

#[test]
fn whether_a_request_is_finished_is_seen_and_not_guessed_from_the_exit_code() {
    std::thread::scope(|scope| {
        for (does, told) in [
            ("finishes", "ends it in order"),
            ("exits", "a request that was under way was cut"),
            ("dies", "ends it at once, whatever it is doing"),
        ] {
            scope.spawn(move || {
                let rig = rig();
                let address = free_address().to_string();
                let more = "adapter = \"inject\"\nmode = \"overlap\"";
                write(&rig, Path::new("/usr/bin/python3"), &["-c", PYTHON, &address, does], more, &address);
                let (said, _) = examine(&rig, "5s", &[]);
                assert_eq!(of(&said, "inject").0, "works", "{does}: {said:#}");
                let remarks = said["remarks"].to_string();
                assert!(remarks.contains(told), "{does}: {remarks}");
                assert!(!remarks.contains("collide"), "the kernel chooses another port each time: {remarks}");
            });
        }
    });
}

/// The end of the script determines how the shell reacts to the signal, before and after the server.
#[test]
fn a_wrapper_that_swallows_the_stop_signal_is_named_with_the_line_to_write() {
    std::thread::scope(|scope| {
        for (shell, mode, told) in [
            ("", "", "keep stop_mode = \\\"mixed\\\", with which python3 gets it"),
            (
                "",
                "stop_mode = \"main\"",
                "sh gets the stop signal and swallows it: write stop_mode = \\\"mixed\\\"",
            ),
            (
                "trap : TERM; ",
                "stop_mode = \"main\"",
                "so sh must pass it on: if it does not, write stop_mode",
            ),
        ] {
            scope.spawn(move || {
                let rig = rig();
                let address = free_address().to_string();
                let more = format!("adapter = \"inject\"\nmode = \"overlap\"\n{mode}");
                let script = format!("{shell}/usr/bin/python3 -c \"$0\" {address} finishes; exit $?");
                write(&rig, Path::new("/bin/sh"), &["-c", &script, PYTHON], &more, &address);
                let (said, _) = examine(&rig, "5s", &[]);
                assert_eq!(of(&said, "inject").0, "works", "{said:#}");
                let remarks = said["remarks"].to_string();
                assert!(
                    remarks.contains("sh, which is started first, is not the server: python3 is"),
                    "{remarks}"
                );
                assert!(remarks.contains(told), "{remarks}");
            });
        }
    });
}

#[test]
fn the_advice_knows_all_that_can_be_waited_for() {
    std::thread::scope(|scope| {
        for (does, more, told) in [
            (
                "exits",
                "drain = \"long-requests\"",
                "do not set drain = \\\"long-requests\\\", as the service file does",
            ),
            (
                "exits",
                "",
                "if it can tell its clients to move on, write what makes it do so: drain_signal or drain_command",
            ),
            ("finishes", "drain = \"requests\"", "drain = \\\"long-requests\\\" makes upgrades quicker"),
            ("finishes", "drain = \"nothing\"\ndrain_command = [\"/bin/true\"]", "have no time to work"),
            ("finishes", "drain_signal = \"SIGUSR1\"", "the signal of drain_signal would end it"),
        ] {
            scope.spawn(move || {
                let rig = rig();
                let address = free_address().to_string();
                let more = format!("adapter = \"inject\"\nmode = \"overlap\"\n{more}");
                write(&rig, Path::new("/usr/bin/python3"), &["-c", PYTHON, &address, does], &more, &address);
                let (said, _) = examine(&rig, "5s", &[]);
                let remarks = said["remarks"].to_string();
                assert!(remarks.contains(told), "{does} {more}: {remarks}");
            });
        }
    });
}
