//! `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::Error;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount of this process's name space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Number of the mount.
    pub id: u32,
    /// Number of the mount it is mounted on.
    pub parent: u32,
    /// Major device number.
    pub major: u32,
    /// Minor device number; for FUSE, the connection's name under `/sys/fs/fuse/connections`.
    pub minor: u32,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Type, as `ext4` or `fuse.ember`.
    pub kind: String,
    /// Device, as given at mounting.
    pub source: String,
}

impl MountInfo {
    /// Whether a FUSE server is behind it.
    pub fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind == "fuseblk" || self.kind.starts_with("fuse.")
    }
}

/// All mounts, in the order of the kernel: of several on one point the last is on top.
pub fn mounts() -> Result<Vec<MountInfo>, Error> {
    let bytes = std::fs::read(MOUNTINFO)
        .map_err(|source| Error::Io { what: format!("read of {MOUNTINFO}"), source })?;
    Ok(bytes.split(|&b| b == b'\n').filter_map(parse_line).collect())
}

/// The top mount on exactly `point`.
pub(super) fn find(point: &Path) -> Result<Option<MountInfo>, Error> {
    Ok(mounts()?.into_iter().rfind(|mount| mount.point == point))
}

/// A line: id parent major:minor root point options [optional…] - type source superoptions.
fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|&b| b == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let point = unescape(fields.nth(1)?);
    let mut fields = fields.skip_while(|&field| field != b"-").skip(1);
    let text = |bytes: &[u8]| String::from_utf8_lossy(&unescape(bytes)).into_owned();
    Some(MountInfo {
        id,
        parent,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        point: PathBuf::from(OsString::from_vec(point)),
        kind: text(fields.next()?),
        source: text(fields.next()?),
    })
}

/// The kernel writes space, tab, newline, backslash and # as three octal digits after a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if first == b'\\' => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_with_and_without_optional_fields() {
        let line =
            b"36 25 0:52 / /mnt/my\\040dir\\134x rw,nosuid shared:1 master:2 - fuse.ember em\\040ber rw";
        let info = parse_line(line).unwrap();
        assert_eq!((info.id, info.parent, info.major, info.minor), (36, 25, 0, 52));
        assert_eq!(info.point, Path::new("/mnt/my dir\\x"));
        assert_eq!((info.kind.as_str(), info.source.as_str()), ("fuse.ember", "em ber"));
        assert!(info.is_fuse());
        let info = parse_line(b"1 0 254:0 / / rw - ext4 /dev/vda rw").unwrap();
        assert_eq!((info.kind.as_str(), info.is_fuse()), ("ext4", false));
    }

    #[test]
    fn garbage_is_no_mount() {
        for line in [&b""[..], b"a b c", b"1 2 3 4 5 6", b"1 0 254:0 / / rw ext4 /dev/vda rw", b"1 2 x:y / /"]
        {
            assert_eq!(parse_line(line), None);
        }
        assert_eq!(unescape(b"\\04\\0400\\"), b"\\04 0\\");
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(find(Path::new("/")).unwrap().is_some());
    }
}
