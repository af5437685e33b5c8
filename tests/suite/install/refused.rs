//! A version that may not run is refused before it runs: exit code 6, a cause, an entry in the history, and version 1
//! serves on.

use std::fs;
use std::io::{Cursor, Write};
use std::path::PathBuf;

use handoff::control::api::{History, Request, Response};
use handoff::history::{Ending, Operation};
use minisign::KeyPair;

use super::StoredService;
use crate::support::{service, version};

fn packed(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    archive.append_data(&mut header, name, content).unwrap();
    archive.into_inner().unwrap().finish().unwrap()
}

impl StoredService {
    #[track_caller]
    fn refuses(&self, path: PathBuf, more: &[&str], why: &str) {
        let ran = self.installed(&path, more);
        assert_eq!(ran.code, Some(6), "{ran:?}");
        assert!(ran.said.contains(why), "not {why:?}: {ran:?}");
        self.is_untouched();
    }
}

#[test]
fn what_cannot_run_is_refused_with_its_cause() {
    let stored = StoredService::serve("");
    let second = fs::read(stored.rig.release("2", "")).unwrap();
    let changed = |at: usize, byte: u8| {
        let mut content = second.clone();
        content[at] = byte;
        content
    };
    let write = |name: &str, content: &[u8], mode| stored.write(name, content, mode);
    stored.refuses(write("page", b"<html>Not Found</html>", 0o755), &[], "it is not a program");
    stored.refuses(write("plain", &second, 0o644), &[], "not executable");
    stored.refuses(write("open", &second, 0o777), &[], "is world-writable");
    stored.refuses(write("cut", &second[..second.len() / 2], 0o755), &[], "cut off");
    stored.refuses(write("bits", &changed(4, 1), 0o755), &[], "32 bits");
    // e_machine of elf(5): EM_SPARCV9 is not a supported machine.
    stored.refuses(write("sparc", &changed(18, 43), 0o755), &[], "made for another machine");
    stored.refuses(write("script", b"#!/no/such/interpreter\n", 0o755), &[], "/no/such/interpreter");
    stored.refuses(stored.rig.path("nothing"), &[], "does not exist");
    stored.refuses(stored.rig.path("data"), &[], "which file of this directory");

    stored.refuses(
        write("crlf", b"#!/bin/sh\r\nexit 0\r\n", 0o755),
        &[],
        "its #! line ends with a carriage return. Convert the file (sed -i 's/\\r$//')",
    );
    let program = write("program", &second, 0o755);
    stored.refuses(
        program,
        &["--member", "testee"],
        "it is no archive and no directory, so it has no member testee",
    );

    let archive = packed("dist/testee", &second);
    stored.refuses(write("cut.tar.gz", &archive[..archive.len() / 2], 0o644), &[], "truncated");
    let whole = write("whole.tar.gz", &archive, 0o644);
    stored.refuses(whole.clone(), &["--member", "server"], "no member server; its programs are: dist/testee");
    stored.refuses(whole, &["--sha256", &"0".repeat(64)], "it should be 0000");

    let entries =
        match stored.rig.call(Request::History(History { service: Some(service("s")), limit: None })) {
            Ok(Response::History(entries)) => entries,
            other => panic!("{other:?}"),
        };
    let refusals = entries.iter().filter(|it| it.outcome == Ending::Rejected);
    assert!(refusals.clone().all(|it| it.operation == Operation::Install && it.reason.is_some()));
    assert_eq!(refusals.count(), 14);
    let last = stored.run(&["history", "s", "--last"]).said;
    assert!(last.contains("it should be 0000"), "{last}");
}

