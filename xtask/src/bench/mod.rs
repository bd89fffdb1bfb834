//! `cargo xtask bench`: the project's figures, measured on release builds.
//!
//! One line a figure: `name value unit`, with the spread of several runs, and with the peer and
//! the ratio where one runs beside it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};

use crate::run::{cargo, succeed, workspace};

mod api;
mod cluster;
mod etcd;
mod figures;
mod many;
mod store;

/// Print the project's figures.
#[derive(clap::Args)]
pub struct Bench {
    /// Which figures; the usual ones when none is named. `scheduler` runs every workload of
    /// upstream's scheduler benchmark, `scheduler:NAME` one of them
    names: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Runs of each figure
    #[arg(long, default_value_t = 7)]
    runs: usize,
}

/// A benchmark: its name and how to run it.
struct Benchmark {
    name: &'static str,
    run: fn(usize) -> anyhow::Result<Vec<Figure>>,
}

const ALL: &[Benchmark] = &[
    Benchmark {
        name: "binary",
        run: figures::binary,
    },
    Benchmark {
        name: "up",
        run: figures::up,
    },
    Benchmark {
        name: "idle",
        run: figures::idle,
    },
    Benchmark {
        name: "pod",
        run: figures::pod,
    },
    Benchmark {
        name: "pods",
        run: figures::pods,
    },
    Benchmark {
        name: "store",
        run: store::run,
    },
    Benchmark {
        name: "api",
        run: api::load,
    },
    Benchmark {
        name: "list",
        run: api::list,
    },
    Benchmark {
        name: "lists",
        run: api::lists,
    },
    Benchmark {
        name: "watch",
        run: api::watch,
    },
    Benchmark {
        name: "apply",
        run: api::apply,
    },
    many::SCHEDULER_TARGETS,
    Benchmark {
        name: "rollout",
        run: many::rollout,
    },
    Benchmark {
        name: "namespace",
        run: many::namespace,
    },
    Benchmark {
        name: "full",
        run: many::full,
    },
];

/// Benchmarks that run only when they are named: all workloads take an hour.
const NAMED: &[Benchmark] = &[many::SCHEDULER];

/// A measured figure.
pub struct Figure {
    name: &'static str,
    unit: &'static str,
    /// One value a run.
    values: Vec<f64>,
    /// The peer's name and value in the same run.
    peer: Option<(&'static str, f64)>,
}

impl Figure {
    /// A figure of several runs.
    pub fn new(name: &'static str, unit: &'static str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            name,
            unit,
            values,
            peer: None,
        }
    }

    /// A figure of several runs, in milliseconds.
    pub fn millis(name: &'static str, values: &[Duration]) -> Self {
        let values = values.iter().map(|v| v.as_secs_f64() * 1e3).collect();
        Self::new(name, "ms", values)
    }

    /// The same figure beside a peer's.
    pub fn beside(mut self, peer: &'static str, value: f64) -> Self {
        self.peer = Some((peer, value));
        self
    }

    fn median(&self) -> f64 {
        self.values
            .get(self.values.len() / 2)
            .copied()
            .unwrap_or(f64::NAN)
    }

    fn line(&self) -> String {
        let spread = match self.values.as_slice() {
            [] | [_] => String::new(),
            [first, .., last] => format!("  ({first:.1} to {last:.1}, {} runs)", self.values.len()),
        };
        let peer = self.peer.map_or(String::new(), |(name, value)| {
            format!("  {name} {value:.1}, ratio {:.2}", self.median() / value)
        });
        format!(
            "{} {:.1} {}{spread}{peer}",
            self.name,
            self.median(),
            self.unit
        )
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "unit": self.unit, "median": self.median(), "values": self.values,
            "peer": self.peer.map(|(name, value)| json!({"name": name, "value": value})),
        })
    }
}

impl Bench {
    /// Runs the named benchmarks.
    ///
    /// # Errors
    /// When one cannot be run.
    pub fn run(self) -> anyhow::Result<()> {
        self.chosen()?;
        // Together, so that all are built with the same features of what they share.
        let packages = ["styr", "xtask", "load"].map(|name| format!("--package={name}"));
        succeed(cargo(&["build", "--release"]).args(packages))?;
        if cfg!(debug_assertions) {
            // Clients that are built without optimization would be what is measured.
            let mut optimized = Command::new(release().join("xtask"));
            return succeed(optimized.args(std::env::args_os().skip(1)));
        }
        self.measure()
    }

    fn chosen(&self) -> anyhow::Result<Vec<Runner>> {
        if self.names.is_empty() {
            return Ok(ALL.iter().map(|b| Box::new(b.run) as Runner).collect());
        }
        self.names.iter().map(|name| runner(name)).collect()
    }

    fn measure(self) -> anyhow::Result<()> {
        let mut all = Vec::new();
        for run in self.chosen()? {
            for figure in run(self.runs.max(1))? {
                if !self.json {
                    println!("{}", figure.line());
                }
                all.push(figure.json());
            }
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Ok(())
    }
}

type Runner = Box<dyn Fn(usize) -> anyhow::Result<Vec<Figure>>>;

/// The benchmark of this name.
fn runner(name: &str) -> anyhow::Result<Runner> {
    if let Some(workload) = many::one(name) {
        return Ok(Box::new(workload));
    }
    let mut all = ALL.iter().chain(NAMED);
    let Some(found) = all.find(|b| b.name == name) else {
        let known: Vec<&str> = ALL.iter().chain(NAMED).map(|b| b.name).collect();
        bail!(
            "there is no benchmark {name:?}; there are {}",
            known.join(", ")
        );
    };
    Ok(Box::new(found.run))
}

/// Folder of release builds.
fn release() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from)
        .join("release")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_the_median_the_spread_and_the_ratio_to_the_peer() {
        let figure = Figure::new("x", "ms", vec![3.0, 1.0, 2.0]).beside("etcd", 4.0);
        assert_eq!(
            figure.line(),
            "x 2.0 ms  (1.0 to 3.0, 3 runs)  etcd 4.0, ratio 0.50"
        );
    }
}
