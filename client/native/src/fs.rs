//! Names.

use crate::file::File;
use crate::path::{Walked, entry, of_directory, parent, prefixes, resolve, walk};
use crate::place::{Place, umask};
use crate::reactor::{Answer as Begun, Reactor};
use crate::tree;
use crate::{Options, Result};
use ember_client::{Client, ClientError, MetaOptions};
use ember_types::Status;
use ember_types::file::{Attributes, Credentials, FileKind};
use ember_wire::meta::{DirectoryEntry, OpenFlags, Operation};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;

/// A client of a cluster. Clones share it; it ends with the last of them and of its files.
#[derive(Clone)]
pub struct FileSystem {
    reactor: Arc<Reactor>,
    options: MetaOptions,
    umask: u32,
}

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// Its kind.
    pub kind: FileKind,
    /// Its length in bytes, as meta knows it: a file that somebody is writing may be longer.
    pub length: u64,
}

/// What becomes of something that has the new name already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replace {
    /// It goes, as in rename(2): a file for a file, an empty directory for a directory.
    Replace,
    /// It stays, and the call fails.
    Refuse,
    /// It gets the old name.
    Exchange,
}

fn credentials() -> Credentials {
    let groups = rustix::process::getgroups().unwrap_or_default();
    Credentials {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: groups.into_iter().map(|group| group.as_raw()).collect(),
    }
}

/// Why something can't be opened as a file.
fn no_file(kind: FileKind) -> ClientError {
    match kind {
        FileKind::Directory => ClientError::new(Status::IsDirectory, "it is a directory"),
        _ => ClientError::new(Status::NotSupported, "it is no regular file"),
    }
}

const READ: OpenFlags = OpenFlags { read: true, write: false, truncate: false, execute: false };
const WRITE: OpenFlags = OpenFlags { read: true, write: true, truncate: true, execute: false };

