//! Imports of every kind, and of everything that must be refused. Each refusal leaves the store unchanged.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{Cursor, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use zip::write::SimpleFileOptions;

use super::*;

/// A store, and a directory for given files.
struct StoreFixture {
    root: tempfile::TempDir,
    store: Store,
}

impl StoreFixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("state/versions")).unwrap();
        Self { root, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn import(&self, path: &Path) -> Result<Imported, String> {
        self.import_as(&asked(path))
    }

    /// Imports a file. A refusal must leave nothing behind.
    fn import_as(&self, import: &Import) -> Result<Imported, String> {
        let before = self.store.versions();
        let imported = self.store.import(import, &mut |_| ());
        assert_eq!(self.leftovers(), 0);
        let reopened = Store::open(&self.path("state/versions")).unwrap().versions();
        assert_eq!(reopened, self.store.versions(), "the disk has all metadata");
        if imported.is_err() {
            assert_eq!(self.store.versions(), before);
        }
        imported.map_err(|error| error.to_string())
    }

    fn leftovers(&self) -> usize {
        let entries = fs::read_dir(self.path("state/versions")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(INCOMING)).count()
    }
}

fn asked(path: &Path) -> Import {
    Import { path: path.to_owned(), max_size_bytes: 1 << 20, ..Import::default() }
}

const SCRIPT: &str = "#!/bin/sh\necho s3 $1\n";

/// A member: its path, its mode, its content; a link if the mode is 0.
type Member<'a> = (&'a str, u32, &'a str);

