//! What the targets share: kinds chosen by bytes, and a server or a stream connection in memory.
//!
//! Every target calls what is public of a crate, as the network reaches it; nothing is opened for fuzzing alone.

#[cfg(feature = "server")]
pub mod server;
pub mod upgraded;

use api::Kind;

/// A built-in kind with a schema, chosen by a byte.
pub fn kind(choice: u8) -> &'static Kind {
    // Those whose schemas have every shape come up more often.
    const OFTEN: [(&str, &str, &str); 8] = [
        ("", "v1", "Pod"),
        ("apps", "v1", "Deployment"),
        ("", "v1", "Service"),
        ("", "v1", "ConfigMap"),
        ("networking.k8s.io", "v1", "Ingress"),
        ("autoscaling", "v2", "HorizontalPodAutoscaler"),
        ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
        ("", "v1", "Node"),
    ];
    let all = api::kinds();
    let known = OFTEN
        .get(usize::from(choice))
        .and_then(|(group, version, kind)| api::kind_by_gvk(group, version, kind));
    known.unwrap_or(&all[usize::from(choice) % all.len()])
}

/// The first byte and the rest.
pub fn split(data: &[u8]) -> Option<(u8, &[u8])> {
    let (first, rest) = data.split_first()?;
    Some((*first, rest))
}

/// Two documents of one input, parted by a zero byte.
pub fn two(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = data.iter().position(|b| *b == 0)?;
    Some((&data[..at], &data[at + 1..]))
}
