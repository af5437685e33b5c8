//! The services that are tested, packaged as releases, and their service files.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use handoff::crash_test::Error;
use handoff_example_s3::stamp::{Fault, stamp};
use serde::Deserialize;
use tempfile::TempDir;

pub const ACCESS_KEY: &str = "crash-test-access-key";
pub const SECRET_KEY: &str = "crash-test-secret-key";

/// Everything that was built, and a directory for releases.
pub struct Services {
    dir: TempDir,
    /// A copy of this program: cargo may replace the one in the target directory during a run.
    pub program: PathBuf,
    s3_server: PathBuf,
    testee: PathBuf,
    plain: PathBuf,
}

/// A service that is ready to be tested.
pub struct Prepared {
    pub service_file: PathBuf,
    pub next: PathBuf,
    pub bad: PathBuf,
}

/// What cargo says about each thing it has built, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl Services {
    /// The services as they were built into `built`, a directory of cargo.
    pub fn of(built: &Path) -> Result<Self, Error> {
        let example = |name| built.join("examples").join(name);
        Self::new(built.join("s3-server"), example("testee"), example("plain"))
    }

    fn new(s3_server: PathBuf, testee: PathBuf, plain: PathBuf) -> Result<Self, Error> {
        let dir = tempfile::Builder::new().prefix("handoff-crash-releases-").tempdir()?;
        let program = dir.path().join("crash-tests");
        fs::copy("/proc/self/exe", &program)?;
        Ok(Self { dir, program, s3_server, testee, plain })
    }

    /// Builds the services with the cargo that runs this program, with crash points in them. Blocks for as long as that takes.
    pub fn build() -> Result<Self, Error> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(&cargo);
        command
            .args(["build", "--quiet", "--message-format=json-render-diagnostics"])
            .args(["--package", "handoff-supervisor", "--package", "handoff-example-s3"])
            // Fresh already, but it is what gives the others their crash points.
            .args(["--package", "handoff-crash-tests", "--bins", "--example", "testee", "--example", "plain"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit());
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        let output =
            command.output().map_err(|error| format!("cannot run {}: {error}", cargo.to_string_lossy()))?;
        if !output.status.success() {
            return Err(format!("the build failed: cargo build ended with {}", output.status).into());
        }
        let find = |name: &str| {
            let lines = output.stdout.split(|byte| *byte == b'\n');
            let messages = lines.filter_map(|line| serde_json::from_slice::<Message>(line).ok());
            let mut named =
                messages.filter(|message| message.target.as_ref().is_some_and(|it| it.name == name));
            named.find_map(|message| message.executable).ok_or(format!("cargo has built no {name}"))
        };
        Self::new(find("s3-server")?, find("testee")?, find("plain")?)
    }

    /// The S3 server.
    pub fn s3(&self) -> Result<Prepared, Error> {
        let dir = self.dir.path().join("s3");
        fs::create_dir(&dir)?;
        let release = |version: &str, fault| {
            let path = dir.join(format!("s3-server-{version}"));
            stamp(&self.s3_server, &path, version, fault).map(|()| path)
        };
        let first = release("1.0.0", None)?;
        let text = format!(
            "binary = {first:?}\n\
             args = [\"--access-key\", {ACCESS_KEY:?}, \"--secret-key\", {SECRET_KEY:?}, \"{{dir}}/data\"]\n\
             store = false\n\
             deadline = \"20s\"\n\
             drain_grace = \"2s\"\n\
             \n\
             [listen]\n\
             s3 = \"127.0.0.1:9000\"\n"
        );
        let service_file = dir.join("s3.toml");
        fs::write(&service_file, text)?;
        let next = release("1.1.0", None)?;
        let bad = release("1.2.0", Some(Fault::Unhealthy))?;
        Ok(Prepared { service_file, next, bad })
    }

    /// The service of the end-to-end tests, in this mode.
    pub fn lines(&self, name: &str, mode: &str) -> Result<Prepared, Error> {
        let keys = format!("args = [\"{{dir}}/data\"]\nmode = {mode:?}\n");
        self.of_tests(name, &self.testee, "unhealthy-after-begin", &keys)
    }

    /// An unmodified program, behind this adapter, in this mode.
    pub fn plain(&self, name: &str, adapter: &str, mode: &str) -> Result<Prepared, Error> {
        let shared = if mode == "overlap" { "+" } else { "" };
        let keys = format!(
            "args = [\"{shared}{{dir}}/data\", \"{{listen.main}}\"]\nmode = {mode:?}\nadapter = {adapter:?}\n"
        );
        self.of_tests(name, &self.plain, "exit-slowly", &keys)
    }

    fn of_tests(&self, name: &str, program: &Path, fault: &str, keys: &str) -> Result<Prepared, Error> {
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir)?;
        let release = |version: &str, fault: &str| {
            let path = dir.join(format!("{name}-{version}"));
            package(program, &path, &format!("\ntestee version={version} fault={fault}\n")).map(|()| path)
        };
        let first = release("1", "")?;
        let text = format!(
            "binary = {first:?}\n\
             {keys}\
             store = false\n\
             deadline = \"20s\"\n\
             drain_grace = \"2s\"\n\
             \n\
             [listen]\n\
             main = \"127.0.0.1:9000\"\n"
        );
        let service_file = dir.join(format!("{name}.toml"));
        fs::write(&service_file, text)?;
        let (next, bad) = (release("2", "")?, release("3", fault)?);
        Ok(Prepared { service_file, next, bad })
    }
}

fn package(program: &Path, release: &Path, stamp: &str) -> io::Result<()> {
    let mut image = fs::read(program)?;
    image.extend_from_slice(stamp.as_bytes());
    fs::write(release, image)?;
    fs::set_permissions(release, PermissionsExt::from_mode(0o755))
}
