//! All fuzz targets in one place; only there when the crate is built for fuzzing, or for its tests.

pub use crate::pmem::fuzz::{log_bytes, log_records};
pub use crate::transport::fuzz::{grpc, h2, http1, peer_frame};

/// Runs a target over its seeds and over so many mutations of each: the short form, without a fuzzer.
#[cfg(test)]
pub fn replay(name: &str, target: fn(&[u8])) {
    const MUTATIONS: u64 = 300;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fuzz/seeds")
        .join(name);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        // xorshift: the same mutations in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut seeds: Vec<_> = std::fs::read_dir(folder)
        .expect("a target has seeds")
        .map(|entry| entry.expect("a seed").path())
        .collect();
    seeds.sort();
    assert!(!seeds.is_empty());
    for path in seeds {
        let seed = std::fs::read(path).expect("a seed");
        target(&seed);
        for _ in 0..MUTATIONS {
            let mut bytes = seed.clone();
            for _ in 0..1 + random() % 4 {
                let at = random() as usize % (bytes.len() + 1);
                match random() % 4 {
                    0 => bytes.insert(at, random() as u8),
                    1 => bytes.truncate(at),
                    _ if at < bytes.len() => bytes[at] ^= 1 << (random() % 8),
                    _ => bytes.extend_from_slice(&seed[..seed.len().min(64)]),
                }
            }
            target(&bytes);
        }
    }
}
