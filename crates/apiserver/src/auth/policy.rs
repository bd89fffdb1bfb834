//! The default roles as data: name, and rules in the short form `verbs | groups | resources`.
//!
//! The contents follow the bootstrap policy that upstream documents under "Default roles and role
//! bindings". A group `core` stands for the empty group.

/// Verbs that read.
pub const READ: &str = "get list watch";
/// Verbs that write.
pub const WRITE: &str = "create delete deletecollection patch update";

/// A default cluster role.
pub struct DefaultRole {
    /// Name of the role.
    pub name: &'static str,
    /// Rules as (verbs, groups, resources); a group `/` means that the third is a list of paths.
    pub rules: &'static [(&'static str, &'static str, &'static str)],
    /// Label `rbac.authorization.k8s.io/aggregate-to-…` put on the role.
    pub aggregate_to: Option<&'static str>,
}

const fn role(
    name: &'static str,
    rules: &'static [(&'static str, &'static str, &'static str)],
) -> DefaultRole {
    DefaultRole {
        name,
        rules,
        aggregate_to: None,
    }
}

/// Roles whose rules are the union of the roles labelled for them.
pub const AGGREGATED: &[(&str, &[&str])] = &[
    ("admin", &["admin", "edit", "view"]),
    ("edit", &["edit", "view"]),
    ("view", &["view"]),
];

/// Rules of `system:node`, also applied by the node authorizer.
pub const NODE: &[(&str, &str, &str)] = &[
    ("create", "authentication.k8s.io", "tokenreviews"),
    (
        "create",
        "authorization.k8s.io",
        "localsubjectaccessreviews subjectaccessreviews",
    ),
    (READ, "core", "services"),
    ("create get list watch", "core", "nodes"),
    ("patch update", "core", "nodes/status"),
    ("patch update", "core", "nodes"),
    ("create patch update", "core events.k8s.io", "events"),
    (READ, "core", "pods"),
    ("create delete", "core", "pods"),
    ("patch update", "core", "pods/status"),
    ("create", "core", "pods/eviction"),
    (READ, "core", "configmaps secrets"),
    ("get", "core", "persistentvolumeclaims persistentvolumes"),
    ("get patch update", "core", "persistentvolumeclaims/status"),
    ("get", "core", "endpoints"),
    (
        "create get list watch",
        "certificates.k8s.io",
        "certificatesigningrequests",
    ),
    (
        "create delete get patch update",
        "coordination.k8s.io",
        "leases",
    ),
    (READ, "storage.k8s.io", "volumeattachments csidrivers"),
    (
        "create delete get patch update",
        "storage.k8s.io",
        "csinodes",
    ),
    (READ, "node.k8s.io", "runtimeclasses"),
    ("create", "core", "serviceaccounts/token"),
    ("get", "core", "serviceaccounts"),
    (READ, "resource.k8s.io", "resourceclaims"),
    (
        "create delete get list patch update watch deletecollection",
        "resource.k8s.io",
        "resourceslices",
    ),
];

const WORKLOADS: &str = "daemonsets deployments deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale";
const WORKLOADS_WRITE: &str = "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale";
const WORKLOADS_STATUS: &str = "daemonsets/status deployments/status replicasets/status statefulsets/status controllerrevisions";

