//! The mapping: the only code that touches it, by three operations: store, flush, fence.
//!
//! On a DAX file system the file is mapped with `MAP_SYNC`: then a store that was flushed from the cache and fenced is
//! in the platform's persistence domain, file-system metadata included. Elsewhere the mapping is an ordinary shared one
//! (what that is worth is decided, and said, above this code); the same instructions run, so that there is one code path.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::recorder::Recorder;

const LINE_BYTES: usize = 64;

/// How a line is written back from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// CLWB: writes back and may keep the line.
    Clwb,
    /// CLFLUSHOPT: writes back and evicts; ordered by a fence only.
    ClflushOpt,
    /// CLFLUSH: writes back and evicts, one after another.
    Clflush,
    /// Nothing: caches are in the persistence domain (eADR), or there is no known instruction on this processor.
    None,
}

impl Flush {
    pub fn name(self) -> &'static str {
        match self {
            Flush::Clwb => "clwb",
            Flush::ClflushOpt => "clflushopt",
            Flush::Clflush => "clflush",
            Flush::None => "none",
        }
    }

    /// The best that this processor has.
    // CPUID became a safe intrinsic after the oldest compiler that we build with (Debian 13's).
    #[allow(unused_unsafe)]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use core::arch::x86_64::{__cpuid, __cpuid_count};
            // SAFETY: every x86-64 processor has the CPUID instruction; leaf 0 says which leaves exist.
            if unsafe { __cpuid(0) }.eax >= 7 {
                // CPUID leaf 7, sub-leaf 0: EBX bit 24 is CLWB, bit 23 is CLFLUSHOPT.
                // SAFETY: as above; leaf 7 exists.
                let ebx = unsafe { __cpuid_count(7, 0) }.ebx;
                if ebx & (1 << 24) != 0 {
                    return Flush::Clwb;
                }
                if ebx & (1 << 23) != 0 {
                    return Flush::ClflushOpt;
                }
            }
            Flush::Clflush // part of the x86-64 baseline (SSE2)
        }
        #[cfg(not(target_arch = "x86_64"))]
        Flush::None
    }
}

/// A shared, writable mapping of a whole file.
pub struct Memory {
    base: NonNull<u8>,
    length: usize,
    pub map_sync: bool,
    pub flush: Flush,
    recorder: Option<Arc<Mutex<Recorder>>>,
}

// SAFETY: the mapping belongs to this value alone and stays until it is dropped; all writes need `&mut self`.
unsafe impl Send for Memory {}

impl Memory {
    /// Maps `length` bytes of `file`, which must be that long and fully allocated: with `MAP_SYNC` where the file system
    /// grants it, else as an ordinary shared mapping.
    pub fn map(file: &File, length: usize, flush: Flush) -> io::Result<Self> {
        match Self::mmap(
            file,
            length,
            libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC | libc::MAP_POPULATE,
        ) {
            Ok(base) => Ok(Memory {
                base,
                length,
                map_sync: true,
                flush,
                recorder: None,
            }),
            // EOPNOTSUPP: the file system is no DAX; EINVAL: a kernel before 4.15, which does not know the flags.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                let base = Self::mmap(file, length, libc::MAP_SHARED | libc::MAP_POPULATE)?;
                Ok(Memory {
                    base,
                    length,
                    map_sync: false,
                    flush,
                    recorder: None,
                })
            }
            Err(e) => Err(e),
        }
    }

    fn mmap(file: &File, length: usize, flags: i32) -> io::Result<NonNull<u8>> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: no address is asked for, so no existing mapping is touched; the descriptor is open; the result is
        // checked against MAP_FAILED before use.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                flags,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at address zero"))
    }

    pub fn record(&mut self, recorder: Arc<Mutex<Recorder>>) {
        self.recorder = Some(recorder);
    }

    fn recorded(&self, f: impl FnOnce(&mut Recorder)) {
        if let Some(recorder) = &self.recorder {
            f(&mut recorder.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Copies `bytes` to `offset`. Not certain to survive anything until flushed and fenced.
    pub fn store(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset
            .checked_add(bytes.len())
            .expect("an offset in the mapping");
        assert!(end <= self.length, "a store past the end of the mapping");
        self.recorded(|r| r.store(offset, bytes));
        // SAFETY: [offset, end) lies in the mapping (asserted above), which is writable and not borrowed by anyone;
        // `bytes` is Rust memory and cannot overlap a mapping that no reference points into.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.base.as_ptr().add(offset),
                bytes.len(),
            )
        };
    }

    /// Starts writing the cache lines of [offset, offset + length) back to the medium.
    pub fn flush(&mut self, offset: usize, length: usize) {
        assert!(
            offset + length <= self.length,
            "a flush past the end of the mapping"
        );
        let first = offset / LINE_BYTES * LINE_BYTES;
        for line in (first..offset + length).step_by(LINE_BYTES) {
            self.write_back(line);
        }
    }

    /// One line. The recorder is told here, and not in `flush`: a line that the loop leaves out is one that it misses.
    fn write_back(&mut self, line: usize) {
        self.recorded(|r| r.flush(line, LINE_BYTES));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the line lies in the mapping (`flush` asserts it, and the mapping is page-aligned). The instructions
        // only write the line back; `Flush::detect` found that the processor has them.
        unsafe {
            let at = self.base.as_ptr().add(line);
            match self.flush {
                Flush::Clwb => {
                    core::arch::asm!("clwb [{}]", in(reg) at, options(nostack, preserves_flags))
                }
                Flush::ClflushOpt => {
                    core::arch::asm!("clflushopt [{}]", in(reg) at, options(nostack, preserves_flags));
                }
                Flush::Clflush => core::arch::x86_64::_mm_clflush(at),
                Flush::None => {}
            }
        }
    }

    /// Orders: what was stored and flushed before is in the persistence domain when anything after this happens.
    pub fn fence(&mut self) {
        self.recorded(Recorder::fence);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SFENCE is part of the x86-64 baseline and has no operands. (In the language's terms it is a compiler
        // barrier as well: the intrinsic is opaque to the optimiser.)
        unsafe {
            core::arch::x86_64::_mm_sfence();
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `map`; no reference into it outlives this value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}
