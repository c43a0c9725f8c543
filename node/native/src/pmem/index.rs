//! The view of the log: where each live entry lies, and the latest hard state, configuration and marks.
//!
//! Records are taken in LSN order and the last one wins: an entry at index i supersedes every earlier record with an
//! index not below i. The same rules hold for what is appended and for what is recovered. Memory: about 32 bytes per live
//! entry, released with the segments that hold them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::record::{self, Codec, Draft, LogCorrupt};

/// No entry has a higher index: sums of an index and a count never overflow, whatever a valid record says.
const MAX_INDEX: u64 = i64::MAX as u64;

struct Location {
    lsn: u64,
    term: u64,
    total_bytes: u32,
}

/// A mark as last written: term, index, payload.
type Mark = (u64, u64, Vec<u8>);
type MarkOut<'py> = (u8, u64, u64, Bound<'py, PyBytes>);

#[derive(Default)]
struct State {
    /// Index and term that the first entry follows; `None` until an entry, a position or a snapshot has told.
    base: Option<(u64, u64)>,
    entries: VecDeque<Location>,
    term: u64,
    vote: u64,
    commit: u64,
    configuration: Option<(u64, u64, Vec<u8>)>,
    marks: BTreeMap<u8, Mark>,
}

/// Whether the log ends, or begins, at the record's index.
fn moves_the_end(draft: &Draft<'_>) -> bool {
    draft.record_type == record::ENTRY
        || (draft.record_type == record::MARK
            && matches!(draft.kind, record::MARK_POSITION | record::MARK_SNAPSHOT))
}

impl State {
    fn last(&self) -> (u64, u64) {
        let (base_index, base_term) = self.base.unwrap_or((0, 0));
        match self.entries.back() {
            Some(entry) => (base_index + self.entries.len() as u64, entry.term),
            None => (base_index, base_term),
        }
    }

    /// Takes the record at `lsn` into the view, or says why it cannot follow what came before.
    fn apply(&mut self, draft: &Draft<'_>, lsn: u64, total_bytes: usize) -> Result<(), String> {
        if moves_the_end(draft) && draft.index > MAX_INDEX {
            return Err(format!("index {} is out of range", draft.index));
        }
        match draft.record_type {
            record::ENTRY => {
                let (last_index, _) = self.last();
                if draft.index == 0 || (self.base.is_some() && draft.index > last_index + 1) {
                    return Err(format!(
                        "entry {} does not follow entry {last_index}",
                        draft.index
                    ));
                }
                let base_index = self.base.map_or(draft.index - 1, |(index, _)| index);
                if self.base.is_none() || draft.index <= base_index {
                    self.base = Some((draft.index - 1, 0));
                    self.entries.clear();
                } else {
                    self.entries
                        .truncate((draft.index - base_index - 1) as usize);
                }
                self.entries.push_back(Location {
                    lsn,
                    term: draft.term,
                    total_bytes: total_bytes as u32,
                });
            }
            record::HARD_STATE => {
                let kept = draft.term == self.term && (self.vote == 0 || draft.aux == self.vote);
                if draft.term < self.term || (draft.term == self.term && !kept) {
                    return Err(format!(
                        "hard state of term {} and vote {:x} after one of term {} and vote {:x}",
                        draft.term, draft.aux, self.term, self.vote
                    ));
                }
                (self.term, self.vote, self.commit) = (draft.term, draft.aux, draft.index);
            }
            record::CONFIGURATION => {
                // An empty payload says that there is none yet: segments begin with a configuration in any case.
                self.configuration = (!draft.payload.is_empty())
                    .then(|| (draft.term, draft.index, draft.payload.to_vec()));
            }
            record::MARK if draft.kind == record::MARK_POSITION => {
                let at = (draft.index, draft.term);
                if self.base.is_none() {
                    self.base = Some(at);
                } else if self.last().0 != draft.index {
                    return Err(format!(
                        "the log ends at {}, not at {} as marked",
                        self.last().0,
                        draft.index
                    ));
                }
            }
            record::MARK => {
                if draft.kind == record::MARK_SNAPSHOT {
                    self.base = Some((draft.index, draft.term));
                    self.entries.clear();
                }
                self.marks.insert(
                    draft.kind,
                    (draft.term, draft.index, draft.payload.to_vec()),
                );
            }
            _ => {}
        }
        Ok(())
    }
}

