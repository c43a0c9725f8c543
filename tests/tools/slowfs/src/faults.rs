//! What is wrong with the disk at this moment, as the control file says.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

const LOOK: Duration = Duration::from_millis(5);

#[derive(Default)]
struct State {
    flush_ms: u64,
    stalled: bool,
    fail_flushes: u64,
    /// None: no bound.
    room: Option<u64>,
}

#[derive(Default)]
pub struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

impl Faults {
    /// Whether a flush returns at once.
    pub fn quiet(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.flush_ms == 0 && !state.stalled
    }

    /// What a flush has to go through once the disk below has done it.
    pub fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        while state.stalled {
            state = self.changed.wait(state).unwrap();
        }
        let wait = Duration::from_millis(state.flush_ms);
        let fails = state.fail_flushes > 0;
        state.fail_flushes = state.fail_flushes.saturating_sub(1);
        drop(state);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        if fails {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    /// Bytes that still fit, if there is a bound.
    pub fn room(&self) -> Option<u64> {
        self.state.lock().unwrap().room
    }

    /// A file is about to reach so far: takes what it grows by from the room.
    pub fn grow(&self, file: &File, end: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let Some(room) = state.room else {
            return Ok(());
        };
        let growth = end.saturating_sub(file.metadata()?.len());
        if growth > room {
            return Err(no_space());
        }
        state.room = Some(room - growth);
        Ok(())
    }

    /// A new name needs some room too.
    pub fn room_for_a_name(&self) -> io::Result<()> {
        match self.room() {
            Some(0) => Err(no_space()),
            _ => Ok(()),
        }
    }

    /// Looks at the control file for ever.
    pub fn follow(&self, control: &Path) {
        let mut known = String::new();
        loop {
            if let Ok(text) = std::fs::read_to_string(control) {
                if text != known {
                    self.take(&known, &text);
                    known = text;
                }
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Obeys the lines that have changed: a count that goes on is not begun anew.
    fn take(&self, known: &str, text: &str) {
        let mut state = self.state.lock().unwrap();
        for line in text.lines().filter(|line| !known.lines().any(|old| old == *line)) {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            let number: i64 = words
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or_default();
            match name {
                "flush_ms" => state.flush_ms = number.max(0) as u64,
                "stalled" => state.stalled = number != 0,
                "fail_flushes" => state.fail_flushes = number.max(0) as u64,
                "room_bytes" => state.room = u64::try_from(number).ok(),
                _ => eprintln!("slowfs: {line:?} is not understood"),
            }
        }
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_changed_are_obeyed() {
        let faults = Faults::default();
        faults.take("", "fail_flushes 2\nflush_ms 0\n");
        assert_eq!(faults.flush().unwrap_err().raw_os_error(), Some(libc::EIO));
        faults.take("fail_flushes 2\nflush_ms 0\n", "fail_flushes 2\nflush_ms 1\n");
        assert!(!faults.quiet());
        assert!(faults.flush().is_err());
        assert!(faults.flush().is_ok());
    }

    #[test]
    fn a_bound_of_room_is_taken_up_by_growth_only() {
        let faults = Faults::default();
        let path = std::env::temp_dir().join(format!("slowfs-room-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        file.set_len(100).unwrap();
        faults.take("", "room_bytes 10\n");
        assert!(faults.grow(&file, 100).is_ok());
        assert_eq!(
            faults.grow(&file, 111).unwrap_err().raw_os_error(),
            Some(libc::ENOSPC)
        );
        assert!(faults.grow(&file, 110).is_ok());
        assert_eq!(faults.room(), Some(0));
        assert!(faults.room_for_a_name().is_err());
        faults.take("room_bytes 10\n", "room_bytes -1\n");
        assert!(faults.grow(&file, 1000).is_ok());
        std::fs::remove_file(path).unwrap();
    }
}
