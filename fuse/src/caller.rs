//! Who asks: user, group and supplementary groups of the process behind a request.
//!
//! The kernel sends user and primary group with every request, and it has checked permissions already
//! (`default_permissions`) with all groups of the process. Meta checks again; it is asked without
//! supplementary groups first, and only if it refuses or the groups matter for what happens they are read from
//! `/proc` and kept for a moment.

use ember_fuse_kernel::Request;
use ember_types::Instant;
use ember_types::file::Credentials;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long groups of a process are believed.
const KEPT: Duration = Duration::from_secs(1);
/// Processes kept at most.
const PROCESSES_MAX: usize = 256;

/// The process behind a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// User for file access.
    pub(crate) uid: u32,
    /// Group for file access.
    pub(crate) gid: u32,
    /// Thread id; 0 if it can't be seen from here or there is none.
    pub(crate) pid: u32,
    /// Supplementary groups that came with the request.
    hint: Vec<u32>,
}

impl Caller {
    pub(crate) fn of(request: &Request<'_>) -> Self {
        let header = &request.header;
        let hint = request.supplementary_groups().collect();
        Self { uid: header.uid, gid: header.gid, pid: header.pid, hint }
    }

    fn with(&self, groups: Vec<u32>) -> Credentials {
        Credentials { uid: self.uid, gid: self.gid, groups }
    }
}

/// Whether all groups of the process are in the credentials.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Groups {
    /// Perhaps not.
    Partial,
    /// Yes, or they don't matter.
    Complete,
}

type Process = (u32, u32, u32);

/// Groups of processes, of one reactor.
#[derive(Debug, Default)]
pub(crate) struct GroupCache(RefCell<BTreeMap<Process, (Instant, Vec<u32>)>>);

impl GroupCache {
    /// Credentials without asking anybody.
    pub(crate) fn quick(&self, caller: &Caller, now: Instant) -> (Credentials, Groups) {
        if caller.uid == 0 || caller.pid == 0 {
            return (caller.with(caller.hint.clone()), Groups::Complete);
        }
        let cache = self.0.borrow();
        match cache.get(&(caller.pid, caller.uid, caller.gid)) {
            Some((since, groups)) if now.since(*since) < KEPT => {
                (caller.with(groups.clone()), Groups::Complete)
            }
            _ => (caller.with(caller.hint.clone()), Groups::Partial),
        }
    }

    /// Credentials with all groups.
    pub(crate) fn complete(&self, caller: &Caller, now: Instant) -> Credentials {
        let (quick, groups) = self.quick(caller, now);
        if groups == Groups::Complete {
            return quick;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", caller.pid)).unwrap_or_default();
        let groups = groups_of(&status, caller.uid).unwrap_or_else(|| caller.hint.clone());
        let mut cache = self.0.borrow_mut();
        cache.retain(|_, (since, _)| now.since(*since) < KEPT);
        if cache.len() < PROCESSES_MAX {
            cache.insert((caller.pid, caller.uid, caller.gid), (now, groups.clone()));
        }
        caller.with(groups)
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

/// The supplementary groups in `/proc/PID/status`, if that process has this user for file access.
fn groups_of(status: &str, uid: u32) -> Option<Vec<u32>> {
    let file_access = field(status, "Uid")?.split_whitespace().nth(3)?;
    if file_access.parse() != Ok(uid) {
        return None;
    }
    field(status, "Groups")?.split_whitespace().map(|group| group.parse().ok()).collect()
}

/// Whether a thread has been killed and only waits for its request to end.
pub(crate) fn is_killed(pid: u32) -> bool {
    const SIGKILL: u64 = 1 << 8;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |name| field(&status, name).and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ["SigPnd", "ShdPnd"].into_iter().filter_map(pending).any(|mask| mask & SIGKILL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tcat\nUid:\t1000\t1000\t1000\t1001\nGid:\t100\t100\t100\t100\n\
                          Groups:\t4 24 1000 \nSigPnd:\t0000000000000000\n";

    #[test]
    fn groups_belong_to_the_user_that_asks() {
        assert_eq!(groups_of(STATUS, 1001), Some(vec![4, 24, 1000]));
        assert_eq!(groups_of(STATUS, 1000), None, "another user: the number was used again");
        assert_eq!(groups_of("", 0), None);
        assert_eq!(groups_of("Uid:\t0\t0\t0\t0\nGroups:\t\n", 0), Some(vec![]));
    }

    #[test]
    fn groups_are_kept_for_a_moment() {
        let cache = GroupCache::default();
        let caller = Caller { uid: 5, gid: 6, pid: u32::MAX, hint: vec![9] };
        let now = Instant(0) + Duration::from_secs(5);
        assert_eq!(cache.quick(&caller, now), (caller.with(vec![9]), Groups::Partial));
        assert_eq!(cache.complete(&caller, now), caller.with(vec![9]), "no such process");
        assert_eq!(cache.quick(&caller, now).1, Groups::Complete);
        assert_eq!(cache.quick(&caller, now + KEPT).1, Groups::Partial);
        let root = Caller { uid: 0, ..caller };
        assert_eq!(cache.quick(&root, now).1, Groups::Complete);
    }

    #[test]
    fn this_process_is_not_killed() {
        assert!(!is_killed(std::process::id()));
        assert!(!is_killed(u32::MAX));
    }
}
