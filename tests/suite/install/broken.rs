//! The disk is full, or the daemon dies, in the middle of an import.

use std::fs;
use std::path::PathBuf;

use handoff::control::Client;
use handoff::control::api::{Claims, Install, Request};
use handoff::sys::limits::{Resource, UNLIMITED, set_limits};
use handoff::sys::process::Signal;

use super::StoredService;
use crate::support::{self, service, version, wait_for};

/// Padding that makes an import take some time.
const PADDING_BYTES: usize = 96 << 20;

impl StoredService {
    /// A large release.
    fn large(&self, version: &str, fault: &str) -> PathBuf {
        let path = self.rig.release(version, fault);
        let content = fs::read(&path).unwrap();
        let stamp = content.len() - content.iter().rev().skip(1).position(|byte| *byte == b'\n').unwrap() - 2;
        let padding: Vec<u8> = (0..PADDING_BYTES as u32 / 4).flat_map(u32::to_le_bytes).collect();
        self.write("large", [&content[..stamp], &padding, &content[stamp..]].concat(), 0o755)
    }

    fn limit_files(&self, bytes: Option<u64>) {
        let daemon = self.rig.daemon.as_ref().unwrap().id();
        set_limits(daemon, Resource::RLIMIT_FSIZE, bytes.unwrap_or(UNLIMITED), UNLIMITED).unwrap();
    }
}

#[test]
fn a_disk_that_is_full_in_the_middle_of_the_copy_costs_nothing() {
    let stored = StoredService::serve("");
    let second = stored.rig.release("2", "");
    let archive = stored.rig.path("s.tar.gz");
    let packed = std::process::Command::new("tar")
        .args(["-C", stored.rig.root.path().to_str().unwrap(), "-czf", archive.to_str().unwrap(), "testee-2"])
        .status();
    assert!(packed.unwrap().success());
    stored.limit_files(Some(100_000));
    for path in [&second, &archive] {
        let ran = stored.installed(path, &[]);
        assert_eq!(ran.code, Some(6), "{ran:?}");
        assert!(ran.said.contains("File too large") && ran.said.contains("Free space"), "{ran:?}");
        stored.is_untouched();
    }
    // As large as the archive, and smaller than its content.
    stored.limit_files(Some(fs::metadata(&archive).unwrap().len()));
    let ran = stored.installed(&archive, &[]);
    assert_eq!(ran.code, Some(6), "{ran:?}");
    stored.is_untouched();
    stored.limit_files(None);
    assert_eq!(stored.installed(&archive, &[]).code, Some(0));
    assert_eq!(version(stored.address), "2");
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_of_an_import_leaves_no_half_version() {
    let mut stored = StoredService::serve("");
    // On a busy machine the daemon may have reached a later phase when it is killed. The new process must not serve by
    // then.
    let path = stored.large("2", "slow-start-2000");
    for phase in ["importing", "verifying", "storing", "greeting"] {
        let mut client = Client::connect(&stored.rig.path("run/control.sock")).unwrap();
        let mut daemon = stored.rig.daemon.take().unwrap();
        let (claims, path) = (Claims::default(), path.clone());
        let request = Request::Install(Install { service: service("s"), path, claims, version: None });
        let ended = client.call(&request, &mut |progress| {
            if progress.phase == phase {
                daemon.kill().unwrap();
            }
        });
        assert!(ended.is_err(), "it was killed in {phase}: {ended:?}");
        daemon.wait().unwrap();
        stored.rig.start_daemon();
        wait_for("the service to be at rest", || {
            (stored.rig.status("s").state == handoff::control::api::State::Serving).then_some(())
        });
        assert_eq!(version(stored.address), "1", "killed in {phase}");
        wait_for("the leftovers to be gone", || stored.leftovers().is_empty().then_some(()));
        for version in stored.versions() {
            assert_eq!(
                handoff::store::Id::of(fs::File::open(&version.stored).unwrap()).unwrap().to_string(),
                version.sha256,
                "every version is whole: killed in {phase}"
            );
        }
    }
    let ran = stored.installed(&path, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(version(stored.address), "2");
}

#[test]
fn a_daemon_that_is_killed_in_its_first_import_starts_the_service_later() {
    let rig = super::Rig::new();
    let address = rig.write_service("s", &rig.release("1", ""), "store = true\n");
    let mut stored = StoredService { rig, address };
    let large = stored.large("1", "");
    let file = stored.rig.path("config/services/s.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("autostart = false", "autostart = true");
    let text = text.replace(stored.rig.path("testee-1").to_str().unwrap(), large.to_str().unwrap());
    fs::write(&file, text).unwrap();
    stored.rig.stop_daemon();
    stored.rig.start_daemon();
    let daemon = stored.rig.daemon.take().unwrap();
    wait_for("the import to begin", || {
        let began = !stored.leftovers().is_empty() || !stored.versions().is_empty();
        began.then_some(())
    });
    support::signal(daemon.id(), Signal::SIGKILL);
    let mut daemon = daemon;
    daemon.wait().unwrap();
    stored.rig.start_daemon();
    wait_for("it to serve", || support::ask(stored.address, "version").ok());
    wait_for("the leftovers to be gone", || stored.leftovers().is_empty().then_some(()));
    assert_eq!(stored.versions().len(), 1);
}
