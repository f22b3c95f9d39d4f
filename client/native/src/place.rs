//! What a process of this machine needs to reach the cluster of a data directory.

use crate::{NativeError, Result};
use ember_client::ClientConfig;
use ember_net::Identity;
use ember_rt::Addr;
use ember_types::{ClientId, ClusterId};
use ember_wire::handshake::Caller;
use serde::Deserialize;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The user whose token `ember up` makes.
pub const ROOT_USER: &str = "root";
/// Format of a data directory that this release reads and writes.
pub const FORMAT: u32 = 1;
/// Longest path of a Unix socket that the kernel takes (`sun_path`), less the terminating zero.
const SOCKET_PATH_MAX: usize = 107;

/// Where a cluster is, and who may use it.
#[derive(Clone, Debug)]
pub struct Place {
    /// The data directory.
    pub data: PathBuf,
    /// The cluster's id.
    pub cluster: ClusterId,
    /// The root user's token.
    pub token: [u8; 32],
    /// Where mgmtd listens.
    pub mgmtd: Addr,
    /// Settings of clients.
    pub config: ClientConfig,
}

/// An error about a path.
fn at(path: &Path) -> impl FnOnce(String) -> NativeError {
    let path = path.to_owned();
    move |why| NativeError::Place { path, why }
}

/// Part of `cluster.toml`.
#[derive(Deserialize)]
struct Cluster {
    format: u32,
    cluster: Option<ClusterId>,
}

/// Part of `ember.toml`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    client: ClientConfig,
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| at(path)(format!("is damaged: {error}")))
}

impl Place {
    /// Reads it from the data directory of a cluster on this machine.
    ///
    /// # Errors
    /// If there is no cluster, or one of another release, or its files may not be read.
    pub fn read(data: &Path) -> Result<Self> {
        let data = std::path::absolute(data).map_err(|error| at(data)(error.to_string()))?;
        let path = data.join("cluster.toml");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let why = "there is no EmberFS cluster here: start one with `ember up --data DIR`".into();
                return Err(at(&data)(why));
            }
            Err(error) => return Err(at(&path)(error.to_string())),
        };
        let Cluster { format, cluster } = parse(&path, &text)?;
        let cluster = cluster.filter(|_| format == FORMAT).ok_or_else(|| {
            at(&path)(format!(
                "has format {format}, this release reads {FORMAT}: use the release that made it"
            ))
        })?;
        let path = data.join("ember.toml");
        let settings = match std::fs::read_to_string(&path) {
            Ok(text) => parse(&path, &text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Settings::default(),
            Err(error) => return Err(at(&path)(error.to_string())),
        };
        Ok(Self {
            cluster,
            token: read_secret(&data.join("token"))?,
            mgmtd: socket(&data, "mgmtd")?,
            config: settings.client,
            data,
        })
    }
}

/// How a client introduces itself as the cluster's root user.
pub fn identity(cluster: ClusterId, client: ClientId, token: [u8; 32]) -> Identity {
    Identity { cluster, caller: Caller::Client(client), user: ROOT_USER.into(), key: token, lane: 0 }
}

/// Reads a secret of 64 hexadecimal digits.
///
/// # Errors
/// If it can't be read, or isn't one.
pub fn read_secret(path: &Path) -> Result<[u8; 32]> {
    let text = std::fs::read_to_string(path).map_err(|error| at(path)(error.to_string()))?;
    let digits = text.trim();
    let byte = |i: usize| digits.get(2 * i..2 * i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let mut secret = [0; 32];
    let whole = digits.len() == 64
        && secret.iter_mut().enumerate().all(|(i, to)| byte(i).map(|byte| *to = byte).is_some());
    if whole {
        Ok(secret)
    } else {
        Err(at(path)("64 hexadecimal digits expected; restore it from a copy".into()))
    }
}

/// Where a service of a data directory listens: in `run/`, or, where that path is too long for a socket, in a directory
/// of the temporary folder named after the data directory's inode, which no other cluster shares.
///
/// # Errors
/// If that directory can't be made, or is somebody else's.
pub fn socket(data: &Path, service: &str) -> Result<Addr> {
    let file = format!("{service}.sock");
    let near = data.join("run").join(&file);
    if near.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok(Addr::Unix(near));
    }
    let stat = rustix::fs::stat(data).map_err(|error| at(data)(error.to_string()))?;
    let dir = std::env::temp_dir().join(format!("ember-{:x}-{:x}", stat.st_dev, stat.st_ino));
    private_dir(&dir)?;
    Ok(Addr::Unix(dir.join(file)))
}

/// Makes a directory that only its owner may enter; one of somebody else's is refused.
fn private_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let failed = |error: &dyn Display| at(dir)(error.to_string());
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(&error)),
    }
    let meta = std::fs::symlink_metadata(dir).map_err(|error| failed(&error))?;
    let own = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0;
    if own { Ok(()) } else { Err(failed(&"is not a private directory of this user: remove it")) }
}

/// The umask of this process, which only /proc tells without changing it; 022 where it can't be read.
pub(crate) fn umask() -> u32 {
    let status = std::fs::read_to_string(PathBuf::from("/proc/self/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|digits| u32::from_str_radix(digits.trim(), 8).ok()).unwrap_or(0o022)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ember-place-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn what_is_no_cluster_says_so() {
        let dir = scratch("none");
        let error = Place::read(&dir).unwrap_err().to_string();
        assert!(error.contains("ember up"), "{error}");
        std::fs::write(dir.join("cluster.toml"), "format = 99\n").unwrap();
        let error = Place::read(&dir).unwrap_err().to_string();
        assert!(error.contains("format 99"), "{error}");
        std::fs::write(dir.join("cluster.toml"), "form").unwrap();
        let error = Place::read(&dir).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
        for wrong in ["", "abc", &"g".repeat(64), &"é".repeat(32)] {
            std::fs::write(dir.join("token"), wrong).unwrap();
            assert!(read_secret(&dir.join("token")).is_err(), "{wrong}");
        }
        std::fs::write(dir.join("token"), format!("{}\n", "0f".repeat(32))).unwrap();
        assert_eq!(read_secret(&dir.join("token")).unwrap(), [15; 32]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_long_data_directory_gets_its_sockets_elsewhere() {
        let deep = std::env::temp_dir().join("x".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let Addr::Unix(there) = socket(&deep, "meta").unwrap() else { panic!("a Unix socket") };
        assert!(there.as_os_str().len() <= SOCKET_PATH_MAX, "{}", there.display());
        std::fs::remove_dir_all(&deep).unwrap();
        std::fs::remove_dir_all(there.parent().unwrap()).unwrap();
        let near = socket(Path::new("/srv/a"), "meta").unwrap();
        assert_eq!(near.to_string(), "unix:/srv/a/run/meta.sock");
    }
}
