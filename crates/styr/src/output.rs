//! Lines for the user on standard output. Unlike with `println!`, a reader that has seen enough (`styr list | head -1`)
//! is no failure: what was asked for is done all the same, only nobody reads the rest.

use std::fmt::Arguments;
use std::io::Write;

/// Writes a line to standard output.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;

pub fn line(text: Arguments<'_>) {
    // Whether anybody still reads is not ours to judge.
    let _ = writeln!(std::io::stdout(), "{text}");
}
