//! A disk with chosen faults: a FUSE file system that passes everything through to another folder, but for flushes and
//! room, which a control file rules.
//!
//!     slowfs BACKING MOUNTPOINT CONTROL
//!
//! It runs in the foreground until it is killed or unmounted. CONTROL holds lines `name number`, and is looked at every
//! few milliseconds; whoever writes it replaces it whole (write beside it, rename):
//!
//! - `flush_ms N`: each fsync, fdatasync and synchronous write takes so much longer than the disk below takes
//! - `stalled 1`: none returns until it is 0 again
//! - `fail_flushes N`: the next N fail with EIO, counted from the moment the line changes
//! - `room_bytes N`: files may grow by so many bytes more, then writes fail with ENOSPC; -1: no bound
//!
//! Every program is treated alike, whatever it was written in. Reads, maps (shared ones too) and writes without a flush
//! go through the kernel's page cache as on any disk. Flushes reach the disk below before they are delayed or failed.
//! Locks are the kernel's own.

mod faults;
mod nodes;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use faults::Faults;
use fuser::{
    Config, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, MountOption,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, SessionACL, TimeOrNow, WriteFlags,
};
use nodes::{attributes, Handles, Listing, Nodes};
use rustix::fs::{self, AtFlags, Mode, OFlags, Timespec, Timestamps};

/// So long the kernel may believe what it was told: nobody else changes the folder below.
const TTL: Duration = Duration::from_secs(60);
const THREADS: usize = 4;

struct SlowFs {
    nodes: Nodes,
    files: Handles<Arc<File>>,
    listings: Handles<Listing>,
    faults: Arc<Faults>,
}

fn errno(error: impl Into<io::Error>) -> Errno {
    error.into().into()
}

fn moment(time: TimeOrNow) -> Timespec {
    match time {
        TimeOrNow::Now => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        TimeOrNow::SpecificTime(at) => {
            let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timespec {
                tv_sec: since.as_secs() as i64,
                tv_nsec: since.subsec_nanos().into(),
            }
        }
    }
}

const OMIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: rustix::fs::UTIME_OMIT,
};

