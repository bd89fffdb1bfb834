//! The commands of the command line, one file each.

use clap::Subcommand;

use crate::config::ClusterArgs;

mod delete;
mod down;
mod image;
mod ip;
mod list;
mod server;
mod simulate;
mod status;
mod up;
mod why;

pub use status::ready as is_ready;

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Start a cluster on this machine and wait until it is ready
    Up(up::Up),
    /// Stop the cluster; everything in it is kept for the next `up`
    Down(down::Down),
    /// Say how the cluster is
    Status(status::Status),
    /// Print the node's address
    Ip(ip::Ip),
    /// List the clusters on this machine
    List(list::List),
    /// Delete the cluster and everything in it
    Delete(delete::Delete),
    /// Manage the images on the node
    #[command(subcommand)]
    Image(image::Image),
    /// Simulate nodes beside the real one, to see how things behave in a large cluster
    Simulate(simulate::Simulate),
    /// Explain why a pod is Pending, and what change would admit it
    Why(why::Why),
    /// Run the cluster in the foreground, for a service manager
    Server(server::Server),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// One message for the user, with the fix.
    pub fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        match self {
            Self::Up(command) => command.run(cluster),
            Self::Down(command) => command.run(cluster),
            Self::Status(command) => command.run(cluster),
            Self::Ip(command) => command.run(cluster),
            Self::List(command) => command.run(cluster),
            Self::Delete(command) => command.run(cluster),
            Self::Image(command) => command.run(cluster),
            Self::Simulate(command) => command.run(cluster),
            Self::Why(command) => command.run(cluster),
            Self::Server(command) => command.run(cluster),
        }
    }
}
