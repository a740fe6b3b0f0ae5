//! Who an instance runs as, looked up on this host.

use std::ffi::CString;
use std::path::PathBuf;

use common::kind::Execution;
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgrouplist};
use shim::order;

use super::config::Config;
use crate::drivers::Error;

/// What the kernel takes for "leave it as it is" where a user or a group is set: the instance would go on as root.
const NO_ID: u32 = u32::MAX;

/// Who an instance runs as.
#[derive(Debug, Default)]
pub(super) struct Identity {
    /// What the shim is told; `None` for the worker's own user and group.
    pub(super) user: Option<order::User>,
    /// Name of a user other than the worker's, if it has one.
    pub(super) name: Option<String>,
    /// Home of a user other than the worker's.
    pub(super) home: Option<PathBuf>,
}

impl Identity {
    /// Looks up what a specification asks for. Nothing gets the user or the group of root without `allow_root`.
    ///
    /// # Errors
    /// [`Error::Refused`] with what this host does not know, or the worker may not do.
    pub(super) fn of(execution: &Execution, config: &Config) -> Result<Self, Error> {
        let own = (geteuid(), getegid());
        let default = config.default_user.as_deref().filter(|_| own.0.is_root());
        let user = execution.user.as_deref().or(default).map(find_user).transpose()?;
        let group = execution.group.as_deref().map(find_group).transpose()?;
        let uid = user.as_ref().map_or(own.0, |(uid, _)| *uid);
        let mend = "or allow that with `process.allow_root` in the settings of the worker";
        if uid.is_root() && !config.allow_root {
            return Err(Error::Refused(format!("it would run as root: give it another `user`, {mend}")));
        }
        // Only root can give more than the usual share, to the disadvantage of everything else on the host.
        if execution.nice.is_some_and(|nice| nice < 0) && own.0.is_root() && !config.allow_root {
            return Err(Error::Refused(format!("its `nice` is below 0: make it 0 or more, {mend}")));
        }
        let account = user.and_then(|(_, account)| account);
        let gid = group.or(account.as_ref().map(|account| account.gid)).or((uid == own.0).then_some(own.1));
        let Some(gid) = gid else {
            return Err(Error::Refused(format!("user {uid} is not known on this host, and no `group` is given")));
        };
        // A worker of another user may have been given that group, and so may its instances have it.
        if gid.as_raw() == 0 && own.0.is_root() && !config.allow_root {
            return Err(Error::Refused(format!("it would run in the group of root: give it another `group`, {mend}")));
        }
        if (uid, gid) == own {
            return Ok(Self::default());
        }
        if !own.0.is_root() {
            let text = format!("the worker runs as user {} and may start nothing as another user or group", own.0);
            return Err(Error::Refused(text));
        }
        let groups = account.as_ref().map_or_else(|| vec![gid], |account| groups_of(account, gid));
        // An account of this host may be in the group of root: what a document names gets no share in that.
        let groups = groups.into_iter().map(Gid::as_raw).filter(|gid| *gid != 0 || config.allow_root).collect();
        let user = Some(order::User { uid: uid.as_raw(), gid: gid.as_raw(), groups });
        let (name, home) = match account {
            Some(account) => (Some(account.name), Some(account.dir)),
            // Not that of root.
            None => (None, (uid != own.0).then(|| PathBuf::from("/"))),
        };
        Ok(Self { user, name, home })
    }
}

fn find_user(name: &str) -> Result<(Uid, Option<User>), Error> {
    let failed = |error| Error::Failed(format!("look up user {name}: {error}"));
    match name.parse() {
        Ok(NO_ID) => Err(Error::Refused(format!("user {name} stands for none"))),
        Ok(uid) => {
            let uid = Uid::from_raw(uid);
            Ok((uid, User::from_uid(uid).map_err(failed)?))
        }
        Err(_) => match User::from_name(name).map_err(failed)? {
            Some(user) => Ok((user.uid, Some(user))),
            None => Err(Error::Refused(format!("there is no user `{name}` on this host"))),
        },
    }
}

