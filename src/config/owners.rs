//! Tells whether other users could have written what decides here, or could put something else in its place: by owner and mode
//! of a file and of every folder above it, as OpenSSH does with `StrictModes` (`sshd_config(5)`).
//!
//! | | may be |
//! |---|---|
//! | owner | root, the user that runs this, and for root whom `sudo` runs it for |
//! | mode | writable by nobody else; by a group only if its one member is the owner (users' own groups, `umask 002`) |
//! | folders above | the same, and writable by all where the sticky bit keeps others' hands off (`/tmp`) |
//!
//! Of folders above logs, their state and its keys it is asked only whether everybody may write there.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use super::approvals::files;
use super::reader::into_result;
use super::{Config, ConfigError};

/// Users whose files are taken for what one wrote oneself.
#[derive(Clone, Debug)]
pub struct Owners(Vec<u32>);

const GROUP: u32 = 0o020;
const OTHERS: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Groups with one member, and that member. Read while the files may be: in the sandbox they may not.
static PRIVATE: LazyLock<HashMap<u32, u32>> = LazyLock::new(|| {
    let [users, groups] = ["/etc/passwd", "/etc/group"].map(|path| std::fs::read(path).unwrap_or_default());
    private_groups(&String::from_utf8_lossy(&users), &String::from_utf8_lossy(&groups))
});

impl Owners {
    /// Root, the user that runs this, and for root whom `sudo` runs it for.
    #[must_use]
    pub fn here() -> Self {
        LazyLock::force(&PRIVATE);
        let own = rustix::process::geteuid();
        let mut users = vec![0, own.as_raw()];
        // Only root believes it, and root could have said anything.
        if own.is_root() {
            users.extend(std::env::var("SUDO_UID").ok().and_then(|user| user.parse::<u32>().ok()));
        }
        Self(users)
    }

    /// And whoever owns this, too.
    #[must_use]
    pub fn and_of(mut self, path: &Path) -> Self {
        self.0.extend(std::fs::metadata(path).ok().map(|metadata| metadata.uid()));
        self
    }

    /// Whether a user is one of them.
    #[must_use]
    pub fn has(&self, user: u32) -> bool {
        self.0.contains(&user)
    }

    /// What is wrong with a file's, or a folder's, own owner and mode.
    pub fn check(&self, path: &Path, found: &Metadata) -> Result<(), String> {
        let shown = path.display();
        if !self.has(found.uid()) {
            let own = rustix::process::geteuid().as_raw();
            return Err(format!(
                "{shown} belongs to user {}, who is neither root nor the user that runs this ({own}): run `chown root {shown}`",
                found.uid()
            ));
        }
        if may_others_write(found) {
            return Err(format!(
                "{shown} may be changed by other users (mode {:04o}): run `chmod go-w {shown}`",
                found.mode() & 0o7777
            ));
        }
        Ok(())
    }

    /// What is wrong with the folders on the way to a path; the path goes before it.
    pub fn check_above(&self, path: &Path) -> Result<(), String> {
        let Way { folders, links } = Way::to(path)?;
        check_modes(&folders, may_others_write)?;
        // The sticky bit keeps others' hands off it, but not its owner's.
        if let Some((link, found)) = links.iter().find(|(_, found)| !self.has(found.uid())) {
            let (link, user) = (link.display(), found.uid());
            return Err(format!(
                "is reached by the link {link} of user {user}, who may lead it elsewhere: run `chown -h root {link}`"
            ));
        }
        for (folder, found) in folders {
            if !self.has(found.uid()) {
                let (folder, user) = (folder.display(), found.uid());
                return Err(format!(
                    "lies in {folder}, where user {user} may put another file in its place, whose folder that is: run `chown root {folder}`, or name another place"
                ));
            }
        }
        Ok(())
    }

    /// Both. What is not there is for others to tell.
    fn check_all(&self, path: &Path) -> Result<(), String> {
        let Ok(found) = std::fs::metadata(path) else { return Ok(()) };
        self.check(path, &found)?;
        self.check_above(path).map_err(|what| format!("{} {what}", path.display()))
    }
}

/// Whether anybody but the owner (and root) may write there, put files into it or take them away.
#[must_use]
pub fn may_others_write(found: &Metadata) -> bool {
    let mode = found.mode();
    mode & OTHERS != 0 || mode & GROUP != 0 && PRIVATE.get(&found.gid()) != Some(&found.uid())
}

/// Each group that one user alone is in, by `passwd(5)` and `group(5)`. Members that LDAP or
/// the like adds are not seen.
fn private_groups(users: &str, groups: &str) -> HashMap<u32, u32> {
    let mut names = HashMap::new();
    let mut members: HashMap<u32, Vec<u32>> = HashMap::new();
    for line in users.lines() {
        let mut fields = line.split(':');
        let (name, _, user, group) = (fields.next(), fields.next(), fields.next(), fields.next());
        let number = |field: Option<&str>| field.and_then(|field| field.parse::<u32>().ok());
        if let (Some(name), Some(user), Some(group)) = (name, number(user), number(group)) {
            names.insert(name, user);
            members.entry(group).or_default().push(user);
        }
    }
    for line in groups.lines() {
        let fields: Vec<_> = line.split(':').collect();
        if let [_, _, group, listed] = fields[..]
            && let Ok(group) = group.parse()
        {
            // One that has no number here may be anybody.
            let listed = listed.split(',').filter(|name| !name.is_empty());
            let listed = listed.map(|name| names.get(name).copied().unwrap_or(u32::MAX));
            members.entry(group).or_default().extend(listed);
        }
    }
    let alone = |(group, users): (u32, Vec<u32>)| {
        let first = *users.first()?;
        users.iter().all(|&user| user == first).then_some((group, first))
    };
    members.into_iter().filter_map(alone).collect()
}

