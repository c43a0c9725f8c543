//! A timer wheel for deadlines that mostly do not come true.
//!
//! Nearly every call ends long before its deadline, so setting a timer must cost next to nothing and taking it back must
//! cost nothing at all: a timer is never removed, it fires and its owner finds that it means nothing any more. Timers
//! beyond one turn of the wheel are looked at once per turn. Resolution: [`TICK_MS`].

use std::time::{Duration, Instant};

const TICK_MS: u64 = 8;
const SLOTS: usize = 1024;

/// Whose timer it is. Ids are never used twice, so a stale timer finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    Call(u64),
    Connection { token: usize, serial: u64 },
    Link { link: u64, attempt: u64 },
    Accept,
    Shutdown,
}

pub struct Wheel {
    start: Instant,
    /// The first tick that has not been looked at.
    next_tick: u64,
    slots: Vec<Vec<(u64, Timer)>>,
    /// One bit per slot that is not empty.
    occupied: [u64; SLOTS / 64],
}

impl Wheel {
    pub fn new(now: Instant) -> Self {
        Wheel {
            start: now,
            next_tick: 0,
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            occupied: [0; SLOTS / 64],
        }
    }

    /// Fires at `at` or up to a tick later.
    pub fn set(&mut self, at: Instant, timer: Timer) {
        let ms = at.saturating_duration_since(self.start).as_millis() as u64;
        self.insert(self.next_tick.max(ms / TICK_MS + 1), timer);
    }

    fn insert(&mut self, tick: u64, timer: Timer) {
        let slot = tick as usize % SLOTS;
        self.slots[slot].push((tick, timer));
        self.occupied[slot / 64] |= 1 << (slot % 64);
    }

    /// How long until a slot with timers in it comes up.
    pub fn next(&self, now: Instant) -> Option<Duration> {
        let first = self.next_tick as usize % SLOTS;
        let ahead = (0..=SLOTS / 64).find_map(|i| {
            let word = (first / 64 + i) % (SLOTS / 64);
            let mut bits = self.occupied[word];
            if i == 0 {
                bits &= !0 << (first % 64);
            } else if i == SLOTS / 64 {
                bits &= !(!0 << (first % 64));
            }
            (bits != 0)
                .then(|| (word * 64 + bits.trailing_zeros() as usize + SLOTS - first) % SLOTS)
        })?;
        let at = self.start + Duration::from_millis((self.next_tick + ahead as u64) * TICK_MS);
        Some(at.saturating_duration_since(now))
    }

    /// Moves on to `now`; what is due goes to `due`.
    pub fn advance(&mut self, now: Instant, due: &mut Vec<Timer>) {
        let end = now.saturating_duration_since(self.start).as_millis() as u64 / TICK_MS + 1;
        // After a long pause one turn looks at every slot; more would find nothing.
        let first = self.next_tick.max(end.saturating_sub(SLOTS as u64));
        self.next_tick = end.max(self.next_tick);
        for tick in first..end {
            let slot = tick as usize % SLOTS;
            if self.occupied[slot / 64] & (1 << (slot % 64)) == 0 {
                continue;
            }
            self.slots[slot].retain(|(at, timer)| {
                if *at < end {
                    due.push(*timer);
                }
                *at >= end
            });
            if self.slots[slot].is_empty() {
                self.occupied[slot / 64] &= !(1 << (slot % 64));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn fired(wheel: &mut Wheel, now: Instant) -> Vec<Timer> {
        let mut due = Vec::new();
        wheel.advance(now, &mut due);
        due
    }

    #[test]
    fn fires_after_its_time_and_only_once() {
        let t0 = Instant::now();
        let mut wheel = Wheel::new(t0);
        wheel.set(t0 + ms(100), Timer::Call(1));
        wheel.set(t0 + ms(20), Timer::Call(2));
        assert_eq!(fired(&mut wheel, t0 + ms(19)), vec![]);
        assert_eq!(fired(&mut wheel, t0 + ms(32)), vec![Timer::Call(2)]);
        assert!(wheel.next(t0 + ms(32)).unwrap() <= ms(80));
        assert_eq!(fired(&mut wheel, t0 + ms(112)), vec![Timer::Call(1)]);
        assert_eq!(wheel.next(t0 + ms(112)), None);
    }

    #[test]
    fn waits_more_than_a_turn() {
        let t0 = Instant::now();
        let mut wheel = Wheel::new(t0);
        let turn = TICK_MS * SLOTS as u64;
        wheel.set(t0 + ms(3 * turn + 50), Timer::Call(7));
        for t in (0..3 * turn + 48).step_by(1000) {
            assert_eq!(fired(&mut wheel, t0 + ms(t)), vec![]);
        }
        assert_eq!(
            fired(&mut wheel, t0 + ms(3 * turn + 64)),
            vec![Timer::Call(7)]
        );
    }

    #[test]
    fn a_long_pause_fires_all() {
        let t0 = Instant::now();
        let mut wheel = Wheel::new(t0);
        for i in 0..500 {
            wheel.set(t0 + ms(i * 37), Timer::Call(i));
        }
        assert_eq!(fired(&mut wheel, t0 + ms(1_000_000)).len(), 500);
        assert_eq!(fired(&mut wheel, t0 + ms(2_000_000)).len(), 0);
    }

    #[test]
    fn past_deadlines_fire_at_the_next_tick() {
        let t0 = Instant::now();
        let mut wheel = Wheel::new(t0);
        fired(&mut wheel, t0 + ms(1000));
        wheel.set(t0 + ms(10), Timer::Shutdown);
        assert_eq!(fired(&mut wheel, t0 + ms(1020)), vec![Timer::Shutdown]);
    }
}