/// A record handed in from Python: (type, kind, term, index, payload).
pub struct Item<'py> {
    record_type: u8,
    kind: u8,
    term: u64,
    index: u64,
    payload: Bound<'py, PyBytes>,
}

impl Item<'_> {
    pub fn draft(&self) -> PyResult<Draft<'_>> {
        let payload = self.payload.as_bytes();
        let mut draft = Draft {
            record_type: self.record_type,
            kind: self.kind,
            term: self.term,
            index: self.index,
            aux: 0,
            payload,
        };
        if self.record_type == record::HARD_STATE {
            let vote = payload
                .try_into()
                .map_err(|_| PyValueError::new_err("a hard state's payload is 8 bytes"))?;
            draft.aux = u64::from_le_bytes(vote);
            draft.payload = &[];
        }
        Ok(draft)
    }
}

/// Takes a batch apart; nothing has been written yet when it is refused.
pub fn items<'py>(records: &Bound<'py, PyAny>) -> PyResult<Vec<Item<'py>>> {
    let mut items = Vec::with_capacity(records.len().unwrap_or(0));
    for record in records.try_iter()? {
        let record = record?;
        let tuple = record.cast::<PyTuple>()?;
        if tuple.len() != 5 {
            return Err(PyValueError::new_err(
                "a record is (type, kind, term, index, payload)",
            ));
        }
        let item = Item {
            record_type: tuple.get_item(0)?.extract()?,
            kind: tuple.get_item(1)?.extract()?,
            term: tuple.get_item(2)?.extract()?,
            index: tuple.get_item(3)?.extract()?,
            payload: tuple.get_item(4)?.cast_into::<PyBytes>()?,
        };
        if !(record::ENTRY..=record::MARK).contains(&item.record_type) {
            return Err(PyValueError::new_err(format!(
                "no record type {}",
                item.record_type
            )));
        }
        items.push(item);
    }
    Ok(items)
}

/// Where each live entry lies, and the latest hard state, configuration and marks of the log.
#[pyclass(frozen)]
#[derive(Default)]
pub struct LogIndex {
    state: Mutex<State>,
}

