//! `styr ip`.

use crate::config::ClusterArgs;
use crate::output::say;

/// Print the node's address.
#[derive(clap::Args)]
pub struct Ip {}

impl Ip {
    /// Prints the address at which node ports answer.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        say!("{}", cluster.load()?.node_ip());
        Ok(())
    }
}