fn tar_of(members: &[Member]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_mtime(0);
        // Raw bytes, because no honest program writes this.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        match mode {
            0 => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                header.set_size(0);
                header.set_cksum();
                tar.append(&header, std::io::empty()).unwrap();
            }
            _ => {
                header.set_size(content.len() as u64);
                header.set_cksum();
                tar.append(&header, content.as_bytes()).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

fn gz(content: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(content).unwrap();
    packed.finish().unwrap()
}

fn xz(content: &[u8]) -> Vec<u8> {
    let mut packed = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    packed.write_all(content).unwrap();
    packed.finish().unwrap()
}

fn zip_of(members: &[Member]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (path, mode, content) in members {
        match mode {
            0 => zip.add_symlink(*path, *content, SimpleFileOptions::default()).unwrap(),
            _ => {
                let options = SimpleFileOptions::default().unix_permissions(*mode);
                zip.start_file(*path, options).unwrap();
                zip.write_all(content.as_bytes()).unwrap();
            }
        }
    }
    zip.finish().unwrap().into_inner()
}

/// The same members in each format.
fn archives(members: &[Member]) -> [(&'static str, Vec<u8>); 3] {
    let tar = tar_of(members);
    [("a.tar.gz", gz(&tar)), ("a.tar.xz", xz(&tar)), ("a.zip", zip_of(members))]
}

#[test]
fn what_is_called_off_leaves_nothing() {
    let place = StoreFixture::new();
    let files = archives(&[("bin/s3", 0o755, SCRIPT)]);
    let archives = files.iter().map(|(name, content)| (place.write(name, content, 0o644), true));
    let program = place.write("s3", SCRIPT, 0o755);
    let tree = place.write("tree/bin/s3", SCRIPT, 0o755).ancestors().nth(2).unwrap().to_owned();
    for (path, tree) in archives.chain([(program, false), (tree, true)]) {
        let import = Import { member: tree.then(|| "bin/s3".to_owned()), tree, ..asked(&path) };
        for at in [ImportStep::Copying, ImportStep::Verifying, ImportStep::Storing] {
            import.called_off.store(false, Ordering::Relaxed);
            let step = &mut |step| _ = import.called_off.fetch_or(step == at, Ordering::Relaxed);
            let error = place.store.import(&import, step).unwrap_err().to_string();
            assert!(error.contains("called off"), "{path:?} {at:?}: {error}");
            assert_eq!((place.leftovers(), place.store.versions().len()), (0, 0), "{path:?} {at:?}");
        }
    }
}

#[test]
fn a_program_comes_in_once_whatever_its_path() {
    let place = StoreFixture::new();
    let path = place.write("s3", SCRIPT, 0o755);
    let first = place
        .import_as(&Import { version_command: vec!["{binary}".into(), "1.2".into()], ..asked(&path) })
        .unwrap();
    assert_eq!(first.version.metadata.version.as_deref(), Some("s3 1.2"));
    assert_eq!(first.version.metadata.id, Id::of(SCRIPT.as_bytes()).unwrap());
    assert!(first.path.ends_with("files/s3") && !first.was_there);
    assert_eq!(fs::metadata(&first.path).unwrap().mode() & 0o7777, 0o555);
    assert_eq!(place.store.version_at(&first.path), Some(first.version.clone()));

    let again = place.import(&path).unwrap();
    assert!(again.was_there && again.path == first.path);
    let copied = place.write("s3-copy", SCRIPT, 0o755);
    let again = place.import(&copied).unwrap();
    assert!(again.was_there && again.path == first.path);
    assert_eq!(again.version.usage.source.unwrap().path, copied);
    // Changes of the given path have no effect.
    fs::write(&path, "#!/bin/sh\nexit 1\n").unwrap();
    assert_eq!(fs::read_to_string(&first.path).unwrap(), SCRIPT);
    assert!(!place.import(&path).unwrap().was_there);
    assert_eq!(place.store.versions().len(), 2);
}

#[test]
fn a_member_is_found_in_each_form_of_archive() {
    let place = StoreFixture::new();
    let members = [("s3-1.0/README", 0o644, "text"), ("s3-1.0/bin/s3", 0o755, SCRIPT)];
    for (name, content) in archives(&members) {
        let path = place.write(name, &content, 0o644);
        for member in [None, Some("s3"), Some("bin/s3"), Some("s3-1.0/bin/s3")] {
            let import = Import { member: member.map(str::to_owned), ..asked(&path) };
            let imported = place.import_as(&import).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(fs::read_to_string(&imported.path).unwrap(), SCRIPT);
        }
        for (member, why) in
            [("s4", "no member s4; its programs are: s3-1.0/bin/s3"), ("README", "README has no execute bit")]
        {
            let import = Import { member: Some(member.to_owned()), ..asked(&path) };
            assert!(place.import_as(&import).unwrap_err().contains(why), "{name}");
        }
    }
    assert_eq!(place.store.versions().len(), 1, "the same content is one version");
}

#[test]
fn a_whole_archive_is_the_same_tree_in_each_form_and_as_a_directory() {
    let place = StoreFixture::new();
    let members = [("bin/s3", 0o755, SCRIPT), ("lib/data", 0o644, "data"), ("s3", 0, "bin/s3")];
    let mut ids = BTreeSet::new();
    for (name, content) in archives(&members) {
        let path = place.write(name, &content, 0o644);
        let import = Import { member: Some("bin/s3".into()), tree: true, ..asked(&path) };
        let imported = place.import_as(&import).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(imported.version.metadata.kind, VersionKind::Tree);
        assert_eq!(fs::read_to_string(imported.path.with_file_name("../lib/data")).unwrap(), "data");
        ids.insert(imported.version.metadata.id);
    }
    place.write("dist/bin/s3", SCRIPT, 0o755);
    place.write("dist/lib/data", "data", 0o600);
    symlink("bin/s3", place.path("dist/s3")).unwrap();
    let import = Import { member: Some("bin/s3".into()), ..asked(&place.path("dist")) };
    ids.insert(place.import_as(&import).unwrap().version.metadata.id);
    assert_eq!(ids.len(), 1);

    let without = asked(&place.path("dist"));
    assert!(place.import_as(&without).unwrap_err().contains("which file of this directory"));
    let wrong = Import { member: Some("lib/data".into()), ..without };
    assert!(place.import_as(&wrong).unwrap_err().contains("no execute bit"));
}

#[test]
fn no_member_leaves_the_place_where_it_is_unpacked() {
    let place = StoreFixture::new();
    let cases = [
        (("/etc/evil", 0o644, "x"), "has an absolute path"),
        (("a/../../evil", 0o644, "x"), "has .. in its path"),
        (("evil", 0, "/etc/passwd"), "leads outside"),
        (("a/evil", 0, "../../x"), "leads outside"),
    ];
    for (evil, why) in cases {
        for (name, content) in archives(&[("s3", 0o755, SCRIPT), evil]) {
            let path = place.write(name, &content, 0o644);
            let import = Import { member: Some("s3".into()), tree: true, ..asked(&path) };
            let told = place.import_as(&import).unwrap_err();
            assert!(told.contains(why), "{name}: {told}");
            let alone = place.import_as(&Import { tree: false, ..import });
            assert_eq!(alone.is_err(), evil.1 != 0, "{name}: an unused link does no harm");
            place.store.gc(0, &BTreeSet::new()).unwrap();
        }
    }
    let through = [("s3", 0o755, SCRIPT), ("up", 0, "sub"), ("up/x", 0, "../s3"), ("sub/y", 0o644, "y")];
    let path = place.write("b.tar.gz", gz(&tar_of(&through)), 0o644);
    let import = Import { member: Some("s3".into()), tree: true, ..asked(&path) };
    assert!(place.import_as(&import).unwrap_err().contains("a link with members below it"));
}

#[test]
fn an_archive_that_is_not_whole_is_told() {
    let place = StoreFixture::new();
    let members = [("s3", 0o755, SCRIPT), ("more", 0o644, &"more ".repeat(1000)[..])];
    for (name, content) in archives(&members) {
        for cut in [10, content.len() / 2, content.len() - 4] {
            let path = place.write(name, &content[..cut], 0o644);
            let told = place.import(&path).unwrap_err();
            assert!(told.contains("truncated") || told.contains("damaged"), "{name} at {cut}: {told}");
        }
        let mut changed = content.clone();
        let middle = changed.len() / 3;
        changed[middle] ^= 0xff;
        let path = place.write(name, &changed, 0o644);
        if let Ok(imported) = place.import(&path) {
            assert_eq!(
                fs::read_to_string(&imported.path).unwrap(),
                SCRIPT,
                "{name}: only the right content runs"
            );
        }
        place.store.gc(0, &BTreeSet::new()).unwrap();
    }
}

#[test]
fn the_size_limit_counts_what_is_unpacked() {
    let place = StoreFixture::new();
    let zeros = "\0".repeat(3 << 20);
    for (name, content) in archives(&[("s3", 0o755, SCRIPT), ("zeros", 0o644, &zeros)]) {
        assert!(content.len() < 100_000);
        let path = place.write(name, &content, 0o644);
        let told = place.import(&path).unwrap_err();
        assert!(told.contains("more than 1048576 bytes"), "{name}: {told}");
    }
    let path = place.write("s3", zeros, 0o755);
    assert!(place.import(&path).unwrap_err().contains("more than 1048576 bytes"));
    // A name that would be held in memory.
    let mut long = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(3 << 20);
    header.set_cksum();
    long.append(&header, "x".repeat(3 << 20).as_bytes()).unwrap();
    let path = place.write("long.tar.gz", gz(&long.into_inner().unwrap()), 0o644);
    assert!(place.import(&path).unwrap_err().contains("too long"));
}

#[test]
fn what_cannot_be_started_alone_is_refused() {
    let place = StoreFixture::new();
    let told =
        |name: &str, content: &[u8], mode| place.import(&place.write(name, content, mode)).unwrap_err();
    assert!(told("text", b"Not Found\n", 0o755).contains("it is not a program"));
    assert!(told("plain", SCRIPT.as_bytes(), 0o644).contains("not executable"));
    assert!(told("lost", b"#!/no/such\n", 0o755).contains("/no/such"));
    assert!(place.import(&place.path("nothing")).unwrap_err().contains("does not exist"));

    let own = fs::read("/proc/self/exe").unwrap();
    let path = place.write("venv/bin/python", &own, 0o755);
    place.write("venv/pyvenv.cfg", "", 0o644);
    let import = Import { max_size_bytes: 1 << 30, ..asked(&path) };
    assert!(place.import_as(&import).unwrap_err().contains("virtual environment"));
    let script = place.write("venv/bin/tool", SCRIPT, 0o755);
    assert!(place.import(&script).is_ok(), "a script names its interpreter");
}

#[test]
fn nothing_that_was_not_verified_is_asked_for_its_version() {
    let place = StoreFixture::new();
    let mark = place.path("mark");
    let path = place.write("s3", format!("#!/bin/sh\ntouch {}\n", mark.display()), 0o755);
    let evidence = Evidence { sha256: Some(Id([7; 32])), ..Evidence::default() };
    let import = Import { evidence, version_command: vec!["{binary}".into()], ..asked(&path) };
    assert!(place.import_as(&import).unwrap_err().contains("it should be 0707"));
    assert!(!mark.exists());
    place.import_as(&Import { evidence: Evidence::default(), ..import.clone() }).unwrap();
    assert!(mark.exists());
    // The same content is no excuse.
    assert!(place.import_as(&import).unwrap_err().contains("it should be 0707"));
}

#[test]
fn what_is_kept_is_what_ran_last_what_is_used_and_what_is_pinned() {
    let place = StoreFixture::new();
    let ids: Vec<Id> = (1..=6)
        .map(|n| {
            let path = place.write(&format!("s3-{n}"), format!("{SCRIPT}: {n}\n"), 0o755);
            let imported =
                place.import_as(&Import { version: Some(format!("1.{n}")), ..asked(&path) }).unwrap();
            imported.version.metadata.id
        })
        .collect();
    // The last one never ran, and the first one ran again.
    for (generation, id) in [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 0)] {
        place.store.note_committed(&ids[id], generation).unwrap();
    }
    let newest: Vec<Id> = place.store.versions().iter().map(|it| it.metadata.id).collect();
    assert_eq!(newest, [ids[0], ids[4], ids[3], ids[2], ids[1], ids[5]]);
    assert!(place.store.pin(&ids[1], true).unwrap().usage.pinned);
    let removed = place.store.gc(2, &BTreeSet::from([ids[2]])).unwrap();
    assert_eq!(removed.iter().map(|it| it.metadata.id).collect::<Vec<_>>(), [ids[3], ids[5]]);
    assert_eq!(place.leftovers(), 0);
    assert_eq!(Store::open(&place.path("state/versions")).unwrap().versions(), place.store.versions());

    assert_eq!(place.store.find_by_word("1.5").unwrap().metadata.id, ids[4]);
    assert_eq!(place.store.find_by_word(&ids[4].to_string()[..8]).unwrap().metadata.id, ids[4]);
    for word in ["1.6", "", "no"] {
        assert!(place.store.find_by_word(word).is_err(), "{word}");
    }
    place.store.pin(&ids[1], false).unwrap();
    assert_eq!(place.store.gc(2, &BTreeSet::new()).unwrap().len(), 2);
}

#[test]
fn what_a_dead_process_left_is_no_version_and_is_swept() {
    let place = StoreFixture::new();
    let path = place.write("s3", SCRIPT, 0o755);
    let imported = place.import(&path).unwrap();
    let versions = place.path("state/versions");
    fs::create_dir_all(versions.join("incoming-1-0/files")).unwrap();
    fs::write(versions.join("incoming-1-0/files/s3"), "half").unwrap();
    // A power failure may leave a name whose content did not reach the disk.
    fs::create_dir_all(versions.join(Id([1; 32]).to_string())).unwrap();
    fs::write(imported.path.parent().unwrap().with_file_name(USED), "").unwrap();
    let store = Store::open(&versions).unwrap();
    assert_eq!(
        store.versions().iter().map(|it| it.metadata.id).collect::<Vec<_>>(),
        [imported.version.metadata.id]
    );
    assert_eq!(store.versions()[0].usage, UsageRecord::default());
    store.sweep();
    assert_eq!(place.leftovers(), 0);
    assert!(store.import(&asked(&path), &mut |_| ()).unwrap().was_there);
}

#[test]
fn a_file_that_is_exchanged_meanwhile_comes_in_whole_or_not_at_all() {
    let place = StoreFixture::new();
    let content = |letter: char| format!("#!/bin/sh\n: {}", String::from(letter).repeat(500_000));
    let files = ['a', 'b'].map(|letter| place.write(&letter.to_string(), content(letter), 0o755));
    let path = place.path("s3");
    fs::hard_link(&files[0], &path).unwrap();
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (beside, path, files) = (place.path("beside"), &path, &files);
        scope.spawn(move || {
            for file in files.iter().cycle() {
                fs::copy(file, &beside).unwrap();
                fs::rename(&beside, path).unwrap();
                if stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected) {
                    break;
                }
            }
        });
        for _ in 0..200 {
            match place.store.import(&asked(path), &mut |_| ()) {
                Ok(imported) => {
                    let found = fs::read_to_string(imported.path).unwrap();
                    assert!(['a', 'b'].map(content).contains(&found));
                }
                Err(error) => assert!(error.to_string().contains("written or replaced"), "{error}"),
            }
            place.store.gc(0, &BTreeSet::new()).unwrap();
        }
        drop(stop);
    });
    assert_eq!(place.leftovers(), 0);
}

