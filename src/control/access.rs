//! Who may use the control socket, and for what.

use super::api::Request;

/// What a client may do. A larger right includes the smaller one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Look at services.
    Read,
    /// Start, stop and upgrade them, which includes running any program as the user of the daemon.
    Operate,
}

/// The groups whose members may use the socket, beside the user of the daemon and root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Its members may do everything.
    pub operate: Option<u32>,
    /// Its members may look.
    pub read: Option<u32>,
}

/// A process at the other end of the socket, as it was when it connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIds {
    /// Its user.
    pub user: u32,
    /// Its primary group.
    pub group: u32,
    /// Its other groups.
    pub groups: Vec<u32>,
}

impl Access {
    /// What a client may do; `None` if nothing. `own` is the user of the daemon.
    pub fn right(&self, peer: &PeerIds, own: u32) -> Option<Right> {
        let is_member = |group: Option<u32>| {
            group.is_some_and(|group| peer.group == group || peer.groups.contains(&group))
        };
        match () {
            () if peer.user == 0 || peer.user == own => Some(Right::Operate),
            () if is_member(self.operate) => Some(Right::Operate),
            () if is_member(self.read) => Some(Right::Read),
            () => None,
        }
    }

    /// The mode of the socket, and its group. The kernel lets one group connect. For a second one everyone may, and the
    /// daemon refuses the others.
    pub(super) fn mode(&self) -> (u32, Option<u32>) {
        match (self.operate, self.read) {
            (None, None) => (0o600, None),
            (Some(group), None) | (None, Some(group)) => (0o660, Some(group)),
            (Some(operate), Some(read)) if operate == read => (0o660, Some(operate)),
            (Some(_), Some(_)) => (0o666, None),
        }
    }
}

impl Request {
    /// The right that a client needs.
    pub fn right(&self) -> Right {
        match self {
            Request::Ping
            | Request::List
            | Request::Status(_)
            | Request::Versions(_)
            | Request::History(_)
            | Request::Subscribe(_)
            | Request::Unsubscribe(_) => Right::Read,
            Request::Start(_)
            | Request::Stop(_)
            | Request::Enable(_)
            | Request::Disable(_)
            | Request::Restart(_)
            | Request::Upgrade(_)
            | Request::Install(_)
            | Request::Rollback(_)
            | Request::Cancel(_)
            | Request::Kill(_)
            | Request::Pin(_)
            | Request::Gc(_)
            | Request::Reload(_)
            | Request::Register(_)
            | Request::Unregister(_)
            | Request::Remove(_)
            | Request::Destroy(_) => Right::Operate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_follow_from_the_user_and_all_groups() {
        let access = Access { operate: Some(20), read: Some(30) };
        let peer = |user, group, groups: &[u32]| PeerIds { user, group, groups: groups.to_vec() };
        let (operate, read) = (Some(Right::Operate), Some(Right::Read));
        let table = [
            (peer(0, 0, &[]), operate),
            (peer(7, 7, &[]), operate),
            (peer(8, 8, &[]), None),
            (peer(8, 20, &[]), operate),
            (peer(8, 8, &[1, 20]), operate),
            (peer(8, 30, &[]), read),
            (peer(8, 8, &[30]), read),
            (peer(8, 30, &[20]), operate),
            // A user with the number of a group is no member.
            (peer(20, 8, &[8]), None),
        ];
        for (peer, right) in table {
            assert_eq!(access.right(&peer, 7), right, "{peer:?}");
        }
        let none = Access::default();
        // A group 0 that is not named gives nothing.
        assert_eq!(none.right(&peer(8, 0, &[0]), 7), None);
        assert!(Right::Operate > Right::Read);
    }

    #[test]
    fn the_socket_is_open_as_far_as_needed() {
        let of = |operate, read| Access { operate, read }.mode();
        assert_eq!(of(None, None), (0o600, None));
        assert_eq!(of(Some(2), None), (0o660, Some(2)));
        assert_eq!(of(None, Some(3)), (0o660, Some(3)));
        assert_eq!(of(Some(2), Some(2)), (0o660, Some(2)));
        assert_eq!(of(Some(2), Some(3)), (0o666, None));
    }
}