fn find_group(name: &str) -> Result<Gid, Error> {
    match name.parse() {
        Ok(NO_ID) => return Err(Error::Refused(format!("group {name} stands for none"))),
        Ok(gid) => return Ok(Gid::from_raw(gid)),
        Err(_) => {}
    }
    let found = Group::from_name(name).map_err(|error| Error::Failed(format!("look up group {name}: {error}")))?;
    found.map(|group| group.gid).ok_or_else(|| Error::Refused(format!("there is no group `{name}` on this host")))
}

/// The groups of a user; its own alone where they cannot be listed.
fn groups_of(account: &User, gid: Gid) -> Vec<Gid> {
    let name = CString::new(account.name.as_str()).ok();
    name.and_then(|name| getgrouplist(&name, gid).ok()).unwrap_or_else(|| vec![gid])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(allow_root: bool) -> Config {
        Config { allow_root, ..Config::default() }
    }

    fn refusal(execution: &Execution, allow_root: bool) -> String {
        match Identity::of(execution, &with(allow_root)) {
            Err(Error::Refused(text)) => text,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn a_nice_value_below_0_is_given_by_root_alone() {
        let mut execution = asked("daemon", "");
        execution.nice = Some(-1);
        if geteuid().is_root() {
            assert!(refusal(&execution, false).contains("`nice` is below 0"));
            assert!(Identity::of(&execution, &with(true)).is_ok());
        }
        execution.nice = Some(1);
        assert_eq!(Identity::of(&execution, &with(false)).is_ok(), geteuid().is_root());
    }

    fn asked(user: &str, group: &str) -> Execution {
        let given = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        Execution { user: given(user), group: given(group), ..Execution::default() }
    }

    #[test]
    fn nothing_becomes_root_unless_that_is_allowed() {
        assert!(refusal(&asked("root", ""), false).contains("process.allow_root"));
        assert!(refusal(&asked("0", "65534"), false).contains("process.allow_root"));
        let own = Identity::of(&Execution::default(), &with(true)).expect("its own user");
        assert!(own.user.is_none() && own.name.is_none() && own.home.is_none());
        assert_eq!(Identity::of(&Execution::default(), &with(false)).is_err(), geteuid().is_root());
        if geteuid().is_root() {
            assert!(refusal(&asked("nobody", "0"), false).starts_with("it would run in the group of root"));
            assert!(Identity::of(&asked("nobody", "0"), &with(true)).is_ok());
        }
    }

    #[test]
    fn what_names_no_user_runs_as_the_one_of_the_settings_instead_of_root() {
        let config = Config { default_user: Some("nobody".into()), ..with(false) };
        let found = Identity::of(&Execution::default(), &config).expect("not root");
        if geteuid().is_root() {
            assert_eq!(found.name.as_deref(), Some("nobody"));
            assert!(Identity::of(&asked("root", ""), &config).is_err(), "what is named counts");
        } else {
            assert!(found.user.is_none(), "it counts for root alone");
        }
    }

    #[test]
    fn what_this_host_does_not_know_is_named() {
        assert_eq!(refusal(&asked("no-such-user", ""), true), "there is no user `no-such-user` on this host");
        assert_eq!(refusal(&asked("", "no-such-group"), true), "there is no group `no-such-group` on this host");
        assert!(refusal(&asked("4000000", ""), true).contains("no `group` is given"));
        assert_eq!(refusal(&asked("4294967295", "7"), false), "user 4294967295 stands for none");
        assert_eq!(refusal(&asked("nobody", "4294967295"), false), "group 4294967295 stands for none");
    }

    #[test]
    fn only_root_can_make_another_user() {
        let nobody = asked("nobody", "");
        if geteuid().is_root() {
            let found = Identity::of(&nobody, &with(false)).expect("part of every system");
            let user = found.user.expect("another one");
            assert!(user.uid > 0 && user.groups.contains(&user.gid), "{user:?}");
            assert_eq!(found.name.as_deref(), Some("nobody"));
            let found = Identity::of(&asked("4000000", "7"), &with(false)).expect("numbers are enough");
            assert_eq!((found.name, found.home), (None, Some("/".into())));
            assert_eq!(found.user, Some(order::User { uid: 4_000_000, gid: 7, groups: vec![7] }));
        } else if geteuid() != find_user("nobody").expect("part of every system").0 {
            assert!(refusal(&nobody, false).contains("may start nothing as another user"));
        }
    }
}
