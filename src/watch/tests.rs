//! Files and directories that come and go.

use std::fs;
use std::io::Write;
use std::time::Duration;

use super::*;

/// Everything that happens until nothing more does.
async fn all(watch: &mut PathWatcher) -> Vec<PathEvent> {
    let mut events = Vec::new();
    while let Ok(next) = tokio::time::timeout(Duration::from_millis(200), watch.next()).await {
        events.push(next.unwrap());
    }
    events.dedup();
    events
}

/// Everything that happens, from now until some time after the file is whole. A child of another test may have it open for writing until its
/// exec.
async fn until_whole(watch: &mut PathWatcher) -> Vec<PathEvent> {
    let mut events = Vec::new();
    while events.last() != Some(&PathEvent::Whole) {
        let next = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
        events.push(next.expect("the file is whole").unwrap());
    }
    events.extend(all(watch).await);
    events.dedup();
    events
}

#[tokio::test(flavor = "current_thread")]
async fn what_happens_to_the_file_is_told_and_nothing_of_others() {
    let root = tempfile::tempdir().unwrap();
    let (path, other) = (root.path().join("file"), root.path().join("other"));
    let mut watch = PathWatcher::new(&path).unwrap();
    assert_eq!(all(&mut watch).await, [PathEvent::Look]);
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!(all(&mut watch).await, [PathEvent::Written]);
    drop(file);
    assert_eq!(until_whole(&mut watch).await, [PathEvent::Whole]);
    fs::write(&other, "x").unwrap();
    assert_eq!(all(&mut watch).await, []);
    fs::rename(&other, &path).unwrap();
    assert_eq!(all(&mut watch).await, [PathEvent::Whole]);
    fs::remove_file(&path).unwrap();
    assert_eq!(all(&mut watch).await, [PathEvent::Gone]);
    fs::write(&other, "x").unwrap();
    std::os::unix::fs::symlink(&other, &path).unwrap();
    assert_eq!(all(&mut watch).await, [PathEvent::Whole]);
    fs::remove_file(&path).unwrap();
    fs::hard_link(&other, &path).unwrap();
    assert_eq!(all(&mut watch).await, [PathEvent::Gone, PathEvent::Whole]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_way_that_vanishes_and_comes_again_is_watched_again() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a/b/file");
    let mut watch = PathWatcher::new(&path).unwrap();
    assert_eq!(all(&mut watch).await, [PathEvent::Look]);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "x").unwrap();
    // The watch reports the file either way: as an event, or as a reason to look.
    assert!(all(&mut watch).await.iter().any(|events| [PathEvent::Look, PathEvent::Whole].contains(events)));
    fs::write(&path, "y").unwrap();
    assert!(until_whole(&mut watch).await.ends_with(&[PathEvent::Whole]));
    fs::remove_dir_all(root.path().join("a")).unwrap();
    assert!(all(&mut watch).await.contains(&PathEvent::Look));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert!(all(&mut watch).await.contains(&PathEvent::Look));
    fs::write(&path, "z").unwrap();
    assert!(until_whole(&mut watch).await.ends_with(&[PathEvent::Whole]));
    // The directory of the directory is another one.
    fs::rename(root.path().join("a"), root.path().join("gone")).unwrap();
    assert!(all(&mut watch).await.contains(&PathEvent::Look));
    fs::write(root.path().join("gone/b/file"), "elsewhere").unwrap();
    assert_eq!(all(&mut watch).await, []);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert!(all(&mut watch).await.contains(&PathEvent::Look));
    fs::write(&path, "again").unwrap();
    assert!(until_whole(&mut watch).await.ends_with(&[PathEvent::Whole]));
}

#[tokio::test(flavor = "current_thread")]
async fn when_the_queue_runs_over_it_is_to_be_looked() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    let mut watch = PathWatcher::new(&path).unwrap();
    let most: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let (one, two) = (root.path().join("1"), root.path().join("2"));
    fs::write(&one, "").unwrap();
    for _ in 0..most.min(100_000) / 2 {
        fs::rename(&one, &two).unwrap();
        fs::rename(&two, &one).unwrap();
    }
    fs::write(&path, "x").unwrap();
    assert!(all(&mut watch).await.ends_with(&[PathEvent::Look]));
    fs::write(&path, "y").unwrap();
    assert!(until_whole(&mut watch).await.ends_with(&[PathEvent::Whole]));
}

#[tokio::test(flavor = "current_thread")]
async fn at_rest_nothing_wakes() {
    let root = tempfile::tempdir().unwrap();
    let mut watch = PathWatcher::new(&root.path().join("none/file")).unwrap();
    assert_eq!(all(&mut watch).await, [PathEvent::Look]);
    fs::write(root.path().join("else"), "x").unwrap();
    assert_eq!(all(&mut watch).await, []);
    assert!(PathWatcher::new(Path::new("/")).is_err());
}