#[test]
fn a_member_of_an_archive_is_verified_as_its_archive() {
    let stored = StoredService::serve("[update]\nmember = \"testee\"\n");
    let second = fs::read(stored.rig.release("2", "")).unwrap();
    let path = stored.write("s.tar.gz", packed("dist/testee", &second), 0o644);
    let other = stored.write("SHA256SUMS", format!("{}  s.tar.gz\n", "0".repeat(64)), 0o644);
    stored.refuses(path.clone(), &["--sha256sums", other.to_str().unwrap()], "SHA256SUMS it should be 0000");
    let sum = handoff::store::Id::of(fs::File::open(&path).unwrap()).unwrap();
    let list = stored.write("SHA256SUMS", format!("{sum}  s.tar.gz\n"), 0o644);
    let ran = stored.installed(&path, &["--sha256sums", list.to_str().unwrap()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(version(stored.address), "2");
    let again = stored.installed(&path, &[]);
    assert!(again.said.contains("already"), "{again:?}");
}

#[test]
fn where_a_signature_is_required_nothing_runs_without_one() {
    let key = KeyPair::generate_unencrypted_keypair().unwrap();
    let sign = |content: &[u8], with: &KeyPair| {
        minisign::sign(None, &with.sk, Cursor::new(content), None, None).unwrap().into_string()
    };
    let rig = super::Rig::new();
    let first = rig.release("1", "");
    let tables = format!(
        "store = true\n[update]\nrequire = \"signature\"\nminisign_keys = [{:?}]\n",
        key.pk.to_base64()
    );
    let address = rig.write_service("s", &first, &tables);
    let stored = StoredService { rig, address };
    // A first start is no exception. The signature may be next to the file.
    let refused = stored.run(&["start", "s"]);
    assert_eq!(refused.code, Some(6), "{refused:?}");
    assert!(refused.said.contains("requires a signature"), "{refused:?}");
    stored.write("testee-1.minisig", sign(&fs::read(&first).unwrap(), &key), 0o644);
    assert_eq!(stored.run(&["start", "s"]).code, Some(0));

    let second = stored.rig.release("2", "");
    let content = fs::read(&second).unwrap();
    stored.refuses(second.clone(), &[], "requires a signature");
    let stranger = KeyPair::generate_unencrypted_keypair().unwrap();
    for (text, why) in [
        (sign(&content, &stranger), "none of the minisign_keys"),
        (sign(b"another content", &key), "is not its signature"),
        ("text".to_owned(), "not a minisign signature"),
    ] {
        let path = stored.write("signature", text, 0o644);
        stored.refuses(second.clone(), &["--minisig", path.to_str().unwrap()], why);
    }
    let path = stored.write("signature", sign(&content, &key), 0o644);
    let upgraded = stored.run(&[
        "upgrade",
        "s",
        "--binary",
        second.to_str().unwrap(),
        "--minisig",
        path.to_str().unwrap(),
    ]);
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    assert_eq!(version(stored.address), "2");
}

#[test]
fn a_binary_that_is_exchanged_all_the_time_runs_as_a_whole_or_not_at_all() {
    let stored = StoredService::serve("");
    let releases = ["2", "3"].map(|version| fs::read(stored.rig.release(version, "")).unwrap());
    let path = stored.write("server", &releases[0], 0o755);
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (stored, releases) = (&stored, &releases);
        scope.spawn(move || {
            for content in releases.iter().cycle() {
                let beside = stored.write("beside", content, 0o755);
                fs::rename(beside, stored.rig.path("server")).unwrap();
                if stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected) {
                    return;
                }
            }
        });
        for _ in 0..5 {
            let ran = stored.installed(&path, &[]);
            assert!(matches!(ran.code, Some(0 | 6)), "{ran:?}");
            assert!(ran.code == Some(0) || ran.said.contains("written or replaced"), "{ran:?}");
            assert!(["1", "2", "3"].contains(&version(stored.address).as_str()));
        }
        drop(stop);
    });
    std::io::stdout().flush().unwrap();
    assert_eq!(stored.leftovers(), [] as [PathBuf; 0]);
}

#[test]
fn a_path_with_nothing_to_run_is_refused_wherever_versions_run() {
    for store in ["store = true\n", "store = false\n"] {
        let stored = StoredService::serve_with(store);
        let plain = stored.write("plain", "#!/bin/sh\n", 0o644);
        for (path, why) in [(stored.rig.path("none"), "does not exist"), (plain, "not executable")] {
            let ran = stored.run(&["upgrade", "s", "--binary", path.to_str().unwrap()]);
            assert_eq!(ran.code, Some(6), "{store}: {ran:?}");
            assert!(ran.said.contains(why), "{store}: {ran:?}");
            assert_eq!(version(stored.address), "1");
        }
    }
}
