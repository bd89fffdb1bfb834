//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let of_target = |what: &str| std::env::var(what).unwrap_or_default();
    if of_target("CARGO_CFG_TARGET_OS") == "linux" && of_target("CARGO_CFG_TARGET_ENV") == "gnu" {
        // The tables of a program that may be loaded anywhere are 2.5 MB as they were written for decades, and
        // a twentieth of that as the C library has read them since 2.36, which Debian 12 has.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
