//! What decides whether a pod may be on a node, as far as several components have to agree on it: the
//! scheduler, which chooses nodes, the node agent, which takes a pod in or refuses it, and controllers
//! that know where their pods belong. Pure.

pub mod host_ports;
pub mod node_selector;
pub mod resources;
pub mod taints;
