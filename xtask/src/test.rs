//! `cargo xtask test`: everything that must hold before a change lands.

use std::time::Instant;

use anyhow::Context;

use crate::run::{cargo, succeed};
use crate::{host, tidy};

/// Run every test.
#[derive(clap::Args)]
pub struct Test {
    /// Leave out formatting and lints
    #[arg(long)]
    no_lints: bool,
    /// Leave out the tests that start whole clusters
    #[arg(long)]
    no_e2e: bool,
}

impl Test {
    /// Runs them in order; the first failure ends it.
    ///
    /// # Errors
    /// When a test fails.
    pub fn run(self) -> anyhow::Result<()> {
        step("prepare the machine", host::prepare)?;
        if !self.no_lints {
            step("format", || {
                succeed(&mut cargo(&["fmt", "--all", "--check"]))
            })?;
            step("tidy", || tidy::Tidy {}.run())?;
            step("lints", || {
                succeed(&mut cargo(&[
                    "clippy",
                    "--workspace",
                    "--all-targets",
                    "--quiet",
                    "--",
                    "-D",
                    "warnings",
                ]))
            })?;
        }
        step("unit and integration tests", || {
            succeed(&mut cargo(&[
                "test",
                "--workspace",
                "--exclude",
                "styr",
                "--quiet",
            ]))?;
            succeed(&mut cargo(&[
                "test",
                "--package",
                "styr",
                "--bins",
                "--quiet",
            ]))
        })?;
        if !self.no_e2e {
            step("images", || succeed(&mut cargo(&["xtask", "images"])))?;
            step("end-to-end tests", || {
                succeed(&mut cargo(&[
                    "test",
                    "--package",
                    "styr",
                    "--test",
                    "e2e",
                    "--",
                    "--test-threads",
                    "1",
                ]))
            })?;
        }
        Ok(())
    }
}

fn step(name: &str, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    println!("== {name}");
    let began = Instant::now();
    work().with_context(|| name.to_owned())?;
    println!("== {name}: {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}
