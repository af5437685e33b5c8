//! A FUSE file system over a directory. One operation on a journal fails, or the file system stops answering. All other
//! operations pass through.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

pub use super::hang::Fault;
use super::hang::Hanging;
use handoff::sys::user::effective_user;

/// The kernel caches nothing, so that every operation reaches this file system.
const TTL: Duration = Duration::ZERO;

/// The next fault, the operation that hangs, and the operations so far.
#[derive(Debug, Default)]
struct FaultPlan {
    next: Option<(usize, Fault)>,
    hangs_at: Option<String>,
    seen: Vec<String>,
    hangs_at_read: bool,
}

/// A mounted file system. It is unmounted when this is dropped.
pub struct Disk {
    plan: Arc<Mutex<FaultPlan>>,
    hanging: Arc<Hanging>,
    path: PathBuf,
    _session: BackgroundSession,
}

impl Disk {
    /// Mounts a view of `backing` at `path`. Returns `None` if this user has no permission.
    pub fn mount(path: &Path, backing: &Path) -> Option<Self> {
        if effective_user() != 0 || !Path::new("/dev/fuse").exists() {
            return None;
        }
        let plan = Arc::<Mutex<FaultPlan>>::default();
        let tree = Mutex::new(Tree { paths: vec![Some(backing.to_owned())], ..Tree::default() });
        let hanging = Arc::<Hanging>::default();
        let shown = FaultyFileSystem { plan: Arc::clone(&plan), hanging: Arc::clone(&hanging), tree };
        let session = fuser::spawn_mount(shown, path, &Config::default()).expect("it can be mounted");
        Some(Self { plan, hanging, path: path.to_owned(), _session: session })
    }

    /// Makes the operation with this number, counted from now, fail.
    pub fn fail(&self, number: usize, fault: Fault) {
        self.plan.lock().unwrap().next = Some((number, fault));
    }

    /// Whether a fault is still pending.
    pub fn is_faulty(&self) -> bool {
        self.plan.lock().unwrap().next.is_some()
    }

    /// From now on no operation is answered. The calling process waits, and cannot be killed meanwhile.
    pub fn hang(&self) {
        self.hanging.set(true);
    }

    pub fn hang_at(&self, operation: &str) {
        self.plan.lock().unwrap().hangs_at = Some(operation.to_owned());
    }

    /// The same, from the next read on. The reading process has the file open.
    pub fn hang_at_read(&self) {
        self.plan.lock().unwrap().hangs_at_read = true;
    }

    /// Whether operations hang now.
    pub fn hangs(&self) -> bool {
        self.hanging.is_set()
    }

    /// Answers everything again, including the waiting operations.
    pub fn release(&self) {
        self.hanging.set(false);
    }

    /// Cancels the pending fault.
    pub fn heal(&self) {
        self.plan.lock().unwrap().next = None;
    }

    /// The number of these operations since the last [`Disk::seen`].
    pub fn count(&self, operation: &str) -> usize {
        self.plan.lock().unwrap().seen.iter().filter(|seen| *seen == operation).count()
    }

    /// The operations since the last call.
    pub fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.plan.lock().unwrap().seen)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.release();
        // This works even if a process still has a file open.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

#[derive(Debug, Default)]
struct Tree {
    /// By inode number, from 1. `None` for removed files.
    paths: Vec<Option<PathBuf>>,
    open: HashMap<u64, (Arc<File>, String)>,
    opened: u64,
}

struct FaultyFileSystem {
    plan: Arc<Mutex<FaultPlan>>,
    hanging: Arc<Hanging>,
    tree: Mutex<Tree>,
}

impl FaultyFileSystem {
    /// Whether an operation is short. Returns an error if it fails.
    fn gate(&self, operation: &str, name: &str) -> Result<bool, Errno> {
        if !name.starts_with("journal") {
            return Ok(false);
        }
        let mut plan = self.plan.lock().unwrap();
        let what = format!("{operation} {name}");
        if plan.hangs_at.take_if(|at| *at == what).is_some() {
            self.hanging.set(true);
        }
        drop(plan);
        self.hanging.wait();
        let mut plan = self.plan.lock().unwrap();
        plan.seen.push(what);
        let Some((number, fault)) = plan.next else { return Ok(false) };
        plan.next = number.checked_sub(1).map(|number| (number, fault));
        match fault {
            _ if number > 0 => Ok(false),
            Fault::Full => Err(Errno::ENOSPC),
            Fault::Short if operation == "write" => {
                plan.next = Some((0, Fault::Full));
                Ok(true)
            }
            Fault::Broken | Fault::Short => Err(Errno::EIO),
        }
    }

    fn path(&self, ino: INodeNo) -> Result<PathBuf, Errno> {
        self.hanging.wait();
        self.tree.lock().unwrap().paths[ino.0 as usize - 1].clone().ok_or(Errno::ENOENT)
    }

    fn below(&self, parent: INodeNo, name: &OsStr) -> Result<(PathBuf, String), Errno> {
        Ok((self.path(parent)?.join(name), name.to_string_lossy().into_owned()))
    }

    fn entry(&self, path: &Path) -> Result<FileAttr, Errno> {
        let found = fs::metadata(path)?;
        let mut tree = self.tree.lock().unwrap();
        let known = tree.paths.iter().position(|known| known.as_deref() == Some(path));
        let ino = known.unwrap_or_else(|| {
            tree.paths.push(Some(path.to_owned()));
            tree.paths.len() - 1
        });
        Ok(attributes(ino as u64 + 1, &found))
    }

