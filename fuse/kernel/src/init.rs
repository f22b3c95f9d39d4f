//! Negotiation: what the kernel offers, what the server wants, what both agreed on.

use crate::abi::{InitIn, InitOut, KERNEL_MINOR_MAX, KERNEL_MINOR_MIN, KERNEL_VERSION, init};
use crate::error::Error;

/// Directory listings with attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readdirplus {
    /// READDIR only.
    Off,
    /// The kernel asks for attributes when it sees that they are used (`ls -l`).
    #[default]
    Auto,
    /// READDIRPLUS only.
    Always,
}

/// Who clears set-user-id, set-group-id and capabilities when a file is written, truncated or given away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KillPriv {
    /// The kernel, with a SETATTR of the mode.
    Kernel,
    /// The server: on a change of owner always, on WRITE, SETATTR of the size, OPEN and CREATE with
    /// truncation when the request says so (`WRITE_KILL_SUIDGID`, `fattr::KILL_SUIDGID`,
    /// `OPEN_KILL_SUIDGID`). Saves the kernel a look at an xattr before each write.
    #[default]
    Server,
}

/// What the server wants. [`InitOptions::default`] is what a coherent network file system wants.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Largest WRITE and READ, in bytes; rounded to whole pages, at least one.
    pub max_write: u32,
    /// Most read-ahead, in bytes; the kernel's own limit holds as well.
    pub max_readahead: u32,
    /// Most requests in the background (read-ahead, asynchronous direct I/O, write-back).
    pub max_background: u16,
    /// Listings with attributes.
    pub readdirplus: Readdirplus,
    /// The kernel delays and merges writes, and owns size and times of the file meanwhile. Off by default: it
    /// weakens what other clients see.
    pub writeback_cache: bool,
    /// The kernel drops a file's pages when its size or time of change has changed on the server.
    pub auto_inval_data: bool,
    /// Lookups and listings of one directory may run at the same time.
    pub parallel_dirops: bool,
    /// OPEN and CREATE carry O_TRUNC and the server truncates.
    pub atomic_o_trunc: bool,
    /// The server applies the umask that comes with the request (needed for default ACLs, and honest either
    /// way). Off: the kernel applies it to the mode.
    pub dont_mask: bool,
    /// mmap with MAP_SHARED works on files opened with `fopen::DIRECT_IO` (Linux 6.6).
    pub direct_io_allow_mmap: bool,
    /// Who clears set-id bits.
    pub killpriv: KillPriv,
    /// Targets of symbolic links are kept until invalidated.
    pub cache_symlinks: bool,
    /// Requests that make an inode carry the caller's supplementary group that equals the directory's
    /// (Linux 6.4).
    pub create_supp_group: bool,
    /// The server answers LOOKUP of `.` and `..` for every node that ever existed, so that NFS export and
    /// open_by_handle_at work after the kernel forgot the node. Only if that is true.
    pub export_support: bool,
    /// fcntl locks are the server's business (GETLK, SETLK, SETLKW). Off: local to this machine.
    pub posix_locks: bool,
    /// flock locks are the server's business. Off: local to this machine.
    pub flock_locks: bool,
    /// Tells the kernel that the server uses splice(2) on the device. [`crate::DevChannel`] does not.
    pub splice: bool,
    /// Granularity of the server's times, in nanoseconds.
    pub time_gran_ns: u32,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            max_write: 1 << 20,
            max_readahead: 4 << 20,
            max_background: 128,
            readdirplus: Readdirplus::Auto,
            writeback_cache: false,
            auto_inval_data: true,
            parallel_dirops: true,
            atomic_o_trunc: true,
            dont_mask: true,
            direct_io_allow_mmap: true,
            killpriv: KillPriv::Server,
            cache_symlinks: false,
            create_supp_group: true,
            export_support: false,
            posix_locks: false,
            flock_locks: false,
            splice: false,
            time_gran_ns: 1,
        }
    }
}

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Minor version of the ABI in use.
    pub minor: u32,
    /// Capabilities in use, bits of [`crate::abi::init`].
    pub flags: u64,
    /// Capabilities that the kernel offered.
    pub offered: u64,
    /// Largest WRITE, in bytes; also the largest READ if the mount's `max_read` does not say less.
    pub max_write: u32,
    /// Most read-ahead, in bytes.
    pub max_readahead: u32,
}

