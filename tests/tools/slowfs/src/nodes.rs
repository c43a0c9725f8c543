//! What the kernel knows of the folder below: nodes by number, and open files and listings by handle.
//!
//! A node is kept as a descriptor that only names it (O_PATH), until the kernel has forgotten it as often as it looked it
//! up. So a rename needs no care: whoever knew the node still does. Its number is that of the disk below, plus one, since
//! one is the root's.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::fs::{self, Dir, Mode, OFlags, Stat};

struct Known {
    node: Arc<OwnedFd>,
    lookups: u64,
}

pub struct Nodes {
    root: Arc<OwnedFd>,
    known: Mutex<HashMap<u64, Known>>,
}

fn number(ino: u64) -> INodeNo {
    INodeNo(ino.wrapping_add(1))
}

/// A path that leads to a node whatever it is called now.
pub fn path_of(node: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", node.as_raw_fd()))
}

pub fn kind_of(mode: u32) -> FileType {
    match fs::FileType::from_raw_mode(mode) {
        fs::FileType::Directory => FileType::Directory,
        fs::FileType::Symlink => FileType::Symlink,
        fs::FileType::Fifo => FileType::NamedPipe,
        fs::FileType::Socket => FileType::Socket,
        fs::FileType::CharacterDevice => FileType::CharDevice,
        fs::FileType::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let part = Duration::from_nanos(nanoseconds);
    match u64::try_from(seconds) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + part,
        Err(_) => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + part,
    }
}

pub fn attributes(ino: INodeNo, stat: &Stat) -> FileAttr {
    let changed = time(stat.st_ctime, stat.st_ctime_nsec);
    FileAttr {
        ino,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: changed,
        crtime: changed,
        kind: kind_of(stat.st_mode),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: stat.st_blksize as u32,
        flags: 0,
    }
}

impl Nodes {
    pub fn new(backing: &Path) -> io::Result<Self> {
        let root = fs::open(
            backing,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Nodes {
            root: Arc::new(root),
            known: Mutex::default(),
        })
    }

    pub fn get(&self, ino: INodeNo) -> io::Result<Arc<OwnedFd>> {
        if ino == INodeNo::ROOT {
            return Ok(self.root.clone());
        }
        let known = self.known.lock().unwrap();
        let found = known
            .get(&ino.0)
            .ok_or(io::Error::from_raw_os_error(libc::ESTALE))?;
        Ok(found.node.clone())
    }

    /// A name in a folder; the kernel knows its node from now on, once more than before.
    pub fn look_up(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let folder = self.get(parent)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Opened under the lock: a node that is forgotten meanwhile could lend its number to another.
        let mut known = self.known.lock().unwrap();
        let node = fs::openat(&*folder, name, flags, Mode::empty())?;
        let stat = fs::fstat(&node)?;
        let ino = number(stat.st_ino);
        let entry = known.entry(ino.0).or_insert(Known {
            node: Arc::new(node),
            lookups: 0,
        });
        entry.lookups += 1;
        Ok(attributes(ino, &stat))
    }

    pub fn forget(&self, ino: INodeNo, lookups: u64) {
        let mut known = self.known.lock().unwrap();
        if let Some(entry) = known.get_mut(&ino.0) {
            entry.lookups = entry.lookups.saturating_sub(lookups);
            if entry.lookups == 0 {
                known.remove(&ino.0);
            }
        }
    }
}

/// Things by handle.
pub struct Handles<T> {
    next: AtomicU64,
    open: Mutex<HashMap<u64, T>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Handles {
            next: AtomicU64::new(1),
            open: Mutex::default(),
        }
    }
}

impl<T: Clone> Handles<T> {
    pub fn add(&self, thing: T) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap().insert(handle, thing);
        handle
    }

    pub fn get(&self, handle: u64) -> Option<T> {
        self.open.lock().unwrap().get(&handle).cloned()
    }

    pub fn remove(&self, handle: u64) {
        self.open.lock().unwrap().remove(&handle);
    }
}

/// A folder's names as they were when it was opened.
#[derive(Clone)]
pub struct Listing(Arc<Vec<(INodeNo, FileType, OsString)>>);

impl Listing {
    pub fn read(folder: &OwnedFd) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = fs::open(path_of(folder), flags, Mode::empty())?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&open)? {
            let entry = entry?;
            let kind = kind_of(entry.file_type().as_raw_mode());
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            entries.push((number(entry.ino()), kind, name));
        }
        Ok(Listing(Arc::new(entries)))
    }

    pub fn entries(&self) -> &[(INodeNo, FileType, OsString)] {
        &self.0
    }
}