    /// The inode number of this path no longer belongs to it.
    fn forget_path(&self, path: &Path, becomes: Option<&Path>) {
        for known in &mut self.tree.lock().unwrap().paths {
            if known.as_deref() == Some(path) {
                *known = becomes.map(Path::to_owned);
            }
        }
    }

    fn open_file(&self, file: File, name: String) -> FileHandle {
        let mut tree = self.tree.lock().unwrap();
        tree.opened += 1;
        let number = tree.opened;
        tree.open.insert(number, (Arc::new(file), name));
        FileHandle(number)
    }

    fn opened(&self, fh: FileHandle) -> Result<(Arc<File>, String), Errno> {
        self.hanging.wait();
        self.tree.lock().unwrap().open.get(&fh.0).cloned().ok_or(Errno::EBADF)
    }

    fn make(&self, parent: INodeNo, name: &OsStr, mode: u32) -> Result<(FileAttr, FileHandle), Errno> {
        let (path, name) = self.below(parent, name)?;
        self.gate("create", &name)?;
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(mode).open(&path)?;
        Ok((self.entry(&path)?, self.open_file(file, name)))
    }

    fn look(&self, ino: INodeNo, fh: Option<FileHandle>, size: Option<u64>) -> Result<FileAttr, Errno> {
        let file = match fh {
            Some(fh) => self.opened(fh)?,
            None => (Arc::new(File::open(self.path(ino)?)?), String::new()),
        };
        if let Some(size) = size {
            self.gate("truncate", &file.1)?;
            file.0.set_len(size)?;
        }
        Ok(attributes(ino.0, &file.0.metadata()?))
    }

    fn put(&self, fh: FileHandle, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let (file, name) = self.opened(fh)?;
        let is_short = self.gate("write", &name)?;
        let taken = if is_short { data.len() / 2 } else { data.len() };
        file.write_all_at(&data[..taken], offset)?;
        Ok(taken)
    }

    fn get(&self, fh: FileHandle, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        if std::mem::take(&mut self.plan.lock().unwrap().hangs_at_read) {
            self.hanging.set(true);
        }
        let (file, name) = self.opened(fh)?;
        self.gate("read", &name)?;
        let mut bytes = vec![0; size as usize];
        let length = file.read_at(&mut bytes, offset)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    fn list(&self, ino: INodeNo) -> Result<Vec<(INodeNo, FileType, std::ffi::OsString)>, Errno> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path(ino)?)? {
            let entry = entry?;
            let attributes = self.entry(&entry.path())?;
            found.push((attributes.ino, attributes.kind, entry.file_name()));
        }
        Ok(found)
    }
}

/// Sends a result as a reply.
macro_rules! answer {
    ($reply:ident, $result:expr, $found:pat => $told:expr) => {
        match $result {
            Ok($found) => $told,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for FaultyFileSystem {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(reply, self.below(parent, name).and_then(|(path, _)| self.entry(&path)), found => reply.entry(&TTL, &found, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.look(ino, fh, None), found => reply.attr(&TTL, &found));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer!(reply, self.look(ino, fh, size), found => reply.attr(&TTL, &found));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = || -> Result<_, Errno> {
            let (path, _) = self.below(parent, name)?;
            fs::create_dir(&path)?;
            self.entry(&path)
        };
        answer!(reply, made(), found => reply.entry(&TTL, &found, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = || -> Result<_, Errno> {
            let (path, name) = self.below(parent, name)?;
            self.gate("unlink", &name)?;
            fs::remove_file(&path)?;
            self.forget_path(&path, None);
            Ok(())
        };
        answer!(reply, removed(), () => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = || -> Result<_, Errno> {
            let ((from, name), (to, _)) = (self.below(parent, name)?, self.below(newparent, newname)?);
            self.gate("rename", &name)?;
            fs::rename(&from, &to)?;
            self.forget_path(&to, None);
            self.forget_path(&from, Some(&to));
            Ok(())
        };
        answer!(reply, renamed(), () => reply.ok());
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = || -> Result<_, Errno> {
            let path = self.path(ino)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.gate("open", &name)?;
            Ok(self.open_file(OpenOptions::new().read(true).write(true).open(path)?, name))
        };
        answer!(reply, opened(), fh => reply.opened(fh, FopenFlags::FOPEN_DIRECT_IO));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        answer!(reply, self.make(parent, name, mode), (found, fh) => {
            reply.created(&TTL, &found, Generation(0), fh, FopenFlags::FOPEN_DIRECT_IO)
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(reply, self.get(fh, offset, size), bytes => reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        answer!(reply, self.put(fh, offset, data), taken => reply.written(taken as u32));
    }

    /// Each close(2) of a descriptor calls this, in any process.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.hanging.wait();
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.lock().unwrap().open.remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.opened(fh).and_then(|(_, name)| self.gate("fsync", &name)), _ => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.gate("fsync", "journal's directory"), _ => reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        answer!(reply, self.list(ino), found => {
            for (at, (ino, kind, name)) in (1..).zip(found).skip(offset as usize) {
                if reply.add(ino, at, kind, name) {
                    break;
                }
            }
            reply.ok()
        });
    }
}

fn attributes(ino: u64, found: &Metadata) -> FileAttr {
    let time = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    FileAttr {
        ino: INodeNo(ino),
        size: found.len(),
        blocks: found.blocks(),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: if found.is_dir() { FileType::Directory } else { FileType::RegularFile },
        perm: (found.permissions().mode() & 0o7777) as u16,
        nlink: found.nlink() as u32,
        uid: found.uid(),
        gid: found.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