impl Agreed {
    /// Whether all of `flags` are in use.
    pub fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }
}

/// The next step after an INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Negotiation {
    /// Send this answer; requests follow.
    Done(InitOut, Agreed),
    /// Send this answer; the kernel, which speaks a newer major version, then sends another INIT.
    Again(InitOut),
}

/// Decides the answer to an INIT. If it fails, answer EPROTO and give up the mount.
pub fn negotiate(offer: &InitIn, want: &InitOptions) -> Result<Negotiation, Error> {
    if offer.major > KERNEL_VERSION {
        let out = InitOut { major: KERNEL_VERSION, minor: KERNEL_MINOR_MAX, ..InitOut::default() };
        return Ok(Negotiation::Again(out));
    }
    if offer.major < KERNEL_VERSION || offer.minor < KERNEL_MINOR_MIN {
        return Err(Error::KernelTooOld { major: offer.major, minor: offer.minor });
    }
    let mut offered = u64::from(offer.flags);
    if offered & init::INIT_EXT != 0 {
        offered |= u64::from(offer.flags2) << 32;
    }
    let flags = wanted_flags(want, offered) & offered;
    let page = rustix::param::page_size() as u32;
    // Without MAX_PAGES the kernel takes 32 pages at most.
    let most_pages = if flags & init::MAX_PAGES != 0 { u32::from(u16::MAX) } else { 32 };
    let pages = want.max_write.div_ceil(page).clamp(1, most_pages);
    let agreed = Agreed {
        minor: offer.minor.min(KERNEL_MINOR_MAX),
        flags,
        offered,
        max_write: pages * page,
        max_readahead: want.max_readahead.min(offer.max_readahead),
    };
    let out = InitOut {
        major: KERNEL_VERSION,
        minor: agreed.minor,
        max_readahead: agreed.max_readahead,
        flags: flags as u32,
        max_background: want.max_background.max(1),
        congestion_threshold: (want.max_background / 4 * 3).max(1),
        max_write: agreed.max_write,
        time_gran: want.time_gran_ns.clamp(1, 1_000_000_000),
        max_pages: if flags & init::MAX_PAGES != 0 { pages as u16 } else { 0 },
        flags2: (flags >> 32) as u32,
        ..InitOut::default()
    };
    Ok(Negotiation::Done(out, agreed))
}