impl SlowFs {
    /// Flushes off the threads that serve the kernel, so that a stalled one holds up nothing else.
    fn flush(&self, file: Arc<File>, datasync: bool, reply: ReplyEmpty) {
        let faults = self.faults.clone();
        let work = move || {
            let flushed = if datasync {
                file.sync_data()
            } else {
                file.sync_all()
            };
            match flushed.and_then(|()| faults.flush()) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error.into()),
            }
        };
        if self.faults.quiet() {
            work();
        } else {
            std::thread::spawn(work);
        }
    }

    fn set(
        &self,
        ino: INodeNo,
        mode: Option<u32>,
        owner: (Option<u32>, Option<u32>),
        size: Option<u64>,
        times: (Option<TimeOrNow>, Option<TimeOrNow>),
        fh: Option<FileHandle>,
    ) -> io::Result<fuser::FileAttr> {
        let node = self.nodes.get(ino)?;
        let path = nodes::path_of(&node);
        if let Some(mode) = mode {
            fs::chmod(&path, Mode::from_raw_mode(mode))?;
        }
        if owner.0.is_some() || owner.1.is_some() {
            let (user, group) = (owner.0.map(fs::Uid::from_raw), owner.1.map(fs::Gid::from_raw));
            fs::chownat(&*node, "", user, group, AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = size {
            match fh.and_then(|fh| self.files.get(fh.0)) {
                Some(file) => file.set_len(size)?,
                None => File::options().write(true).open(&path)?.set_len(size)?,
            }
        }
        if times.0.is_some() || times.1.is_some() {
            let stamps = Timestamps {
                last_access: times.0.map_or(OMIT, moment),
                last_modification: times.1.map_or(OMIT, moment),
            };
            fs::utimensat(fs::CWD, &path, &stamps, AtFlags::empty())?;
        }
        Ok(attributes(ino, &fs::fstat(&*node)?))
    }

    fn open_node(&self, ino: INodeNo, flags: i32) -> io::Result<u64> {
        let flags = OFlags::from_bits_retain(flags as u32) - OFlags::NOFOLLOW - OFlags::CREATE;
        // Writes arrive with their place; an appending file below would ignore it.
        let flags = flags - OFlags::APPEND - OFlags::DSYNC - OFlags::SYNC;
        let path = nodes::path_of(&*self.nodes.get(ino)?);
        let file = File::from(fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty())?);
        Ok(self.files.add(Arc::new(file)))
    }

    fn create_node(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> io::Result<(fuser::FileAttr, u64)> {
        self.faults.room_for_a_name()?;
        let flags = OFlags::from_bits_retain(flags as u32) - OFlags::APPEND - OFlags::DSYNC - OFlags::SYNC;
        let folder = self.nodes.get(parent)?;
        let flags = flags | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&*folder, name, flags, Mode::from_raw_mode(mode))?;
        let attr = self.nodes.look_up(parent, name)?;
        Ok((attr, self.files.add(Arc::new(File::from(file)))))
    }

    fn write_at(&self, fh: FileHandle, offset: u64, data: &[u8]) -> io::Result<u32> {
        let file = self.files.get(fh.0).ok_or(rustix::io::Errno::BADF)?;
        self.faults.grow(&file, offset + data.len() as u64)?;
        file.write_all_at(data, offset)?;
        Ok(data.len() as u32)
    }

    fn read_at(&self, fh: FileHandle, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        let file = self.files.get(fh.0).ok_or(rustix::io::Errno::BADF)?;
        let mut data = vec![0; size as usize];
        let mut filled = 0;
        while filled < data.len() {
            match file.read_at(&mut data[filled..], offset + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        data.truncate(filled);
        Ok(data)
    }
}

fn answer(reply: ReplyEmpty, result: io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

fn answer_entry(reply: ReplyEntry, result: io::Result<fuser::FileAttr>) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(error.into()),
    }
}

impl Filesystem for SlowFs {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer_entry(reply, self.nodes.look_up(parent, name));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.nodes.forget(ino, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.nodes.get(ino).and_then(|node| Ok(fs::fstat(&*node)?));
        match found {
            Ok(stat) => reply.attr(&TTL, &attributes(ino, &stat)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.set(ino, mode, (uid, gid), size, (atime, mtime), fh) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self
            .nodes
            .get(ino)
            .and_then(|node| Ok(fs::readlinkat(&*node, "", Vec::new())?));
        match target {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.faults.room_for_a_name().and_then(|()| {
            fs::mkdirat(&*self.nodes.get(parent)?, name, Mode::from_raw_mode(mode))?;
            self.nodes.look_up(parent, name)
        });
        answer_entry(reply, made);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let folder = self.nodes.get(parent);
        answer(
            reply,
            folder.and_then(|folder| Ok(fs::unlinkat(&*folder, name, AtFlags::empty())?)),
        );
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let folder = self.nodes.get(parent);
        answer(
            reply,
            folder.and_then(|folder| Ok(fs::unlinkat(&*folder, name, AtFlags::REMOVEDIR)?)),
        );
    }

    fn symlink(&self, _req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.nodes.get(parent).and_then(|folder| {
            fs::symlinkat(target, &*folder, link_name)?;
            self.nodes.look_up(parent, link_name)
        });
        answer_entry(reply, made);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = fs::RenameFlags::from_bits_retain(flags.bits());
        let done = self.nodes.get(parent).and_then(|from| {
            let to = self.nodes.get(newparent)?;
            Ok(fs::renameat_with(&*from, name, &*to, newname, flags)?)
        });
        answer(reply, done);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let made = self.nodes.get(ino).and_then(|node| {
            let folder = self.nodes.get(newparent)?;
            let path = nodes::path_of(&node);
            fs::linkat(fs::CWD, path, &*folder, newname, AtFlags::SYMLINK_FOLLOW)?;
            self.nodes.look_up(newparent, newname)
        });
        answer_entry(reply, made);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open_node(ino, flags.0) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.create_node(parent, name, mode, flags) {
            Ok((attr, fh)) => reply.created(
                &TTL,
                &attr,
                Generation(0),
                FileHandle(fh),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_at(fh, offset, size) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_at(fh, offset, data) {
            Ok(count) => reply.written(count),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok(); // a close, which flushes nothing on a disk either
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.remove(fh.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        match self.files.get(fh.0) {
            Some(file) => self.flush(file, datasync, reply),
            None => reply.error(errno(rustix::io::Errno::BADF)),
        }
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.nodes.get(ino).and_then(|node| Listing::read(&node)) {
            Ok(listing) => reply.opened(FileHandle(self.listings.add(listing)), FopenFlags::empty()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(listing) = self.listings.get(fh.0) else {
            return reply.error(errno(rustix::io::Errno::BADF));
        };
        for (place, (ino, kind, name)) in listing.entries().iter().enumerate().skip(offset as usize) {
            if reply.add(*ino, place as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listings.remove(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let folder = self
            .nodes
            .get(ino)
            .and_then(|node| File::open(nodes::path_of(&node)));
        match folder {
            Ok(folder) => self.flush(Arc::new(folder), datasync, reply),
            Err(error) => reply.error(error.into()),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self
            .nodes
            .get(INodeNo::ROOT)
            .and_then(|root| Ok(fs::fstatvfs(&*root)?))
        {
            Ok(found) => {
                let block = found.f_frsize.max(1);
                let free = self
                    .faults
                    .room()
                    .map_or(found.f_bavail, |room| (room / block).min(found.f_bavail));
                reply.statfs(
                    found.f_blocks,
                    free,
                    free,
                    found.f_files,
                    found.f_ffree,
                    found.f_bsize as u32,
                    found.f_namemax as u32,
                    block as u32,
                );
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let done = self
            .files
            .get(fh.0)
            .ok_or(rustix::io::Errno::BADF.into())
            .and_then(|file| {
                self.faults.grow(&file, offset + length)?;
                let flags = fs::FallocateFlags::from_bits_retain(mode as u32);
                Ok(fs::fallocate(&*file, flags, offset, length)?)
            });
        answer(reply, done);
    }
}

fn run(backing: &Path, mountpoint: &Path, control: PathBuf) -> io::Result<()> {
    let faults = Arc::new(Faults::default());
    let watched = faults.clone();
    std::thread::spawn(move || watched.follow(&control));
    let filesystem = SlowFs {
        nodes: Nodes::new(backing)?,
        files: Handles::default(),
        listings: Handles::default(),
        faults,
    };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("slowfs".into()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    config.acl = SessionACL::Owner;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    fuser::mount(filesystem, mountpoint, &config)
}

fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [backing, mountpoint, control] = arguments.as_slice() else {
        eprintln!("usage: slowfs BACKING MOUNTPOINT CONTROL");
        std::process::exit(64);
    };
    // The kernel has applied the caller's mask already.
    rustix::process::umask(Mode::empty());
    if let Err(error) = run(backing, mountpoint, control.clone()) {
        eprintln!("slowfs: {error}");
        std::process::exit(1);
    }
}