impl FileSystem {
    /// Connects to the cluster whose data directory on this machine is `data`; mgmtd lists the client with the
    /// `description`. Settings are those of the section `client` of its `ember.toml`.
    ///
    /// # Errors
    /// If there is no cluster, its files may not be read, it refuses this client, or it doesn't answer for 15 s (or the
    /// time of an operation, if that is less).
    pub fn connect(data: &Path, description: &str) -> Result<Self> {
        Self::connect_with(data, &Options { description: description.to_owned(), ..Options::default() })
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// As [`FileSystem::connect`].
    pub fn connect_with(data: &Path, options: &Options) -> Result<Self> {
        let mut place = Place::read(data)?;
        if let Some(limit) = options.operation_timeout {
            place.config.operation_timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        }
        let reactor = Arc::new(Reactor::start(place, &options.description)?);
        Ok(Self { reactor, options: credentials().into(), umask: umask() })
    }

    pub(crate) fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    fn begin<T, F>(&self, work: impl FnOnce(Client, MetaOptions) -> F + Send + 'static) -> Begun<T>
    where
        T: Send + 'static,
        F: Future<Output = ember_client::Result<T>> + 'static,
    {
        let options = self.options.clone();
        self.reactor.begin(move |client| work(client, options))
    }

    /// Runs an operation on what a path leads to.
    fn on<T, F>(
        &self,
        operation: &'static str,
        path: &str,
        work: impl FnOnce(Client, Attributes, MetaOptions) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = ember_client::Result<T>> + 'static,
    {
        let from = path.to_owned();
        let begun = self.begin(async move |client: Client, options: MetaOptions| {
            let found = resolve(&client, &from, &options).await?;
            work(client, found, options).await
        });
        self.reactor.end(&begun, operation, path)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// If there is none, it may not be read, or is no regular file.
    pub fn open(&self, path: &str) -> Result<File> {
        let file = self.on("opening", path, async |client, found, options| match found.kind {
            FileKind::File => Ok(client.open(found.inode, READ, &options).await?.file),
            kind => Err(no_file(kind)),
        })?;
        Ok(File::new(self.clone(), path, file))
    }

    /// Opens a file for writing and reading: an empty one, made if need be, with mode 0666 less the umask.
    ///
    /// # Errors
    /// If its directory isn't there, or it may not be made or written.
    pub fn create(&self, path: &str) -> Result<File> {
        self.created(path, false)
    }
    /// The same for a file that must not be there yet.
    ///
    /// # Errors
    /// Also if there is something of that name.
    pub fn create_new(&self, path: &str) -> Result<File> {
        self.created(path, true)
    }

    fn created(&self, path: &str, exclusive: bool) -> Result<File> {
        let (from, mode) = (path.to_owned(), 0o666 & !self.umask);
        let begun = self.begin(async move |client: Client, options: MetaOptions| {
            if of_directory(from.as_bytes()) {
                return Err(ClientError::new(Status::IsDirectory, "the path ends as that of a directory"));
            }
            let opened = match walk(&client, &from, !exclusive, &options).await? {
                Walked::There(_) if exclusive => {
                    return Err(ClientError::new(Status::Exists, "there is something of that name"));
                }
                Walked::There(found) if found.kind == FileKind::File => {
                    client.open(found.inode, WRITE, &options).await?
                }
                Walked::There(found) => return Err(no_file(found.kind)),
                Walked::Missing { parent, name } => {
                    client.create(parent, &name, mode, exclusive, WRITE, &options).await?
                }
            };
            Ok(opened.file)
        });
        let file = self.reactor.end(&begun, "making", path)?;
        Ok(File::new(self.clone(), path, file))
    }

    /// Makes a directory and those that lead to it, with mode 0777 less the umask; what is there stays.
    ///
    /// # Errors
    /// If something on the way is no directory, or it may not be made.
    pub fn make_directories(&self, path: &str) -> Result<()> {
        let (from, mode) = (path.to_owned(), 0o777 & !self.umask);
        let made = self.begin(async move |client: Client, options: MetaOptions| {
            for prefix in prefixes(&from) {
                tree::make_directory(&client, prefix, mode, &options).await?;
            }
            // Whatever the last one is that was there.
            match resolve(&client, &from, &options).await?.kind {
                FileKind::Directory => Ok(()),
                _ => Err(ClientError::new(Status::NotDirectory, "it is no directory")),
            }
        });
        self.reactor.end(&made, "making", path)
    }

    /// The entries of a directory, without `.` and `..`.
    ///
    /// # Errors
    /// If it isn't there, may not be read, or is no directory.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>> {
        let entries: Vec<DirectoryEntry> = self.on("listing", path, async |client, found, options| {
            let (mut all, mut after) = (Vec::new(), Some(0));
            while let Some(from) = after {
                let (mut page, next) = tree::page(&client, found.inode, from, true, &options).await?;
                page.iter_mut().filter_map(|entry| entry.attributes.as_mut()).for_each(|a| client.overlay(a));
                all.append(&mut page);
                after = next;
            }
            Ok(all)
        })?;
        let entry = |entry: DirectoryEntry| Entry {
            name: OsString::from_vec(entry.name),
            kind: entry.kind,
            length: entry.attributes.map_or(0, |attributes| attributes.length),
        };
        Ok(entries.into_iter().map(entry).collect())
    }

    /// Attributes of what a path leads to.
    ///
    /// # Errors
    /// If there is nothing, or a directory on the way may not be searched.
    pub fn attributes(&self, path: &str) -> Result<Attributes> {
        self.on("looking at", path, async |client, mut found, _| {
            client.overlay(&mut found);
            Ok(found)
        })
    }

    /// Whether a path leads to something.
    ///
    /// # Errors
    /// If a directory on the way may not be searched.
    pub fn exists(&self, path: &str) -> Result<bool> {
        match self.attributes(path) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives a file or directory another name, in one step for all who look.
    ///
    /// # Errors
    /// As rename(2), and with [`Replace::Refuse`] if there is something of that name.
    pub fn rename(&self, from: &str, to: &str, replace: Replace) -> Result<()> {
        let (old, new) = (from.to_owned(), to.to_owned());
        let begun = self.begin(async move |client: Client, options: MetaOptions| {
            let (parent_of_old, name) = entry(&client, &old, &options).await?;
            let (new_parent, new_name) = parent(&client, &new, &options).await?;
            if of_directory(new.as_bytes()) {
                tree::require_directory(&client, parent_of_old, &name, &options).await?;
            }
            let rename = Operation::Rename {
                parent: parent_of_old,
                name,
                new_parent,
                new_name,
                no_replace: replace == Replace::Refuse,
                exchange: replace == Replace::Exchange,
            };
            client.meta(rename, &options).await.map(|_| ())
        });
        self.reactor.end(&begun, "renaming", &format!("{from} to {to}"))
    }

    /// Removes a file or symbolic link.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn remove(&self, path: &str) -> Result<()> {
        let from = path.to_owned();
        let begun = self.begin(async move |client: Client, options: MetaOptions| {
            let (parent, name) = entry(&client, &from, &options).await?;
            client.meta(Operation::Unlink { parent, name }, &options).await.map(|_| ())
        });
        self.reactor.end(&begun, "removing", path)
    }

    /// Removes a directory with all that is in it, or a file or symbolic link; what is gone already is fine.
    ///
    /// # Errors
    /// If something may not be removed, or somebody adds to a directory meanwhile.
    pub fn remove_all(&self, path: &str) -> Result<()> {
        let from = path.to_owned();
        let begun = self.begin(async move |client: Client, options: MetaOptions| {
            let removed = async {
                let (parent, name) = entry(&client, &from, &options).await?;
                tree::remove(&client, parent, name, &options).await
            };
            match removed.await {
                Err(error) if error.status == Status::NotFound => Ok(()),
                other => other,
            }
        });
        self.reactor.end(&begun, "removing", path)
    }

    /// Makes the names in a directory durable, as fsync(2) of it does.
    ///
    /// # Errors
    /// If it isn't there.
    pub fn sync_directory(&self, path: &str) -> Result<()> {
        self.on("syncing", path, async |client, found, _| client.fsync(found.inode).await.map(|_| ()))
    }
}
