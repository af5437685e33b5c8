//! Users and groups of this machine, from `/etc/passwd` and `/etc/group`.
//!
//! The files are read directly: the C library may ask a service on the network, which may not answer.

use std::fs;

use super::listen::IdLookupError;

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The name; empty if only the number is known.
    pub name: String,
    /// The number.
    pub user: u32,
    /// The group, if the account is in `/etc/passwd`.
    pub group: Option<u32>,
    /// The home directory.
    pub home: String,
    /// The shell.
    pub shell: String,
}

/// Finds a user by name or number. A number need not be in `/etc/passwd`. Reads that file.
pub(super) fn account(user: &str) -> Result<Account, IdLookupError> {
    match (parse_account(&text_of(USERS)?, user), user.parse()) {
        (Some(found), _) => Ok(found),
        (None, Ok(user)) => {
            Ok(Account { name: String::new(), user, group: None, home: String::new(), shell: String::new() })
        }
        (None, Err(_)) => Err(IdLookupError::Unknown { file: USERS, what: "user", name: user.to_owned() }),
    }
}

/// Finds a group by name or number. Reads `/etc/group` for a name.
pub(super) fn group(name: &str) -> Result<u32, IdLookupError> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let text = text_of(GROUPS)?;
    let mut groups = text.lines().filter_map(parse_group);
    let found = groups.find(|group| group.name == name).map(|group| group.id);
    found.ok_or_else(|| IdLookupError::Unknown { file: GROUPS, what: "group", name: name.to_owned() })
}

/// The groups that name this user as a member. Reads `/etc/group`.
pub(super) fn groups_of(user: &str) -> Result<Vec<u32>, IdLookupError> {
    let text = text_of(GROUPS)?;
    let groups = text.lines().filter_map(parse_group);
    Ok(groups.filter(|group| group.members.contains(&user)).map(|group| group.id).collect())
}

fn text_of(file: &'static str) -> Result<String, IdLookupError> {
    let bytes = fs::read(file).map_err(|error| IdLookupError::File { file, error })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// passwd(5): name, password, number, group, comment, home, shell.
fn parse_account(text: &str, user: &str) -> Option<Account> {
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, id, group, _, home, shell] = fields[..] else { return None };
        let found = Account {
            name: name.to_owned(),
            user: id.parse().ok()?,
            group: group.parse().ok(),
            home: home.to_owned(),
            shell: shell.to_owned(),
        };
        (name == user || id == user).then_some(found)
    })
}

struct Group<'a> {
    name: &'a str,
    id: u32,
    members: Vec<&'a str>,
}

/// group(5): name, password, number, members.
fn parse_group(line: &str) -> Option<Group<'_>> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, id, members] = fields[..] else { return None };
    Some(Group { name, id: id.parse().ok()?, members: members.split(',').collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_account_files() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv/web:/usr/sbin/nologin\n";
        let web = parse_account(text, "web").unwrap();
        assert_eq!((web.user, web.group, web.home.as_str()), (33, Some(34), "/srv/web"));
        assert_eq!(parse_account(text, "33"), Some(web));
        assert_eq!(parse_account(text, "x"), None);
        let group = parse_group("ssl:x:110:web,db").unwrap();
        assert_eq!((group.name, group.id, group.members), ("ssl", 110, vec!["web", "db"]));
        assert!(parse_group("ssl:x").is_none());
    }

    #[test]
    fn a_number_needs_no_account() {
        assert_eq!(account("0").unwrap().name, "root");
        assert_eq!(account("4000000001").unwrap().group, None);
        assert!(account("no-such-user").unwrap_err().to_string().contains("no user \"no-such-user\""));
        assert_eq!(group("12").unwrap(), 12);
        assert!(group("no-such-group").is_err());
    }
}