impl Config {
    /// What other users could have written of what the daemon goes by: its settings, if they are a file, and its approvals.
    /// Keys are looked at where they are read.
    pub fn check_owners(&self, settings: Option<&Path>) -> Result<(), ConfigError> {
        let owners = Owners::here();
        let mut problems: Vec<_> = settings.into_iter().filter_map(|path| owners.check_all(path).err()).collect();
        if let Some(folder) = self.approvals_folder()
            && folder.is_dir()
        {
            problems.extend(owners.check_all(&folder).err());
            for file in files(&folder)? {
                let is_link = file.symlink_metadata().is_ok_and(|found| found.is_symlink());
                let checked = match std::fs::metadata(&file) {
                    Ok(found) if !is_link => owners.check(&file, &found),
                    _ => owners.check_all(&file),
                };
                problems.extend(checked.err());
            }
        }
        into_result(problems)
    }
}

/// Refuses a folder of the log or its state, whoever owns it, where others may write, or that anybody may take away: evidence
/// would go, or a key.
pub fn check_written(folder: &Path) -> Result<(), ConfigError> {
    let Ok(found) = std::fs::metadata(folder) else { return Ok(()) };
    let above = anybody_above(folder).map_err(|what| format!("{} {what}", folder.display()));
    Owners::here().and_of(folder).check(folder, &found).and(above).map_err(|what| {
        ConfigError(format!(
            "{what}; the log and its key must be safe there, or records.dir and state.dir name other folders"
        ))
    })
}

/// Whether anybody at all could put something else in the place of what a path names. Groups are the system's own affair:
/// `/var/log` has one here and there.
pub fn anybody_above(path: &Path) -> Result<(), String> {
    check_modes(&Way::to(path)?.folders, |found| found.mode() & OTHERS != 0)
}

fn check_modes(folders: &[(PathBuf, Metadata)], is_shared: impl Fn(&Metadata) -> bool) -> Result<(), String> {
    for (folder, found) in folders {
        if is_shared(found) && found.mode() & STICKY == 0 {
            let (folder, mode) = (folder.display(), found.mode() & 0o7777);
            return Err(format!(
                "lies in {folder}, where other users may put another file in its place (mode {mode:04o}): run `chmod go-w {folder}`"
            ));
        }
    }
    Ok(())
}

/// As many links may be on the way to a file: `path_resolution(7)`.
const LINKS: u32 = 40;

/// What is passed on the way to what a path names.
struct Way {
    /// Every folder in which a name is looked up, the last first: where a link lies, somebody could lay another.
    folders: Vec<(PathBuf, Metadata)>,
    /// Links that lie where others may write.
    links: Vec<(PathBuf, Metadata)>,
}

impl Way {
    fn to(path: &Path) -> Result<Self, String> {
        let fail = |at: &Path| {
            let at = at.display().to_string();
            move |error: io::Error| format!("cannot be looked at: {at}: {error}")
        };
        let steps = |path: &Path| path.components().rev().map(|step| step.as_os_str().to_owned()).collect::<Vec<_>>();
        let mut left = steps(&std::path::absolute(path).map_err(fail(path))?);
        let (mut here, mut followed) = (PathBuf::new(), 0);
        let (mut folders, mut links) = (Vec::new(), Vec::new());
        while let Some(step) = left.pop() {
            match Path::new(&step).components().next() {
                Some(Component::RootDir) => here = PathBuf::from("/"),
                // No link is left on the way here.
                Some(Component::ParentDir) => _ = here.pop(),
                Some(Component::Normal(name)) => {
                    let folder = std::fs::metadata(&here).map_err(fail(&here))?;
                    let is_shared = may_others_write(&folder);
                    folders.push((here.clone(), folder));
                    here.push(name);
                    let Ok(found) = std::fs::symlink_metadata(&here) else { continue };
                    if found.is_symlink() {
                        followed += 1;
                        if followed > LINKS {
                            return Err(fail(&here)(rustix::io::Errno::LOOP.into()));
                        }
                        left.extend(steps(&std::fs::read_link(&here).map_err(fail(&here))?));
                        if is_shared {
                            links.push((here.clone(), found));
                        }
                        here.pop();
                    }
                }
                _ => {}
            }
        }
        folders.reverse();
        Ok(Self { folders, links })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_private_that_one_user_alone_is_in() {
        let users = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:\nbob:x:1001:1001::/:\ncat:x:1002:100::/:\ndan:x:1003:100::/:\ntoor:x:0:0::/:\nbroken\nx:x:y:z\n";
        let groups = "root:x:0:\nann:x:1000:\nbob:x:1001:ann\nusers:x:100:\nstaff:x:50:\nown:x:60:ann,ann\nfar:x:70:eve\nboth:x:80:ann,eve\nbroken:x\n";
        let mut private: Vec<_> = private_groups(users, groups).into_iter().collect();
        private.sort_unstable();
        // A user of another directory is nobody's equal: the number that stands for it owns nothing.
        assert_eq!(private, [(0, 0), (60, 1000), (70, u32::MAX), (1000, 1000)]);
    }
}
