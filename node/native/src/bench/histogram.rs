//! Latencies in buckets that are a fixed fraction wide: bounded memory however long a load runs.
//!
//! Values are nanoseconds. Below [`SUB_BUCKETS`] each value has a bucket of its own; above, each power of two is cut into
//! that many. A bucket is at most 1/128 of its values wide and is reported by its middle, so a percentile is at most 0.4%
//! off. Count, sum, sum of squares, minimum and maximum are exact.

const SUB_BITS: u32 = 7;
const SUB_BUCKETS: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS + 1) as usize) << SUB_BITS;

#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    pub count: u64,
    pub sum_ns: f64,
    pub sum_squares: f64,
    pub min_ns: u64,
    pub max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: vec![0; BUCKETS],
            count: 0,
            sum_ns: 0.0,
            sum_squares: 0.0,
            min_ns: u64::MAX,
            max_ns: 0,
        }
    }
}

fn bucket_of(value: u64) -> usize {
    if value < SUB_BUCKETS {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - SUB_BITS;
    (((shift as u64) << SUB_BITS) + (value >> shift)) as usize
}

/// The smallest value of a bucket, and how many values it holds.
fn bounds_of(bucket: usize) -> (u64, u64) {
    let bucket = bucket as u64;
    if bucket < 2 * SUB_BUCKETS {
        return (bucket, 1);
    }
    let shift = (bucket >> SUB_BITS) - 1;
    ((bucket - (shift << SUB_BITS)) << shift, 1 << shift)
}

impl Histogram {
    pub fn record(&mut self, value_ns: u64) {
        self.counts[bucket_of(value_ns)] += 1;
        self.count += 1;
        self.sum_ns += value_ns as f64;
        self.sum_squares += value_ns as f64 * value_ns as f64;
        self.min_ns = self.min_ns.min(value_ns);
        self.max_ns = self.max_ns.max(value_ns);
    }

    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum_ns += other.sum_ns;
        self.sum_squares += other.sum_squares;
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    pub fn clear(&mut self) {
        self.counts.fill(0);
        *self = Histogram {
            counts: std::mem::take(&mut self.counts),
            ..Histogram::empty()
        };
    }

    fn empty() -> Self {
        Histogram {
            counts: Vec::new(),
            ..Histogram::default()
        }
    }

    /// The value that `per_cent` of all values do not exceed (nearest rank); 0 when there is none.
    pub fn percentile(&self, per_cent: f64) -> u64 {
        if self.count == 0 {
            return 0;
        }
        let rank = ((per_cent / 100.0 * self.count as f64).ceil() as u64).clamp(1, self.count);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                let (low, width) = bounds_of(bucket);
                return (low + width / 2).clamp(self.min_ns, self.max_ns);
            }
        }
        self.max_ns
    }

    /// The buckets that hold something: the smallest value, the number of values wide, the count.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(bucket, count)| {
                let (low, width) = bounds_of(bucket);
                (low, width, *count)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_buckets_touch() {
        let mut values: Vec<u64> = (0..2_000).collect();
        for bit in 7..64 {
            let power = 1_u64 << bit;
            values.extend([power - 1, power, power + 1, power + power / 3]);
        }
        values.push(u64::MAX);
        for value in values {
            let (low, width) = bounds_of(bucket_of(value));
            assert!(
                low <= value && value - low < width,
                "{value}: {low}+{width}"
            );
            assert!(
                width == 1 || low / width >= SUB_BUCKETS,
                "{value}: too wide a bucket"
            );
        }
        for bucket in 0..BUCKETS - 1 {
            let (low, width) = bounds_of(bucket);
            assert_eq!(low + width, bounds_of(bucket + 1).0);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_within_a_hundredth_of_the_exact_ones() {
        let (mut histogram, mut exact, mut state) = (Histogram::default(), Vec::new(), 7_u64);
        for _ in 0..50_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let value = 1_000 + (state >> 33) % (1 << (10 + state % 20));
            histogram.record(value);
            exact.push(value);
        }
        exact.sort_unstable();
        for per_cent in [0.0, 10.0, 50.0, 90.0, 99.0, 99.9, 100.0] {
            let rank = (per_cent / 100.0 * exact.len() as f64).ceil() as usize;
            let want = exact[rank.max(1) - 1] as f64;
            let got = histogram.percentile(per_cent) as f64;
            assert!(
                (got - want).abs() <= want * 0.01,
                "{per_cent}%: {got} for {want}"
            );
        }
        assert_eq!(histogram.min_ns, exact[0]);
        assert_eq!(histogram.max_ns, exact[exact.len() - 1]);
    }

    #[test]
    fn two_halves_merge_to_the_whole_and_clearing_leaves_nothing() {
        let (mut whole, mut one, mut two) = (
            Histogram::default(),
            Histogram::default(),
            Histogram::default(),
        );
        for value in 0..10_000_u64 {
            whole.record(value * value);
            if value % 3 == 0 { &mut one } else { &mut two }.record(value * value);
        }
        one.merge(&two);
        assert!(one.buckets().eq(whole.buckets()));
        assert_eq!(
            (one.count, one.min_ns, one.max_ns),
            (whole.count, whole.min_ns, whole.max_ns)
        );
        one.clear();
        assert_eq!(one.buckets().count(), 0);
        assert_eq!(
            (one.count, one.min_ns, one.max_ns, one.percentile(50.0)),
            (0, u64::MAX, 0, 0)
        );
        one.record(5);
        assert_eq!(one.percentile(50.0), 5);
    }
}
