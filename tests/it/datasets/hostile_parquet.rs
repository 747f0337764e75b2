//! Parquet files with every byte damaged, one after the other, and cut off at every length.

use super::documents::write_parquet;
use super::evaluation;
use crate::allocations::largest_allocation;
use parquet::basic::Compression as Codec;
use std::fs;

/// One page as large as is taken, and as much again for copies of it.
const MOST_BYTES: usize = 160 << 20;

#[test]
fn damage_is_an_error_or_harmless_and_never_costs_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    for dictionary in [true, false] {
        let rows: Vec<(&[u8], Option<&str>)> = vec![(b"one row", Some("a")), (b"two", None)];
        write_parquet(&path, Codec::SNAPPY, dictionary, &rows);
        let whole = fs::read(&path).unwrap();
        let mut refusals = 0;
        let largest = largest_allocation(|| {
            for length in 0..whole.len() {
                fs::write(&path, &whole[..length]).unwrap();
                assert!(evaluation(&path).is_err(), "cut to {length} bytes");
            }
            for at in 0..whole.len() {
                // All ones make the largest numbers, of either sign.
                for value in [0, 0x7f, 0xff, whole[at] ^ 1, whole[at] ^ 0x10] {
                    let mut damaged = whole.clone();
                    damaged[at] = value;
                    // A long number: what it claims is as large as can be.
                    if value == 0xff {
                        damaged[at..]
                            .iter_mut()
                            .take(4)
                            .for_each(|byte| *byte = 0xff);
                    }
                    fs::write(&path, &damaged).unwrap();
                    if let Err(error) = evaluation(&path) {
                        refusals += 1;
                        let text = error.to_string();
                        assert!(text.contains("x.parquet"), "{text}");
                    }
                }
            }
        });
        println!("{refusals} refusals, at most {largest} bytes at once");
        assert!(refusals > whole.len());
        assert!(
            largest < MOST_BYTES,
            "{largest} bytes were asked for at once"
        );
    }
}
