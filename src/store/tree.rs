//! A program that is a directory with all its content: how it is copied and hashed.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::copy::{Budget, copy};
use super::error::Error;
use super::meta::{FileStamp, Id};
use super::privileges;
use super::source::{changed, exposed};
use super::unpack::stays_inside;
use crate::sys::exposed::check_found;
use crate::sys::path::{NOFOLLOW, NONBLOCK};

/// An object of a tree, with its path below the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) path: PathBuf,
    pub(super) kind: NodeKind,
    /// Its permissions.
    pub(super) mode: u32,
    stamp: FileStamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodeKind {
    File { executable: bool },
    Directory,
    Link(PathBuf),
}

/// Maximum number of objects in a tree.
const NODES_MAX: usize = 200_000;
/// Maximum number of objects to examine for changes.
const EXAMINED_MAX: usize = 50_000;

/// Copies everything below `top` into the empty directory `into`. Refuses what other users can write, links that lead
/// outside, and a tree that changes in the meantime. Blocks.
pub(super) fn copy_all(top: &Path, into: &Path, budget: &mut Budget) -> Result<(), Error> {
    let before = walk(top)?;
    for node in &before {
        let (from, to) = (top.join(&node.path), into.join(&node.path));
        match &node.kind {
            NodeKind::Directory => {
                fs::create_dir(&to).map_err(Error::io("make the directory", &to))?;
                set_mode(&to, node.mode & 0o755 | 0o700).map_err(Error::io("protect it", &to))?;
            }
            NodeKind::Link(target) if stays_inside(&node.path, target) => {
                symlink(target, &to).map_err(Error::io("make the link", &to))?;
            }
            NodeKind::Link(target) => return Err(leads_outside(&from, target)),
            NodeKind::File { .. } => copy_one(node, &from, &to, budget, top)?,
        }
    }
    match walk(top)? == before {
        true => Ok(()),
        false => Err(changed(top)),
    }
}

/// Checks whether [`copy_all`] would refuse the tree, without reading the content of the files. Reads the metadata of each.
pub(super) fn check_all(top: &Path, budget: &mut Budget) -> Result<(), Error> {
    for node in walk(top)? {
        match &node.kind {
            NodeKind::Directory => {}
            NodeKind::Link(target) if stays_inside(&node.path, target) => {}
            NodeKind::Link(target) => return Err(leads_outside(&top.join(&node.path), target)),
            NodeKind::File { .. } => budget.take(node.stamp.size, top)?,
        }
    }
    Ok(())
}

fn leads_outside(link: &Path, target: &Path) -> Error {
    let cause = format!("it is a link to {}, out of the tree", target.display());
    Error::refused(link, cause, "give a tree that has all it needs, or set store = false")
}

fn copy_one(node: &Node, from: &Path, to: &Path, budget: &mut Budget, top: &Path) -> Result<(), Error> {
    let flags = NOFOLLOW | NONBLOCK;
    let source =
        File::options().read(true).custom_flags(flags).open(from).map_err(Error::io("open it", from))?;
    let found = source.metadata().map_err(Error::io("examine it", from))?;
    if FileStamp::of(&found) != node.stamp {
        return Err(changed(top));
    }
    budget.take(found.len(), top)?;
    let mut options = File::options();
    let target = options.read(true).write(true).create_new(true).mode(0o600).open(to);
    let target = target.map_err(Error::io("make the file", to))?;
    let length = copy(&source, &target, budget).map_err(Error::io("copy it", to))?;
    set_mode(to, node.mode & 0o755 | 0o600).map_err(Error::io("protect it", to))?;
    privileges::carry(&source, &target, from)?;
    if length == node.stamp.size { Ok(()) } else { Err(changed(top)) }
}

/// Everything below `top`, in byte order of the paths; each directory before its content.
pub(super) fn walk(top: &Path) -> Result<Vec<Node>, Error> {
    let mut nodes = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let at = top.join(&folder);
        for entry in fs::read_dir(&at).map_err(Error::io("list it", &at))? {
            let path = folder.join(entry.map_err(Error::io("list it", &at))?.file_name());
            let node = read_node(top, path)?;
            if node.kind == NodeKind::Directory {
                folders.push(node.path.clone());
            }
            nodes.push(node);
            if nodes.len() > NODES_MAX {
                let cause = format!("there are more than {NODES_MAX} files and directories below it");
                return Err(Error::refused(top, cause, "take out what the program does not need"));
            }
        }
    }
    nodes.sort_by(|one, other| one.path.as_os_str().as_bytes().cmp(other.path.as_os_str().as_bytes()));
    Ok(nodes)
}