impl LogIndex {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a batch that cannot follow what is there, before any of it is written.
    pub fn check(&self, drafts: &[Draft<'_>]) -> PyResult<()> {
        let state = self.lock();
        let mut last = state.last().0;
        let mut known = state.base.is_some();
        // What was released is in a synced commit: nothing supersedes it any more.
        let mut base = state.base.map_or(0, |(index, _)| index);
        let (mut term, mut vote) = (state.term, state.vote);
        for draft in drafts {
            let wrong = match draft.record_type {
                _ if moves_the_end(draft) && draft.index > MAX_INDEX => {
                    Some(format!("index {} is out of range", draft.index))
                }
                record::ENTRY => {
                    let wrong = draft.index <= base || (known && draft.index > last + 1);
                    let high = std::mem::replace(&mut last, draft.index);
                    known = true;
                    wrong.then(|| format!("entry {} does not follow {base} to {high}", draft.index))
                }
                record::HARD_STATE => {
                    let back =
                        draft.term < term || (draft.term == term && vote != 0 && draft.aux != vote);
                    (term, vote) = (draft.term, draft.aux);
                    back.then(|| format!("term {} or its vote goes back", draft.term))
                }
                record::MARK if draft.kind == record::MARK_POSITION => {
                    let wrong = known && last != draft.index;
                    (last, known) = (draft.index, true);
                    wrong.then(|| format!("the log does not end at {}", draft.index))
                }
                record::MARK if draft.kind == record::MARK_SNAPSHOT => {
                    (last, known, base) = (draft.index, true, draft.index);
                    None
                }
                _ => None,
            };
            if let Some(message) = wrong {
                return Err(PyValueError::new_err(message));
            }
        }
        Ok(())
    }

    /// Takes a batch that `check` has let through.
    pub fn extend(&self, drafts: &[Draft<'_>], places: &[(u64, usize)]) -> PyResult<()> {
        let mut state = self.lock();
        for (draft, (lsn, total_bytes)) in drafts.iter().zip(places) {
            state
                .apply(draft, *lsn, *total_bytes)
                .map_err(PyValueError::new_err)?;
        }
        Ok(())
    }
}

#[pymethods]
impl LogIndex {
    #[new]
    fn new() -> Self {
        LogIndex::default()
    }

    /// Takes all records of `data`, which lies at `lsn`. Returns their number and the highest entry index among them (0:
    /// none). With `preamble` they must start as every segment does (D5): hard state, configuration, position, and
    /// between them a pad where the ring wrapped.
    #[pyo3(signature = (data, lsn, generation, seed, preamble = false))]
    pub fn absorb(
        &self,
        data: &[u8],
        lsn: u64,
        generation: u64,
        seed: u32,
        preamble: bool,
    ) -> PyResult<(usize, u64)> {
        let codec = Codec { generation, seed };
        let mut state = self.lock();
        let (mut offset, mut count, mut highest) = (0, 0, 0);
        let mut begun = 0;
        while offset < data.len() {
            let here = lsn + offset as u64;
            let rest = &data[offset..];
            let found = record::decode(rest, codec, here)
                .ok_or_else(|| LogCorrupt::new_err(format!("no valid record at LSN {here}")))?;
            if let Some(message) = record::unsupported(rest, &found) {
                return Err(LogCorrupt::new_err(message));
            }
            let starts = [record::HARD_STATE, record::CONFIGURATION, record::MARK];
            if preamble && begun < starts.len() && found.record_type != record::PAD {
                if found.record_type != starts[begun] {
                    return Err(LogCorrupt::new_err(format!(
                        "the segment at LSN {lsn} lacks its hard state"
                    )));
                }
                begun += 1;
            }
            let draft = Draft {
                record_type: found.record_type,
                kind: found.kind,
                term: found.term,
                index: found.index,
                aux: found.aux,
                payload: found.payload,
            };
            state
                .apply(&draft, here, found.total_bytes)
                .map_err(|message| LogCorrupt::new_err(format!("at LSN {here}: {message}")))?;
            if found.record_type == record::ENTRY {
                highest = highest.max(found.index);
            }
            count += 1;
            offset += found.total_bytes;
        }
        Ok((count, highest))
    }

    /// Starts an empty log behind (index, term).
    fn reset(&self, index: u64, term: u64) {
        let mut state = self.lock();
        state.base = Some((index, term));
        state.entries.clear();
    }

    /// Forgets the entries before LSN `lsn`: their segments are gone.
    pub fn release(&self, lsn: u64) {
        let mut state = self.lock();
        // Entries are in LSN order: a superseding entry drops all that followed the one it replaces.
        while state.entries.front().is_some_and(|entry| entry.lsn < lsn) {
            let gone = state.entries.pop_front().expect("a first entry");
            let index = state.base.map_or(0, |(index, _)| index) + 1;
            state.base = Some((index, gone.term));
        }
    }

    /// Entries of [lo, hi) that are held, from the first on, of about `max_bytes` in all, but at least one: index, LSN,
    /// bytes. Empty when `lo` is not held.
    pub fn locate(&self, lo: u64, hi: u64, max_bytes: u64) -> Vec<(u64, u64, u32)> {
        let state = self.lock();
        let Some((base, _)) = state.base else {
            return Vec::new();
        };
        if lo <= base {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut bytes = 0u64;
        for (index, entry) in (lo..hi).zip(state.entries.iter().skip((lo - base - 1) as usize)) {
            bytes += u64::from(entry.total_bytes);
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push((index, entry.lsn, entry.total_bytes));
        }
        found
    }

    /// Term of the entry at `index`, also of the one before the first where it is known (0: not known); else None.
    fn term(&self, index: u64) -> Option<u64> {
        let state = self.lock();
        let (base_index, base_term) = state.base?;
        match index.checked_sub(base_index)? {
            0 => Some(base_term),
            n => state.entries.get((n - 1) as usize).map(|entry| entry.term),
        }
    }

    #[getter]
    pub fn first_index(&self) -> u64 {
        self.lock().base.map_or(1, |(index, _)| index + 1)
    }

    /// Index and term of the last entry, or of the position that an empty log starts behind.
    #[getter]
    pub fn last(&self) -> (u64, u64) {
        self.lock().last()
    }

    /// Term, vote, commit.
    #[getter]
    pub fn hard_state(&self) -> (u64, u64, u64) {
        let state = self.lock();
        (state.term, state.vote, state.commit)
    }

    /// Term, index, payload of the latest configuration.
    #[getter]
    fn configuration<'py>(&self, py: Python<'py>) -> Option<(u64, u64, Bound<'py, PyBytes>)> {
        let state = self.lock();
        state
            .configuration
            .as_ref()
            .map(|(term, index, payload)| (*term, *index, PyBytes::new(py, payload)))
    }

    /// The latest mark of a kind: term, index, payload.
    fn mark<'py>(&self, py: Python<'py>, kind: u8) -> Option<(u64, u64, Bound<'py, PyBytes>)> {
        let state = self.lock();
        state
            .marks
            .get(&kind)
            .map(|(term, index, payload)| (*term, *index, PyBytes::new(py, payload)))
    }

    /// The latest marks of kinds not below `from_kind`: kind, term, index, payload.
    fn marks_from<'py>(&self, py: Python<'py>, from_kind: u8) -> Vec<MarkOut<'py>> {
        let state = self.lock();
        let out = |(kind, (term, index, payload)): (&u8, &Mark)| {
            (*kind, *term, *index, PyBytes::new(py, payload))
        };
        state.marks.range(from_kind..).map(out).collect()
    }

    /// The first index from which the entries to the last take at most `max_bytes` in all.
    fn tail(&self, max_bytes: u64) -> u64 {
        let state = self.lock();
        let mut bytes = 0;
        let held = state.entries.iter().rev().take_while(|entry| {
            bytes += u64::from(entry.total_bytes);
            bytes <= max_bytes
        });
        let count = held.count() as u64;
        state.last().0 + 1 - count
    }

    fn __len__(&self) -> usize {
        self.lock().entries.len()
    }
}

