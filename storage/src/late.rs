//! A disk whose directory need not be there: the others of the node go on without it, and it is looked for again.
//!
//! As long as nothing of it is open, a missing directory of a target makes it be opened anew: another file system may
//! be mounted there meanwhile.

use ember_rt::disk::{Completion, Disk, FileId, Op, OpenMode, Space};
use ember_rt::select::select;
use ember_rt::sync::Notify;
use ember_rt::{LocalBoxFuture, Rt};
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

/// A disk at a path that may come and go between uses.
pub(crate) struct LateDisk {
    rt: Rt,
    path: PathBuf,
    found: RefCell<Option<Rc<dyn Disk>>>,
    /// Files that are open.
    open: Cell<usize>,
    /// Operations of nobody.
    failed: RefCell<Vec<Completion>>,
    changed: Notify,
}

impl LateDisk {
    /// Opens it if it is there.
    pub(crate) fn new(rt: &Rt, path: PathBuf) -> Self {
        let late = Self {
            rt: rt.clone(),
            path,
            found: RefCell::default(),
            open: Cell::new(0),
            failed: RefCell::default(),
            changed: Notify::new(),
        };
        if let Err(error) = late.look() {
            tracing::error!(%error, "a disk is not there; the others go on");
        }
        late
    }

    /// Opens it anew.
    fn look(&self) -> io::Result<Rc<dyn Disk>> {
        let found = self.rt.disks().open(&self.path);
        let found = found.map(|disk| -> Rc<dyn Disk> { Rc::from(disk) });
        *self.found.borrow_mut() = found.as_ref().ok().cloned();
        self.changed.notify_one();
        found
    }

    fn disk(&self) -> io::Result<Rc<dyn Disk>> {
        let found = self.found.borrow().clone();
        found.map_or_else(|| self.look(), Ok)
    }
}

impl Disk for LateDisk {
    fn submit(&self, op: Op) {
        let found = self.found.borrow().clone();
        match found {
            Some(disk) => disk.submit(op),
            None => {
                let result = Err(io::Error::from(io::ErrorKind::NotConnected));
                self.failed.borrow_mut().push(Completion { token: op.token, result, buf: None });
                self.changed.notify_one();
            }
        }
    }
    fn poll(&self, out: &mut Vec<Completion>) {
        out.append(&mut self.failed.borrow_mut());
        let found = self.found.borrow().clone();
        if let Some(disk) = found {
            disk.poll(out);
        }
    }
    fn ready(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {
            let found = self.found.borrow().clone();
            match found {
                Some(disk) => drop(select(disk.ready(), self.changed.notified()).await),
                None => self.changed.notified().await,
            }
        })
    }

    fn open_file(&self, name: &str, mode: OpenMode) -> io::Result<FileId> {
        let file = self.disk()?.open_file(name, mode)?;
        self.open.set(self.open.get() + 1);
        Ok(file)
    }
    fn close_file(&self, file: FileId) {
        let found = self.found.borrow().clone();
        if let Some(disk) = found {
            disk.close_file(file);
            self.open.set(self.open.get().saturating_sub(1));
        }
    }
    fn file_len(&self, file: FileId) -> io::Result<u64> {
        self.disk()?.file_len(file)
    }
    fn set_file_len(&self, file: FileId, len: u64) -> io::Result<()> {
        self.disk()?.set_file_len(file, len)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        match self.disk()?.list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.open.get() == 0 => {
                self.look()?.list(dir)
            }
            other => other,
        }
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.disk()?.create_dir(dir)
    }
    fn remove_file(&self, name: &str) -> io::Result<()> {
        self.disk()?.remove_file(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk()?.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk()?.sync_dir(dir)
    }
    fn read_small(&self, name: &str) -> io::Result<Vec<u8>> {
        self.disk()?.read_small(name)
    }
    fn write_small(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.disk()?.write_small(name, content)
    }
    fn lock(&self, dir: &str) -> io::Result<()> {
        self.disk()?.lock(dir)
    }
    fn space(&self) -> io::Result<Space> {
        let found = self.found.borrow().clone();
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.space()
    }
    fn overwrites_in_place(&self) -> bool {
        self.found.borrow().as_ref().is_some_and(|disk| disk.overwrites_in_place())
    }
    fn written(&self, file: FileId, from: u64) -> io::Result<Vec<Range<u64>>> {
        self.disk()?.written(file, from)
    }
    fn warnings(&self) -> Vec<&'static str> {
        let found = self.found.borrow().clone();
        found.map_or_else(|| vec!["is not there: is the disk mounted?"], |disk| disk.warnings())
    }
}
