//! Names.

use crate::file::File;
use crate::path::{parent, prefixes, resolve};
use crate::place::{Place, umask};
use crate::reactor::{Answer as Begun, Reactor};
use crate::{NativeError, Result};
use ember_client::{Client, ClientError, MetaOptions};
use ember_types::Status;
use ember_types::file::{Attributes, Credentials, FileKind};
use ember_wire::meta::{Answer, DirectoryEntry, OpenFlags, Operation};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;

/// Entries of a page of a directory.
const PAGE: u32 = 512;

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

fn unexpected(answer: &Answer) -> ClientError {
    ClientError::new(Status::Internal, format!("unexpected answer of the metadata service: {answer:?}"))
}

const READ: OpenFlags = OpenFlags { read: true, write: false, truncate: false, execute: false };
const WRITE: OpenFlags = OpenFlags { read: true, write: true, truncate: true, execute: false };

impl FileSystem {
    /// Connects to the cluster whose data directory on this machine is `data`; mgmtd lists the client with the
    /// `description`.
    ///
    /// # Errors
    /// If there is no cluster, its files may not be read, or it doesn't answer for 15 s.
    pub fn connect(data: &Path, description: &str) -> Result<Self> {
        let reactor = Arc::new(Reactor::start(Place::read(data)?, description)?);
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
            let found = resolve(&client, &from, true, &options).await?;
            work(client, found, options).await
        });
        Reactor::end(begun, operation, path)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// If there is none, it may not be read, or is no regular file.
    pub fn open(&self, path: &str) -> Result<File> {
        let file = self.on("opening", path, async |client, found, options| match found.kind {
            FileKind::File => Ok(client.open(found.inode, READ, &options).await?.file),
            FileKind::Directory => Err(ClientError::new(Status::IsDirectory, "it is a directory")),
            _ => Err(ClientError::new(Status::NotSupported, "it is no regular file")),
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
            if !exclusive
                && let Ok(found) = resolve(&client, &from, true, &options).await
                && found.kind == FileKind::File
            {
                return Ok(client.open(found.inode, WRITE, &options).await?.file);
            }
            let (directory, name) = parent(&client, &from, &options).await?;
            Ok(client.create(directory, &name, mode, exclusive, WRITE, &options).await?.file)
        });
        let file = Reactor::end(begun, "making", path)?;
        Ok(File::new(self.clone(), path, file))
    }

    /// Makes a directory and those that lead to it, with mode 0777 less the umask; what is there stays.
    ///
    /// # Errors
    /// If something on the way is no directory, or it may not be made.
    pub fn make_directories(&self, path: &str) -> Result<()> {
        for prefix in prefixes(path) {
            let (from, mode) = (prefix.to_owned(), 0o777 & !self.umask);
            let made = self.begin(async move |client: Client, options: MetaOptions| {
                match resolve(&client, &from, true, &options).await {
                    Ok(found) if found.kind == FileKind::Directory => return Ok(()),
                    Ok(_) => return Err(ClientError::new(Status::NotDirectory, "it is no directory")),
                    Err(error) if error.status == Status::NotFound => {}
                    Err(error) => return Err(error),
                }
                let (parent, name) = parent(&client, &from, &options).await?;
                match client.meta(Operation::MakeDirectory { parent, name, mode }, &options).await {
                    // Somebody else was faster.
                    Err(error) if error.status == Status::Exists => Ok(()),
                    made => made.map(|_| ()),
                }
            });
            Reactor::end(made, "making", prefix)?;
        }
        Ok(())
    }

    /// The entries of a directory, without `.` and `..`.
    ///
    /// # Errors
    /// If it isn't there, may not be read, or is no directory.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>> {
        let entries: Vec<DirectoryEntry> = self.on("listing", path, async |client, found, options| {
            let (mut all, mut after) = (Vec::new(), 0);
            loop {
                let page =
                    Operation::ReadDirectory { inode: found.inode, after, limit: PAGE, attributes: true };
                match client.meta(page, &options).await? {
                    Answer::Entries { entries, more } => {
                        after = entries.last().map_or(after, |entry| entry.cookie);
                        let (some, more) = (!entries.is_empty(), more);
                        all.extend(entries);
                        if !(some && more) {
                            return Ok(all);
                        }
                    }
                    other => return Err(unexpected(&other)),
                }
            }
        })?;
        let entry = |entry: DirectoryEntry| Entry {
            name: OsString::from_vec(entry.name),
            kind: entry.kind,
            length: entry.attributes.map_or(0, |attributes| attributes.length),
        };
        Ok(entries.into_iter().map(entry).filter(|entry| entry.name != "." && entry.name != "..").collect())
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
            let (parent_of_old, name) = parent(&client, &old, &options).await?;
            let (new_parent, new_name) = parent(&client, &new, &options).await?;
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
        Reactor::end(begun, "renaming", &format!("{from} to {to}"))
    }

    /// Removes a file or symbolic link.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn remove(&self, path: &str) -> Result<()> {
        self.remove_entry(path, false)
    }

    fn remove_entry(&self, path: &str, directory: bool) -> Result<()> {
        let from = path.to_owned();
        let begun = self.begin(async move |client: Client, options: MetaOptions| {
            let (parent, name) = parent(&client, &from, &options).await?;
            let remove = match directory {
                true => Operation::RemoveDirectory { parent, name },
                false => Operation::Unlink { parent, name },
            };
            client.meta(remove, &options).await.map(|_| ())
        });
        Reactor::end(begun, "removing", path)
    }

    /// Removes a directory with all that is in it, or a file; what is gone already is fine.
    ///
    /// # Errors
    /// If something may not be removed, or somebody adds to a directory meanwhile.
    pub fn remove_all(&self, path: &str) -> Result<()> {
        let from = path.to_owned();
        let begun = self.begin(async move |client: Client, options: MetaOptions| {
            Ok(resolve(&client, &from, false, &options).await?.kind)
        });
        let gone = |result: Result<()>| match result {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        };
        let kind = match Reactor::end(begun, "removing", path) {
            Err(error) if error.is_not_found() => return Ok(()),
            kind => kind?,
        };
        if kind != FileKind::Directory {
            return gone(self.remove_entry(path, false));
        }
        for entry in self.list(path)? {
            let name = entry.name.into_string().map_err(|name| NativeError::Operation {
                operation: "removing",
                path: path.to_owned(),
                error: ClientError::new(Status::InvalidArgument, format!("{} is no text", name.display())),
            })?;
            self.remove_all(&format!("{}/{name}", path.trim_end_matches('/')))?;
        }
        gone(self.remove_entry(path, true))
    }

    /// Makes the names in a directory durable, as fsync(2) of it does.
    ///
    /// # Errors
    /// If it isn't there.
    pub fn sync_directory(&self, path: &str) -> Result<()> {
        self.on("syncing", path, async |client, found, _| client.fsync(found.inode).await.map(|_| ()))
    }
}
