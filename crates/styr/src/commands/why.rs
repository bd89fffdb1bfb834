//! `styr why`.

use anyhow::Context;

use crate::access;
use crate::config::ClusterArgs;
use crate::lock;
use crate::output::say;
use crate::scheduling;

/// Explain why a pod is Pending: per node, what refused it and what change would admit it.
#[derive(clap::Args)]
pub struct Why {
    /// Name of the pod
    #[arg(value_name = "POD")]
    pod: String,
    /// Its namespace
    #[arg(short = 'n', long, default_value = "default")]
    namespace: String,
}

impl Why {
    /// Prints the explanation.
    ///
    /// # Errors
    /// When the cluster does not run or has no such pod.
    pub fn run(self, args: &ClusterArgs) -> anyhow::Result<()> {
        let cluster = args.load()?;
        if lock::holder(&cluster.path("run/server.lock"))?.is_none() {
            anyhow::bail!(
                "the cluster {:?} does not run; start it with `styr up{}`",
                cluster.name,
                args.flags()
            );
        }
        let configuration = scheduling::configuration(&cluster)?;
        let name = self.pod.trim_start_matches("pods/");
        let name = name.trim_start_matches("pod/");
        let answer = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let client = access::admin(&cluster)?;
                scheduler::why::why(client, &configuration, &self.namespace, name)
                    .await
                    .context("explaining the pod")
            })?;
        say!("Pod {}/{name}:", self.namespace);
        say!("{}", answer.to_string().trim_end());
        Ok(())
    }
}
