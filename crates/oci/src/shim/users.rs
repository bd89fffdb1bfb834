//! Who a process runs as: names and numbers, looked up in the container's own /etc/passwd and
//! /etc/group.

use std::fmt;
use std::io::Read;
use std::path::Path;

use crate::plan::UserPlan;

/// Bytes read of each file, at most.
const MAX_FILE: u64 = 4 << 20;

/// A user as the kernel wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// A name that the container's files do not have.
#[derive(Debug, PartialEq, Eq)]
pub enum UnknownName {
    User(String),
    Group(String),
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            UnknownName::User(name) => {
                write!(f, "{name}: no matching entries in passwd file")
            }
            UnknownName::Group(name) => {
                write!(f, "{name}: no matching entries in group file")
            }
        }
    }
}

/// Looks `plan` up in the files under `root`.
pub fn resolve(root: &Path, plan: &UserPlan) -> Result<Resolved, UnknownName> {
    lookup(
        plan,
        &read(&root.join("etc/passwd")),
        &read(&root.join("etc/group")),
    )
}

fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn lookup(plan: &UserPlan, passwd: &str, group: &str) -> Result<Resolved, UnknownName> {
    let (user, wanted_group) = match plan.user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (plan.user.as_str(), None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| {
            fields.len() >= 6 && (fields[0] == user || fields[2] == user) && !fields[0].is_empty()
        });
    let (name, uid, own_gid, home) = match &entry {
        Some(fields) => (
            fields[0],
            fields[2].parse().ok(),
            fields[3].parse().ok(),
            fields[5],
        ),
        None => ("", user.parse().ok(), None, "/"),
    };
    let uid = uid.ok_or_else(|| UnknownName::User(user.to_owned()))?;
    let named_gid = match wanted_group {
        Some(wanted) if !wanted.is_empty() => {
            Some(group_id(group, wanted).ok_or_else(|| UnknownName::Group(wanted.to_owned()))?)
        }
        _ => None,
    };
    let gid = plan.gid.or(named_gid).or(own_gid).unwrap_or(0);
    let mut groups = vec![gid];
    groups.extend(&plan.groups);
    if plan.merge_image_groups && !name.is_empty() {
        groups.extend(groups_of(group, name));
    }
    groups.sort_unstable();
    groups.dedup();
    let home = if home.is_empty() { "/" } else { home };
    Ok(Resolved {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

fn group_id(group: &str, wanted: &str) -> Option<u32> {
    group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 3 && fields[0] == wanted)
        .and_then(|fields| fields[2].parse().ok())
        .or_else(|| wanted.parse().ok())
}

fn groups_of<'a>(group: &'a str, name: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split(':').collect();
        let member = fields.get(3)?.split(',').any(|member| member == name);
        member.then(|| fields[2].parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1001:1002::/srv/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app,other\nweb:x:33:app\n";

    fn plan(user: &str) -> UserPlan {
        UserPlan {
            user: user.into(),
            merge_image_groups: true,
            ..UserPlan::default()
        }
    }

    #[test]
    fn names_and_numbers() {
        let table = [
            ("", (0, 0, vec![0], "/root")),
            ("app", (1001, 1002, vec![33, 50, 1002], "/srv/app")),
            ("1001", (1001, 1002, vec![33, 50, 1002], "/srv/app")),
            ("app:web", (1001, 33, vec![33, 50], "/srv/app")),
            ("999", (999, 0, vec![0], "/")),
            ("999:7", (999, 7, vec![7], "/")),
        ];
        for (user, (uid, gid, groups, home)) in table {
            let home = home.to_owned();
            let expected = Resolved {
                uid,
                gid,
                groups,
                home,
            };
            assert_eq!(lookup(&plan(user), PASSWD, GROUP), Ok(expected), "{user}");
        }
    }

    #[test]
    fn an_explicit_group_wins_and_supplements_are_added() {
        let plan = UserPlan {
            gid: Some(5),
            groups: vec![2000],
            ..plan("app")
        };
        let resolved = lookup(&plan, PASSWD, GROUP).unwrap();
        assert_eq!((resolved.gid, resolved.groups), (5, vec![5, 33, 50, 2000]));
    }

    #[test]
    fn unknown_names_are_errors() {
        assert_eq!(
            lookup(&plan("nobody"), PASSWD, GROUP),
            Err(UnknownName::User("nobody".into()))
        );
        assert_eq!(
            lookup(&plan("app:nogroup"), PASSWD, GROUP),
            Err(UnknownName::Group("nogroup".into()))
        );
    }
}
