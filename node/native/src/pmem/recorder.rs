//! The recorder: a shadow of persistent memory beneath store, flush and fence.
//!
//! It keeps every store, flush and fence since it was started, and can say for each moment which 8-byte words were not
//! yet certain, and what the memory would hold if any given choice of them had survived. A word that was stored may reach
//! the medium at any time (caches evict lines when they like), in any order; it certainly has once it was flushed after
//! the store and a fence followed. Eight aligned bytes are what the platform writes whole; nothing larger is relied upon.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

pub const WORD_BYTES: usize = 8;
const LINE_BYTES: usize = 64;

#[derive(Debug)]
enum Event {
    Store { offset: usize, bytes: Vec<u8> },
    Flush { offset: usize, length: usize },
    Fence,
}

/// The log of events, with the memory as it was when recording started.
#[derive(Debug, Default)]
pub struct Recorder {
    base: Vec<u8>,
    events: Vec<Event>,
}

impl Recorder {
    pub fn new(base: Vec<u8>) -> Self {
        Recorder {
            base,
            events: Vec::new(),
        }
    }
    pub fn store(&mut self, offset: usize, bytes: &[u8]) {
        self.events.push(Event::Store {
            offset,
            bytes: bytes.to_vec(),
        });
    }
    /// Lines flushed one after the other are one event: fewer moments, and none of them is lost, since a flush alone makes
    /// nothing certain.
    pub fn flush(&mut self, offset: usize, length: usize) {
        if let Some(Event::Flush {
            offset: first,
            length: so_far,
        }) = self.events.last_mut()
        {
            if *first + *so_far == offset {
                *so_far += length;
                return;
            }
        }
        self.events.push(Event::Flush { offset, length });
    }
    pub fn fence(&mut self) {
        self.events.push(Event::Fence);
    }

    /// The memory certain after the first `at` events, and the uncertain words with their later values, oldest first.
    fn replay(&self, at: usize, without: &str) -> Replay {
        let mut replay = Replay {
            memory: self.base.clone(),
            words: BTreeMap::new(),
        };
        for event in &self.events[..at.min(self.events.len())] {
            match event {
                Event::Store { offset, bytes } => replay.store(*offset, bytes),
                Event::Flush { offset, length } if without != "flush" => {
                    replay.flush(*offset, *length)
                }
                Event::Fence if without != "fence" => replay.fence(),
                Event::Flush { .. } | Event::Fence => {}
            }
        }
        replay
    }
}

/// One uncertain word: its values since the last certain one, and how many of them were flushed.
#[derive(Default)]
struct Word {
    values: Vec<[u8; WORD_BYTES]>,
    flushed: usize,
}

struct Replay {
    memory: Vec<u8>,
    words: BTreeMap<usize, Word>,
}

impl Replay {
    fn current(&self, word: usize) -> [u8; WORD_BYTES] {
        match self.words.get(&word).and_then(|w| w.values.last()) {
            Some(value) => *value,
            None => self.memory[word * WORD_BYTES..][..WORD_BYTES]
                .try_into()
                .expect("a word"),
        }
    }

    fn store(&mut self, offset: usize, bytes: &[u8]) {
        let first = offset / WORD_BYTES;
        let last = (offset + bytes.len()).div_ceil(WORD_BYTES);
        for word in first..last {
            let mut value = self.current(word);
            let before = value;
            for (position, byte) in value.iter_mut().enumerate() {
                let at = word * WORD_BYTES + position;
                if at >= offset && at < offset + bytes.len() {
                    *byte = bytes[at - offset];
                }
            }
            if value != before {
                self.words.entry(word).or_default().values.push(value);
            }
        }
    }

    fn flush(&mut self, offset: usize, length: usize) {
        let first = offset / LINE_BYTES * LINE_BYTES / WORD_BYTES;
        let last = (offset + length).next_multiple_of(LINE_BYTES) / WORD_BYTES;
        for (_, word) in self.words.range_mut(first..last) {
            word.flushed = word.values.len();
        }
    }

    fn fence(&mut self) {
        let memory = &mut self.memory;
        self.words.retain(|position, word| {
            if word.flushed > 0 {
                memory[position * WORD_BYTES..][..WORD_BYTES]
                    .copy_from_slice(&word.values[word.flushed - 1]);
                word.values.drain(..word.flushed);
                word.flushed = 0;
            }
            !word.values.is_empty()
        });
    }
}

/// What was stored, flushed and fenced in a ring since `Ring.record` was called.
#[pyclass(frozen)]
pub struct Recording {
    recorder: Arc<Mutex<Recorder>>,
}

impl Recording {
    pub fn new(recorder: Arc<Mutex<Recorder>>) -> Self {
        Recording { recorder }
    }
    fn with<T>(&self, f: impl FnOnce(&Recorder) -> T) -> T {
        f(&self.recorder.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl Recording {
    /// Number of events so far; a moment is named by how many of them have happened.
    fn __len__(&self) -> usize {
        self.with(|r| r.events.len())
    }

    /// The kinds of the events: "s" for store, "f" for flush, "F" for fence.
    fn kinds(&self) -> String {
        self.with(|r| {
            r.events
                .iter()
                .map(|e| match e {
                    Event::Store { .. } => 's',
                    Event::Flush { .. } => 'f',
                    Event::Fence => 'F',
                })
                .collect()
        })
    }

    /// For each uncertain word after `at` events, in address order, how many later values it may hold. With `without`
    /// "flush" or "fence" the events of that kind did not happen: a planted bug.
    #[pyo3(signature = (at, without = ""))]
    fn uncertain(&self, at: usize, without: &str) -> Vec<usize> {
        self.with(|r| {
            r.replay(at, without)
                .words
                .values()
                .map(|w| w.values.len())
                .collect()
        })
    }

    /// The memory after a power cut at `at`: word i of `uncertain` holds its `choices[i]`-th later value (0: the old one).
    #[pyo3(signature = (at, choices, without = ""))]
    fn image<'py>(
        &self,
        py: Python<'py>,
        at: usize,
        choices: Vec<usize>,
        without: &str,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let mut replay = self.with(|r| r.replay(at, without));
        if choices.len() != replay.words.len() {
            return Err(PyValueError::new_err(format!(
                "{} choices are needed",
                replay.words.len()
            )));
        }
        for ((position, word), choice) in replay.words.iter().zip(choices) {
            if choice > 0 {
                let value = word
                    .values
                    .get(choice - 1)
                    .ok_or_else(|| PyValueError::new_err("no such value of a word"))?;
                replay.memory[position * WORD_BYTES..][..WORD_BYTES].copy_from_slice(value);
            }
        }
        Ok(PyBytes::new(py, &replay.memory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_certain_only_after_flush_and_fence() {
        let mut recorder = Recorder::new(vec![0; 128]);
        recorder.store(0, &[1; 16]);
        recorder.fence();
        assert_eq!(
            recorder.replay(2, "").words.len(),
            2,
            "a fence without a flush makes nothing certain"
        );
        recorder.flush(0, 16);
        recorder.store(0, &[2; 8]);
        recorder.fence();
        let replay = recorder.replay(5, "");
        assert_eq!(
            replay.memory[..16],
            [1; 16],
            "the value at the flush is certain"
        );
        assert_eq!(replay.words.len(), 1, "the later store is not");
    }
}
