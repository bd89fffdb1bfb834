//! A program that is a shim and nothing else: the tests' stand-in for the real binary, which
//! plays the part when its first argument says so.

fn main() {
    oci::shim_main(std::env::args_os().skip(1))
}
