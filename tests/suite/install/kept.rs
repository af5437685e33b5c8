//! The kept versions, and the rollback to them.

use std::fs;

use super::StoredService;
use crate::support::version;

#[test]
fn a_rollback_is_an_upgrade_to_what_ran_before() {
    let stored = StoredService::serve("");
    for n in ["2", "3"] {
        let path = stored.rig.release(n, "");
        assert_eq!(stored.installed(&path, &[]).code, Some(0));
        // The installed file may be deleted.
        fs::remove_file(path).unwrap();
    }
    let back = stored.run(&["rollback", "s"]);
    assert_eq!(back.code, Some(0), "{back:?}");
    assert_eq!((version(stored.address).as_str(), stored.rig.status("s").generation.0), ("2", 4));
    let back = stored.run(&["rollback", "s", "1"]);
    assert_eq!(back.code, Some(0), "{back:?}");
    assert_eq!(version(stored.address), "1");
    // A second rollback returns to the version before the first one.
    assert_eq!(stored.run(&["rollback", "s"]).code, Some(0));
    assert_eq!((version(stored.address).as_str(), stored.rig.status("s").generation.0), ("2", 6));
    let table = stored.run(&["versions", "s"]).said;
    assert!(table.contains("testee 2") && table.contains("2 4 6") && table.contains("current"), "{table}");
    assert!(stored.run(&["history", "s"]).said.contains("rollback"));
}

#[test]
fn a_version_that_is_not_kept_is_reported_with_the_kept_ones() {
    let stored = StoredService::serve("[update]\nkeep = 1\n");
    for n in ["2", "3", "4"] {
        assert_eq!(stored.installed(&stored.rig.release(n, ""), &[]).code, Some(0));
    }
    // The current version and the previous one.
    let generations: Vec<Vec<u64>> = stored.versions().into_iter().map(|it| it.generations).collect();
    assert_eq!(generations, [[4], [3]]);
    let refused = stored.run(&["rollback", "s", "1"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.said.contains("cannot go back: the version of generation 1 is not kept"), "{refused:?}");
    assert!(refused.said.contains("whose versions are kept: 3, 4"), "{refused:?}");
    assert_eq!((version(stored.address).as_str(), stored.rig.status("s").generation.0), ("4", 4));
    assert_eq!(stored.run(&["rollback", "s"]).code, Some(0));
    assert_eq!(version(stored.address), "3");
}

#[test]
fn what_is_pinned_outlives_the_others() {
    let stored = StoredService::serve("[update]\nkeep = 1\n");
    let pinned = stored.run(&["pin", "s", "testee 1"]);
    assert_eq!(pinned.code, Some(0), "{pinned:?}");
    for n in ["2", "3", "4"] {
        assert_eq!(stored.installed(&stored.rig.release(n, ""), &[]).code, Some(0));
    }
    let kept: Vec<Option<String>> = stored.versions().into_iter().map(|it| it.version).collect();
    assert_eq!(kept, [4, 3, 1].map(|n| Some(format!("testee {n}"))));
    assert!(stored.run(&["versions", "s"]).said.contains("pinned"));
    let nothing = stored.run(&["gc", "s"]);
    assert!(nothing.said.contains("nothing to remove"), "{nothing:?}");
    let id = stored.versions()[2].sha256.clone();
    assert_eq!(stored.run(&["pin", "s", &id[..12], "--off"]).code, Some(0));
    let removed = stored.run(&["gc", "--json"]);
    assert!(removed.said.contains(&id), "{removed:?}");
    assert_eq!(stored.versions().len(), 2);
    let unknown = stored.run(&["pin", "s", "testee 1"]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(stored.run(&["pin", "s", "testee 1", "--json"]).said.contains("\"unknown_version\""));
}

#[test]
fn a_version_is_meant_by_the_end_of_its_name() {
    let stored = StoredService::serve("");
    assert_eq!(stored.installed(&stored.rig.release("2", ""), &[]).code, Some(0));
    let pinned = stored.run(&["pin", "s", "2"]);
    assert!(pinned.code == Some(0) && pinned.said.contains("testee 2"), "{pinned:?}");
    let short = stored.run(&["pin", "s", "87"]);
    assert_eq!(short.code, Some(1), "{short:?}");
    assert!(short.said.contains("a hash needs 4 digits or more"), "{short:?}");
    let none = stored.run(&["pin", "s", "3.0"]);
    assert!(none.said.contains("no version \"3.0\" is kept"), "{none:?}");
    let back = stored.run(&["rollback", "s", "9", "--json"]);
    assert!(back.code == Some(1) && back.said.contains("\"unknown_version\""), "{back:?}");
}

#[test]
fn a_version_that_fails_is_not_kept_and_can_be_tried_again() {
    let stored = StoredService::serve("");
    let bad = stored.rig.release("2", "unhealthy");
    for _ in 0..2 {
        let ran = stored.installed(&bad, &[]);
        assert_eq!(ran.code, Some(4), "{ran:?}");
        stored.is_untouched();
    }
}
