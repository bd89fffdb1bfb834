//! Randomness that follows from a seed, for everything in this process.
//!
//! The standard library (the order of its hash maps), `rand` (names, uids, jitter) and through them
//! `tokio::select!` all ask the C library's `getrandom`. This program defines that symbol itself,
//! so that the same seed gives them the same bytes. Cryptography has sources of its own and stays
//! unpredictable; nothing it makes may reach what a simulation stores.

#![allow(unsafe_code)]

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use rand::{SeedableRng, rngs::StdRng};

/// What follows from it is handed out by `getrandom`.
static STATE: AtomicU64 = AtomicU64::new(0);

/// Makes all randomness from now on follow from `seed`.
pub fn reseed(seed: u64) {
    STATE.store(mix(seed), Ordering::SeqCst);
}

/// A generator for one purpose, so that a draw more for one does not change the others.
pub fn generator(seed: u64, purpose: u64) -> StdRng {
    StdRng::seed_from_u64(mix(seed ^ mix(purpose)))
}

/// The finish of SplitMix64: spreads every bit over all.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// In place of the C library's.
///
/// # Safety
/// As its: `buffer` must have room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut written = 0;
    while written < length {
        let word = mix(STATE.fetch_add(STEP, Ordering::SeqCst).wrapping_add(STEP)).to_le_bytes();
        let part = word.len().min(length - written);
        // SAFETY: the caller gave `length` bytes, and `written + part` is no more.
        unsafe {
            std::ptr::copy_nonoverlapping(word.as_ptr(), buffer.cast::<u8>().add(written), part);
        }
        written += part;
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}