fn wanted_flags(want: &InitOptions, offered: u64) -> u64 {
    let mut flags = init::ASYNC_READ
        | init::ASYNC_DIO
        | init::BIG_WRITES
        | init::MAX_PAGES
        | init::ABORT_ERROR
        | init::HAS_IOCTL_DIR
        | init::INIT_EXT;
    flags |= match want.readdirplus {
        Readdirplus::Off => 0,
        Readdirplus::Auto => init::DO_READDIRPLUS | init::READDIRPLUS_AUTO,
        Readdirplus::Always => init::DO_READDIRPLUS,
    };
    let choices = [
        (want.writeback_cache, init::WRITEBACK_CACHE),
        (want.auto_inval_data, init::AUTO_INVAL_DATA),
        (want.parallel_dirops, init::PARALLEL_DIROPS),
        (want.atomic_o_trunc, init::ATOMIC_O_TRUNC),
        (want.dont_mask, init::DONT_MASK),
        (want.direct_io_allow_mmap, init::DIRECT_IO_ALLOW_MMAP),
        (want.killpriv == KillPriv::Server, init::HANDLE_KILLPRIV_V2),
        (want.cache_symlinks, init::CACHE_SYMLINKS),
        (want.create_supp_group, init::CREATE_SUPP_GROUP),
        (want.export_support, init::EXPORT_SUPPORT),
        (want.posix_locks, init::POSIX_LOCKS),
        (want.flock_locks, init::FLOCK_LOCKS),
        (want.splice, init::SPLICE_READ | init::SPLICE_WRITE | init::SPLICE_MOVE),
        // An informational bit of the server: pending requests can be asked for again after a takeover.
        (true, init::HAS_RESEND),
    ];
    for (wanted, flag) in choices {
        if wanted {
            flags |= flag;
        }
    }
    flags & offered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux_6_18() -> InitIn {
        InitIn {
            major: 7,
            minor: 45,
            max_readahead: 128 << 10,
            flags: 0x73ff_fffb,
            flags2: 0x7ff,
            ..InitIn::default()
        }
    }

    fn done(offer: &InitIn, want: &InitOptions) -> (InitOut, Agreed) {
        match negotiate(offer, want).unwrap() {
            Negotiation::Done(out, agreed) => (out, agreed),
            Negotiation::Again(_) => panic!("expected an agreement"),
        }
    }

    #[test]
    fn a_new_kernel_gives_what_is_wanted() {
        let (out, agreed) = done(&linux_6_18(), &InitOptions::default());
        assert_eq!((out.major, out.minor, out.max_write), (7, 45, 1 << 20));
        assert_eq!(u32::from(out.max_pages) * rustix::param::page_size() as u32, 1 << 20);
        assert_eq!(out.max_readahead, 128 << 10);
        assert!(agreed.has(init::DO_READDIRPLUS | init::READDIRPLUS_AUTO | init::PARALLEL_DIROPS));
        assert!(agreed.has(init::HANDLE_KILLPRIV_V2 | init::DIRECT_IO_ALLOW_MMAP | init::INIT_EXT));
        assert_eq!(out.flags2, (agreed.flags >> 32) as u32);
        for never in [
            init::WRITEBACK_CACHE,
            init::POSIX_ACL,
            init::EXPORT_SUPPORT,
            init::SETXATTR_EXT,
            init::POSIX_LOCKS,
            init::HANDLE_KILLPRIV,
            init::SECURITY_CTX,
            init::OVER_IO_URING,
        ] {
            assert_eq!(agreed.flags & never, 0, "{never:#x}");
        }
    }

    #[test]
    fn nothing_is_used_that_was_not_offered() {
        let offer = InitIn { major: 7, minor: 31, flags: 1 | 1 << 5, flags2: u32::MAX, ..InitIn::default() };
        let (out, agreed) = done(&offer, &InitOptions::default());
        assert_eq!((out.flags, out.flags2, out.minor), (1 | 1 << 5, 0, 31));
        assert_eq!(agreed.max_write, 32 * rustix::param::page_size() as u32);
        assert_eq!(out.max_pages, 0);
    }

    #[test]
    fn options_switch_flags() {
        let want = InitOptions {
            writeback_cache: true,
            readdirplus: Readdirplus::Off,
            killpriv: KillPriv::Kernel,
            max_write: 1,
            ..InitOptions::default()
        };
        let (out, agreed) = done(&linux_6_18(), &want);
        assert!(agreed.has(init::WRITEBACK_CACHE));
        assert_eq!(agreed.flags & (init::DO_READDIRPLUS | init::HANDLE_KILLPRIV_V2), 0);
        assert_eq!(out.max_pages, 1);
    }

    #[test]
    fn other_versions() {
        let old = InitIn { major: 7, minor: 30, ..InitIn::default() };
        let error = negotiate(&old, &InitOptions::default()).unwrap_err();
        assert!(error.to_string().contains("7.30"), "{error}");
        let ancient = InitIn { major: 6, minor: 99, ..InitIn::default() };
        assert!(negotiate(&ancient, &InitOptions::default()).is_err());
        let future = InitIn { major: 8, minor: 0, ..InitIn::default() };
        let again = negotiate(&future, &InitOptions::default()).unwrap();
        assert!(matches!(again, Negotiation::Again(InitOut { major: 7, .. })));
    }
}