fn read_node(top: &Path, path: PathBuf) -> Result<Node, Error> {
    let at = top.join(&path);
    let found = fs::symlink_metadata(&at).map_err(Error::io("examine it", &at))?;
    check_found(&at, &found).map_err(|cause| exposed(&at, cause))?;
    let what = if found.is_dir() {
        NodeKind::Directory
    } else if found.is_symlink() {
        NodeKind::Link(fs::read_link(&at).map_err(Error::io("read the link", &at))?)
    } else if found.is_file() {
        NodeKind::File { executable: found.permissions().mode() & 0o111 != 0 }
    } else {
        let cause = "it is neither a file nor a directory nor a link";
        return Err(Error::refused(&at, cause, "take it out of the tree"));
    };
    Ok(Node { path, kind: what, mode: found.permissions().mode() & 0o7777, stamp: FileStamp::of(&found) })
}

/// The hash of a tree: SHA-256 of one line per object, in byte order of the paths. A line is a letter (`f` file, `x`
/// file with an execute bit, `d` directory, `l` link), a space, the SHA-256 in hex of the content (of a link: of its
/// target; of a directory: of nothing), a space, the path, and a zero byte. Blocks.
pub(super) fn hash(top: &Path) -> Result<Id, Error> {
    let mut hasher = Sha256::new();
    for node in walk(top)? {
        let at = top.join(&node.path);
        let of = |content: &[u8]| Id::of(content).map_err(Error::io("read it", &at));
        let (letter, content) = match &node.kind {
            NodeKind::Directory => ('d', of(b"")?),
            NodeKind::Link(target) => ('l', of(target.as_os_str().as_bytes())?),
            NodeKind::File { executable } => {
                let content = File::open(&at).and_then(Id::of).map_err(Error::io("read it", &at))?;
                (if *executable { 'x' } else { 'f' }, content)
            }
        };
        hasher.update(format!("{letter} {content} ").as_bytes());
        hasher.update(node.path.as_os_str().as_bytes());
        hasher.update([0]);
    }
    Ok(Id(hasher.finalize().into()))
}

/// Removes the write bits of all files, and returns their total size in bytes. Never adds read permission. Blocks.
pub(super) fn protect(top: &Path) -> io::Result<u64> {
    let mut size = 0;
    for node in walk(top).map_err(io::Error::other)? {
        if let NodeKind::File { .. } = node.kind {
            set_mode(&top.join(&node.path), node.mode & 0o555 | 0o400)?;
            size += node.stamp.size;
        }
    }
    Ok(size)
}

/// Removes permissions below `top` that the same objects below `other` do not have. Blocks.
pub(super) fn narrow(top: &Path, other: &Path) -> io::Result<()> {
    for node in walk(other).map_err(io::Error::other)? {
        let at = top.join(&node.path);
        let found = fs::symlink_metadata(&at)?;
        if !found.is_symlink() {
            let least = if found.is_dir() { 0o700 } else { 0o400 };
            set_mode(&at, found.permissions().mode() & 0o7777 & (node.mode | least))?;
        }
    }
    Ok(())
}

/// A digest for change detection: SHA-256 of path, kind, execute bit, size and modification time of everything below
/// `top`. Equal digests mean equal trees, unless the times were set back. `None` if the tree is too large. Blocks.
pub(super) fn digest(top: &Path) -> Option<Id> {
    let nodes = walk(top).ok().filter(|nodes| nodes.len() <= EXAMINED_MAX)?;
    let mut hasher = Sha256::new();
    for node in nodes {
        hasher.update(node.path.as_os_str().as_bytes());
        let FileStamp { size, modified, .. } = node.stamp;
        let times = if node.kind == NodeKind::Directory { (0, (0, 0)) } else { (size, modified) };
        hasher.update(format!("\0{:?} {times:?}\n", node.kind));
    }
    Some(Id(hasher.finalize().into()))
}

