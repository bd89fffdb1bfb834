//! Names of the labels and annotations that the agent leaves on sandboxes and containers, the same
//! as upstream's: by them it finds its pods again after a restart.

/// Label: name of the pod.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: namespace of the pod.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: uid of the pod.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: name of the container.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: [`crate::pod::container_hash`] of the spec it was made from.
pub const HASH: &str = "io.kubernetes.container.hash";
/// Annotation: restarts before this container.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: path of the termination message within the container.
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: `File` or `FallbackToLogsOnError`.
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: ports of the container, as JSON.
pub const PORTS: &str = "io.kubernetes.container.ports";
/// Annotation: preStop hook, as JSON.
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
/// Annotation: grace period of the pod, in seconds.
pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
