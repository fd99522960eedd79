//! Users and groups as the container's own files name them.

use std::io;
use std::path::Path;

use super::rootfs;

/// A user as the kernel knows it, and its home.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, in ascending order.
    pub groups: Vec<u32>,
    /// Home directory; `/` for a user that the files do not know.
    pub home: String,
}

/// A name that the container's files do not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// No such group.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
}

/// The container's `/etc/passwd` and `/etc/group`, as far as they exist.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads both files inside `root`; links in it cannot lead out of it. Missing files are empty ones.
    ///
    /// # Errors
    /// When a file exists but cannot be read.
    pub fn read(root: &Path) -> io::Result<Self> {
        let read = |path| match rootfs::read_in(root, Path::new(path)) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(String::new()),
            other => other.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        };
        Ok(Self { passwd: read("etc/passwd")?, group: read("etc/group")? })
    }

    /// Resolves `user[:group]` and supplementary groups, names or numbers; empty text is root.
    ///
    /// # Errors
    /// Names that the files do not have. Unknown numbers are taken as they are.
    pub fn resolve(&self, user: &str, extra: &[String]) -> Result<User, UserError> {
        let (user, group) = user.split_once(':').map_or((user, ""), |(u, g)| (u, g));
        let user = if user.is_empty() { "0" } else { user };
        let entry =
            lines(&self.passwd, 7).find(|f| f[0] == user).or_else(|| lines(&self.passwd, 7).find(|f| f[2] == user));
        let (uid, own_gid, home, name) = match &entry {
            Some(f) => (f[2].parse().ok(), f[3].parse().unwrap_or(0), f[5], f[0]),
            None => (user.parse().ok(), 0, "/", ""),
        };
        let uid = uid.ok_or_else(|| UserError::NoUser(user.to_owned()))?;
        let gid = if group.is_empty() { own_gid } else { self.gid(group)? };
        let member = |f: &Vec<&str>| !name.is_empty() && group.is_empty() && f[3].split(',').any(|m| m == name);
        let mut groups: Vec<u32> = lines(&self.group, 4).filter(member).filter_map(|f| f[2].parse().ok()).collect();
        for name in extra {
            groups.push(self.gid(name)?);
        }
        // Docker lists the main group among the supplementary ones since CVE-2022-36109.
        groups.push(gid);
        groups.sort_unstable();
        groups.dedup();
        Ok(User { uid, gid, groups, home: if home.is_empty() { "/".to_owned() } else { home.to_owned() } })
    }

    fn gid(&self, group: &str) -> Result<u32, UserError> {
        let known = lines(&self.group, 3).find(|f| f[0] == group).and_then(|f| f[2].parse().ok());
        known.or_else(|| group.parse().ok()).ok_or_else(|| UserError::NoGroup(group.to_owned()))
    }
}

fn lines(text: &str, fields: usize) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(move |f| f.len() >= fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n# a comment\nweb:x:33:33:web:/var/www:/bin/false\n".into(),
            group: "root:x:0:\nweb:x:33:\naudio:x:29:root,web\n".into(),
        }
    }

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<User, UserError> {
        Ok(User { uid, gid, groups: groups.to_vec(), home: home.into() })
    }

    #[test]
    fn names_numbers_and_groups_resolve_as_in_docker() {
        let a = accounts();
        assert_eq!(a.resolve("", &[]), user(0, 0, &[0, 29], "/root"));
        assert_eq!(a.resolve("web", &[]), user(33, 33, &[29, 33], "/var/www"));
        assert_eq!(a.resolve("33:audio", &[]), user(33, 29, &[29], "/var/www"));
        assert_eq!(a.resolve("1000", &["audio".into(), "7".into()]), user(1000, 0, &[0, 7, 29], "/"));
        assert_eq!(a.resolve("1000:1000", &[]), user(1000, 1000, &[1000], "/"));
        assert_eq!(a.resolve("bob", &[]), Err(UserError::NoUser("bob".into())));
        assert_eq!(a.resolve("web:bobs", &[]), Err(UserError::NoGroup("bobs".into())));
    }
}