/// Total size of all files below `top`, in bytes. Blocks.
pub(super) fn size_bytes(top: &Path) -> Option<u64> {
    let nodes = walk(top).ok().filter(|nodes| nodes.len() <= EXAMINED_MAX)?;
    Some(
        nodes
            .iter()
            .filter(|node| matches!(node.kind, NodeKind::File { .. }))
            .map(|node| node.stamp.size)
            .sum(),
    )
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn tree(top: &Path) {
        fs::create_dir_all(top.join("bin")).unwrap();
        fs::create_dir_all(top.join("empty")).unwrap();
        fs::write(top.join("bin/s3"), "program").unwrap();
        fs::set_permissions(top.join("bin/s3"), Permissions::from_mode(0o755)).unwrap();
        fs::write(top.join("config"), "text").unwrap();
        symlink("bin/s3", top.join("s3")).unwrap();
    }

    #[test]
    fn a_copy_has_the_same_hash_and_each_change_another() {
        let directory = tempfile::tempdir().unwrap();
        let (top, copied) = (directory.path().join("top"), directory.path().join("copy"));
        tree(&top);
        fs::create_dir(&copied).unwrap();
        copy_all(&top, &copied, &mut Budget::new(11, Arc::default())).unwrap();
        let first = hash(&top).unwrap();
        assert_eq!(hash(&copied).unwrap(), first);
        assert_eq!(fs::read_link(copied.join("s3")).unwrap(), Path::new("bin/s3"));
        assert_eq!(protect(&copied).unwrap(), 11);
        assert_eq!(hash(&copied).unwrap(), first, "the write bits do not count");
        let modes = |top: &Path| {
            ["bin", "bin/s3", "config"]
                .map(|it| fs::metadata(top.join(it)).unwrap().permissions().mode() & 0o777)
        };
        assert_eq!(modes(&copied), [0o755, 0o555, 0o444]);
        for (path, mode) in [("bin", 0o700), ("bin/s3", 0o750), ("config", 0o600)] {
            set_mode(&top.join(path), mode).unwrap();
        }
        assert_eq!(digest(&top), digest(&top));
        narrow(&copied, &top).unwrap();
        assert_eq!(modes(&copied), [0o700, 0o550, 0o400]);
        assert_eq!((hash(&copied).unwrap(), hash(&top).unwrap()), (first, first), "nor do those of others");
        let private = directory.path().join("private");
        fs::create_dir(&private).unwrap();
        copy_all(&top, &private, &mut Budget::new(11, Arc::default())).unwrap();
        protect(&private).unwrap();
        assert_eq!(modes(&private), [0o700, 0o550, 0o400]);

        let mut seen = vec![first];
        fs::write(top.join("config"), "TEXT").unwrap();
        seen.push(hash(&top).unwrap());
        fs::set_permissions(top.join("config"), Permissions::from_mode(0o755)).unwrap();
        seen.push(hash(&top).unwrap());
        fs::rename(top.join("config"), top.join("other")).unwrap();
        seen.push(hash(&top).unwrap());
        fs::remove_dir(top.join("empty")).unwrap();
        seen.push(hash(&top).unwrap());
        fs::remove_file(top.join("s3")).unwrap();
        symlink("bin/./s3", top.join("s3")).unwrap();
        seen.push(hash(&top).unwrap());
        let number = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), number);
    }

    #[test]
    fn what_may_not_be_in_a_tree_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let (top, copied) = (directory.path().join("top"), directory.path().join("copy"));
        tree(&top);
        fs::create_dir(&copied).unwrap();
        let told = |budget| {
            let error =
                copy_all(&top, &copied, &mut Budget::new(budget, Arc::default())).unwrap_err().to_string();
            fs::remove_dir_all(&copied).unwrap();
            fs::create_dir(&copied).unwrap();
            error
        };
        assert!(told(10).contains("more than 10 bytes"));
        symlink("../outside", top.join("zz")).unwrap();
        assert!(told(100).contains("zz: it is a link to ../outside, out of the tree"));
        fs::remove_file(top.join("zz")).unwrap();
        fs::set_permissions(top.join("bin"), Permissions::from_mode(0o777)).unwrap();
        assert!(told(100).contains("is world-writable"));
        fs::set_permissions(top.join("bin"), Permissions::from_mode(0o755)).unwrap();
        crate::sys::path::make_fifo(&top.join("fifo"), 0o600).unwrap();
        assert!(told(100).contains("fifo: it is neither"));
    }
}