/// The end of the archive contains the number of members and the length of their list, which must not be trusted.
#[test]
fn a_zip_that_claims_more_members_than_it_has_costs_no_memory() {
    let place = StoreFixture::new();
    let mut zip = zip_of(&[("bin/s3", 0o755, SCRIPT)]);
    let end = zip.len() - 22;
    assert_eq!(&zip[end..end + 4], b"PK\x05\x06");
    // The record of ZIP64, and its locator (APPNOTE.TXT, 4.3.14 and 4.3.15): 2^40 members in a list of 2^60 bytes.
    let directory = u64::from(u32::from_le_bytes(zip[end + 16..end + 20].try_into().unwrap()));
    let (members, length) = (1_u64 << 40, 1_u64 << 60);
    let mut record = Vec::new();
    record.extend(b"PK\x06\x06");
    record.extend(44_u64.to_le_bytes());
    record.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for field in [members, members, length, directory] {
        record.extend(field.to_le_bytes());
    }
    record.extend(b"PK\x06\x07");
    record.extend([0; 4]);
    record.extend((end as u64).to_le_bytes());
    record.extend(1_u32.to_le_bytes());
    let mut last = zip.split_off(end);
    last[8..20].fill(0xff);
    zip.extend(record);
    zip.extend(last);
    let path = place.write("claims.zip", &zip, 0o644);
    let error = place.import(&path).unwrap_err();
    assert!(error.contains("damaged"), "{error}");
    // The last of duplicate members counts, as in a tar archive; the list of one member may be long.
    let path = place.write("good.zip", zip_of(&[("bin/s3", 0o755, SCRIPT), ("doc/a", 0o644, "a")]), 0o644);
    place.import(&path).unwrap();
}
