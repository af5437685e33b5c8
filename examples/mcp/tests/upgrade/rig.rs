//! A daemon in its own directory, with the MCP server as its service `mcp`.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use handoff_example_mcp::stamp::{Fault, stamp};
use tempfile::TempDir;

pub const LIMIT: Duration = Duration::from_secs(30);

pub struct Rig {
    dir: TempDir,
    daemon: Child,
    pub address: SocketAddr,
}

impl Rig {
    /// Starts the server as release 1.0.0.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("handoff-mcp-").tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/services")).unwrap();
        let binary = release(dir.path(), "1.0.0", None);
        let text = format!(
            "binary = {binary:?}\nstore = false\nmode = \"overlap\"\nlease = \"2s\"\n[listen]\nmcp = \"{address}\"\n"
        );
        std::fs::write(dir.path().join("etc/services/mcp.toml"), text).unwrap();
        let log = std::fs::File::create(dir.path().join("daemon.log")).unwrap();
        let daemon = command(dir.path()).arg("daemon").stderr(log).stdin(Stdio::null()).spawn().unwrap();
        let rig = Self { dir, daemon, address };
        let until = Instant::now() + LIMIT;
        while !String::from_utf8_lossy(&rig.run(&["status", "mcp"]).stdout).contains("serving") {
            assert!(Instant::now() < until, "it does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
        rig
    }

    fn run(&self, args: &[&str]) -> Output {
        command(self.dir.path()).args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Blocks until the old process has left. Returns the exit code.
    pub fn upgrade(&self, version: &str, fault: Option<Fault>) -> Option<i32> {
        let binary = release(self.dir.path(), version, fault);
        let output = self.run(&["upgrade", "mcp", "--binary", &binary.to_string_lossy()]);
        println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        output.status.code()
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["daemon.log", "var/services/mcp/log/current"] {
                eprintln!(
                    "--- {log}\n{}",
                    std::fs::read_to_string(self.dir.path().join(log)).unwrap_or_default()
                );
            }
        }
        let pid = nix::unistd::Pid::from_raw(self.daemon.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.daemon.wait();
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(handoff());
    command
        .env("HANDOFF_CONFIG_DIR", dir.join("etc"))
        .env("HANDOFF_STATE_DIR", dir.join("var"))
        .env("HANDOFF_RUNTIME_DIR", dir.join("run"));
    command
}

fn release(dir: &Path, version: &str, fault: Option<Fault>) -> PathBuf {
    let path = dir.join(format!("mcp-server-{version}"));
    stamp(env!("CARGO_BIN_EXE_mcp-server").as_ref(), &path, version, fault).unwrap();
    path
}

/// The daemon belongs to another package: it is built here if necessary. Builds all packages, so that their features
/// are those of `cargo test --workspace` and nothing is compiled twice.
fn handoff() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--workspace", "--bins", "--examples"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "building the daemon failed");
        Path::new(env!("CARGO_BIN_EXE_mcp-server")).with_file_name("handoff")
    })
}