/// Every default cluster role that is not aggregated.
pub const ROLES: &[DefaultRole] = &[
    role("cluster-admin", &[("*", "*", "*"), ("*", "/", "*")]),
    role(
        "system:discovery",
        &[(
            "get",
            "/",
            "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/",
        )],
    ),
    role(
        "system:monitoring",
        &[(
            "get",
            "/",
            "/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*",
        )],
    ),
    role(
        "system:basic-user",
        &[
            (
                "create",
                "authorization.k8s.io",
                "selfsubjectaccessreviews selfsubjectrulesreviews",
            ),
            ("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    ),
    role(
        "system:public-info-viewer",
        &[("get", "/", "/healthz /livez /readyz /version /version/")],
    ),
    role(
        "system:service-account-issuer-discovery",
        &[(
            "get",
            "/",
            "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/",
        )],
    ),
    role(
        "system:auth-delegator",
        &[
            ("create", "authentication.k8s.io", "tokenreviews"),
            ("create", "authorization.k8s.io", "subjectaccessreviews"),
        ],
    ),
    role(
        "system:kube-aggregator",
        &[(READ, "core", "endpoints services")],
    ),
    role(
        "system:kube-dns",
        &[
            ("list watch", "core", "endpoints services"),
            ("list watch", "discovery.k8s.io", "endpointslices"),
        ],
    ),
    role(
        "system:coredns",
        &[
            ("list watch", "core", "endpoints services pods namespaces"),
            ("list watch", "discovery.k8s.io", "endpointslices"),
        ],
    ),
    role(
        "system:node-proxier",
        &[
            ("list watch", "core", "endpoints services"),
            (READ, "core", "nodes"),
            ("create patch update", "core events.k8s.io", "events"),
            ("list watch", "discovery.k8s.io", "endpointslices"),
            ("list watch", "networking.k8s.io", "servicecidrs"),
        ],
    ),
    role("system:node", NODE),
    role(
        "system:node-problem-detector",
        &[
            ("get", "core", "nodes"),
            ("patch", "core", "nodes/status"),
            ("create patch update", "core events.k8s.io", "events"),
        ],
    ),
    role(
        "system:node-bootstrapper",
        &[(
            "create get list watch",
            "certificates.k8s.io",
            "certificatesigningrequests",
        )],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &[(
            "create",
            "certificates.k8s.io",
            "certificatesigningrequests/nodeclient",
        )],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &[(
            "create",
            "certificates.k8s.io",
            "certificatesigningrequests/selfnodeclient",
        )],
    ),
    role(
        "system:kubelet-api-admin",
        &[
            (READ, "core", "nodes"),
            ("proxy", "core", "nodes"),
            (
                "*",
                "core",
                "nodes/log nodes/metrics nodes/proxy nodes/stats",
            ),
        ],
    ),
    role(
        "system:persistent-volume-provisioner",
        &[
            ("create delete get list watch", "core", "persistentvolumes"),
            ("get list update watch", "core", "persistentvolumeclaims"),
            (READ, "storage.k8s.io", "storageclasses"),
            ("watch", "core", "events"),
            ("create patch update", "core events.k8s.io", "events"),
        ],
    ),
    role(
        "system:kube-scheduler",
        &[
            ("create patch update", "core events.k8s.io", "events"),
            ("create", "coordination.k8s.io", "leases"),
            ("get list update watch", "coordination.k8s.io", "leases"),
            (READ, "core", "nodes namespaces"),
            ("delete get list watch", "core", "pods"),
            ("create", "core", "bindings pods/binding"),
            ("patch update", "core", "pods/status"),
            (READ, "core", "replicationcontrollers services"),
            (READ, "apps extensions", "replicasets"),
            (READ, "apps", "statefulsets"),
            (READ, "policy", "poddisruptionbudgets"),
            (
                "get list patch update watch",
                "core",
                "persistentvolumeclaims persistentvolumes",
            ),
            ("create", "authentication.k8s.io", "tokenreviews"),
            ("create", "authorization.k8s.io", "subjectaccessreviews"),
            (
                READ,
                "storage.k8s.io",
                "csinodes csidrivers csistoragecapacities storageclasses volumeattachments",
            ),
            (
                READ,
                "resource.k8s.io",
                "deviceclasses devicetaintrules resourceclaims resourceslices",
            ),
            (
                "create delete patch update",
                "resource.k8s.io",
                "resourceclaims resourceclaims/status",
            ),
        ],
    ),
    role(
        "system:volume-scheduler",
        &[
            ("get list patch update watch", "core", "persistentvolumes"),
            (READ, "storage.k8s.io", "storageclasses"),
            (
                "get list patch update watch",
                "core",
                "persistentvolumeclaims",
            ),
        ],
    ),
    DefaultRole {
        name: "system:aggregate-to-admin",
        aggregate_to: Some("admin"),
        rules: &[
            (
                "create",
                "authorization.k8s.io",
                "localsubjectaccessreviews",
            ),
            (
                "create delete deletecollection get list patch update watch",
                "rbac.authorization.k8s.io",
                "roles rolebindings",
            ),
        ],
    },
    DefaultRole {
        name: "system:aggregate-to-edit",
        aggregate_to: Some("edit"),
        rules: &[
            (
                READ,
                "core",
                "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy",
            ),
            ("impersonate", "core", "serviceaccounts"),
            (
                WRITE,
                "core",
                "pods pods/attach pods/exec pods/portforward pods/proxy",
            ),
            ("create", "core", "pods/eviction"),
            (
                WRITE,
                "core",
                "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts services services/proxy",
            ),
            ("create", "core", "serviceaccounts/token"),
            (WRITE, "apps", WORKLOADS_WRITE),
            (WRITE, "autoscaling", "horizontalpodautoscalers"),
            (WRITE, "batch", "cronjobs jobs"),
            (WRITE, "policy", "poddisruptionbudgets"),
            (WRITE, "networking.k8s.io", "ingresses networkpolicies"),
            (
                "create delete deletecollection get list patch update watch",
                "coordination.k8s.io",
                "leases",
            ),
            (
                WRITE,
                "resource.k8s.io",
                "resourceclaims resourceclaimtemplates",
            ),
        ],
    },
    DefaultRole {
        name: "system:aggregate-to-view",
        aggregate_to: Some("view"),
        rules: &[
            (
                READ,
                "core",
                "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status",
            ),
            (
                READ,
                "core",
                "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status",
            ),
            (READ, "core", "namespaces"),
            (READ, "discovery.k8s.io", "endpointslices"),
            (READ, "apps", WORKLOADS),
            (READ, "apps", WORKLOADS_STATUS),
            (
                READ,
                "autoscaling",
                "horizontalpodautoscalers horizontalpodautoscalers/status",
            ),
            (READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
            (
                READ,
                "policy",
                "poddisruptionbudgets poddisruptionbudgets/status",
            ),
            (
                READ,
                "networking.k8s.io",
                "ingresses ingresses/status networkpolicies",
            ),
            (
                READ,
                "resource.k8s.io",
                "resourceclaims resourceclaims/status resourceclaimtemplates",
            ),
        ],
    },
];

/// Default cluster role bindings: role, then subjects as `Kind:name`
/// (`ServiceAccount:namespace/name`).
pub const BINDINGS: &[(&str, &[&str])] = &[
    ("cluster-admin", &["Group:system:masters"]),
    ("system:monitoring", &["Group:system:monitoring"]),
    ("system:discovery", &["Group:system:authenticated"]),
    ("system:basic-user", &["Group:system:authenticated"]),
    (
        "system:public-info-viewer",
        &["Group:system:authenticated", "Group:system:unauthenticated"],
    ),
    ("system:node-proxier", &["User:system:kube-proxy"]),
    ("system:kube-scheduler", &["User:system:kube-scheduler"]),
    ("system:volume-scheduler", &["User:system:kube-scheduler"]),
    ("system:kube-dns", &["ServiceAccount:kube-system/kube-dns"]),
    ("system:coredns", &["ServiceAccount:kube-system/coredns"]),
    (
        "system:service-account-issuer-discovery",
        &["Group:system:serviceaccounts"],
    ),
    ("system:node", &[]),
];

/// Default roles in a namespace: namespace, name, rules, resource names, subjects.
pub struct NamespacedRole {
    /// Namespace of role and binding.
    pub namespace: &'static str,
    /// Name of role and binding.
    pub name: &'static str,
    /// Rules as in [`DefaultRole`].
    pub rules: &'static [(&'static str, &'static str, &'static str)],
    /// Names the rules are limited to.
    pub resource_names: &'static [&'static str],
    /// Subjects as in [`BINDINGS`].
    pub subjects: &'static [&'static str],
}

/// Every default namespaced role with its binding.
pub const NAMESPACED: &[NamespacedRole] = &[
    NamespacedRole {
        namespace: "kube-system",
        name: "extension-apiserver-authentication-reader",
        rules: &[(READ, "core", "configmaps")],
        resource_names: &["extension-apiserver-authentication"],
        subjects: &[
            "User:system:kube-controller-manager",
            "User:system:kube-scheduler",
        ],
    },
    NamespacedRole {
        namespace: "kube-system",
        name: "system::leader-locking-kube-scheduler",
        rules: &[("get list watch update", "coordination.k8s.io", "leases")],
        resource_names: &["kube-scheduler"],
        subjects: &["User:system:kube-scheduler"],
    },
];
