//! Load for a running cluster, measured: the workloads of upstream's scheduler benchmark, and
//! how a large cluster fares. `cargo xtask bench` runs it.
//!
//! `load KUBECONFIG (scheduler WORKLOAD | full | rollout | namespace)` prints lines
//! `figure NAME VALUE UNIT`. The cluster is not cleaned: whoever made it deletes it.

mod bulk;
mod load;
mod scale;
mod shapes;
mod workloads;

use anyhow::{Context, bail};
use load::Load;

fn main() -> anyhow::Result<()> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // A second installation in the same process is the same provider.
    let _ = provider.install_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let (kubeconfig, rest) = words.split_first().context("which kubeconfig?")?;
        let load = Load::connect(kubeconfig).await?;
        match rest {
            ["scheduler", name] => workloads::run(&load, name).await,
            ["full"] => scale::full(&load).await,
            ["rollout"] => scale::rollout(&load).await,
            ["namespace"] => scale::namespace(&load).await,
            _ => bail!("there is no benchmark {rest:?}"),
        }
    })
}

/// Prints a figure for the caller to read.
fn figure(name: &str, value: f64, unit: &str) {
    println!("figure {name} {value:.2} {unit}");
}