/// Encodes a batch that will lie at `lsn`, and takes it into `index`: what `disk` mode appends. Pads are never needed.
#[pyfunction]
pub fn log_encode<'py>(
    py: Python<'py>,
    records: &Bound<'py, PyAny>,
    lsn: u64,
    fenced_lsn: u64,
    generation: u64,
    seed: u32,
    index: &LogIndex,
) -> PyResult<Bound<'py, PyBytes>> {
    let items = items(records)?;
    let drafts = items
        .iter()
        .map(Item::draft)
        .collect::<PyResult<Vec<_>>>()?;
    index.check(&drafts)?;
    let codec = Codec { generation, seed };
    let mut out = Vec::with_capacity(
        drafts
            .iter()
            .map(|d| record::record_bytes(d.payload.len()))
            .sum(),
    );
    let mut places = Vec::with_capacity(drafts.len());
    for draft in &drafts {
        let at = out.len();
        record::encode(&mut out, codec, draft, lsn + at as u64, fenced_lsn);
        places.push((lsn + at as u64, out.len() - at));
    }
    index.extend(&drafts, &places)?;
    Ok(PyBytes::new(py, &out))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by fuzzing: an index at the end of its range overflowed where the next one was counted.
    #[test]
    fn an_index_beyond_the_range_is_refused() {
        for (record_type, kind) in [
            (record::ENTRY, 0),
            (record::MARK, record::MARK_POSITION),
            (record::MARK, record::MARK_SNAPSHOT),
        ] {
            for index in [MAX_INDEX + 1, u64::MAX] {
                let draft = Draft {
                    record_type,
                    kind,
                    term: 1,
                    index,
                    aux: 0,
                    payload: &[],
                };
                let view = LogIndex::default();
                assert!(view.check(&[draft]).is_err());
                assert!(view.extend(&[draft], &[(0, 64)]).is_err());
                assert_eq!(view.last(), (0, 0));
            }
        }
    }
}
