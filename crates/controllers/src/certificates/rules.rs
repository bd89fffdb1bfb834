//! Who may have what certificate. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;

use super::request::Request;

const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const OPTIONAL: &str = "key encipherment";
const CLIENT: [&str; 2] = ["client auth", "digital signature"];
const SERVER: [&str; 2] = ["digital signature", "server auth"];

/// A signer whose requests are signed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// Clients of the API server.
    ApiserverClient,
    /// Kubelets as clients of the API server.
    KubeletClient,
    /// Kubelets as servers.
    KubeletServing,
    /// Anything, without a promise.
    LegacyUnknown,
}

impl Signer {
    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "kubernetes.io/kube-apiserver-client" => Self::ApiserverClient,
            "kubernetes.io/kube-apiserver-client-kubelet" => Self::KubeletClient,
            "kubernetes.io/kubelet-serving" => Self::KubeletServing,
            "kubernetes.io/legacy-unknown" => Self::LegacyUnknown,
            _ => return None,
        })
    }

    /// Why this signer does not sign a request.
    pub fn refuses(self, asked: &Request, usages: &[String]) -> Option<String> {
        match self {
            Self::LegacyUnknown => None,
            Self::ApiserverClient => client_usages(usages),
            Self::KubeletClient => not_kubelet_client(asked, usages),
            Self::KubeletServing => not_kubelet_serving(asked, usages),
        }
    }
}

fn client_usages(usages: &[String]) -> Option<String> {
    let foreign = |u: &&String| !CLIENT.contains(&u.as_str()) && *u != OPTIONAL;
    if let Some(foreign) = usages.iter().find(foreign) {
        return Some(format!("invalid usage for client certificate: {foreign}"));
    }
    let missing = !usages.iter().any(|u| u == CLIENT[0]);
    missing.then(|| {
        format!(
            "missing required usage for client certificate: {}",
            CLIENT[0]
        )
    })
}

fn not_node(asked: &Request) -> Option<String> {
    if asked.organizations != [NODES] {
        return Some("subject organization is not system:nodes".into());
    }
    None
}

fn not_node_name(asked: &Request) -> Option<String> {
    let named = asked.common_name.starts_with(NODE_PREFIX);
    (!named).then(|| "subject common name does not begin with system:node: ".into())
}

fn no(count: usize, what: &str) -> Option<String> {
    (count > 0).then(|| format!("{what} subjectAltNames are not allowed"))
}

fn usages_are(usages: &[String], wanted: [&str; 2]) -> Option<String> {
    let mut set: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    set.remove(OPTIONAL);
    let same = set.into_iter().eq(wanted);
    (!same).then(|| format!("usages did not match [{}]", wanted.join(" ")))
}

fn not_kubelet_client(asked: &Request, usages: &[String]) -> Option<String> {
    not_node(asked)
        .or_else(|| no(asked.dns, "DNS"))
        .or_else(|| no(asked.emails, "email"))
        .or_else(|| no(asked.addresses, "IP"))
        .or_else(|| no(asked.uris, "URI"))
        .or_else(|| not_node_name(asked))
        .or_else(|| usages_are(usages, CLIENT))
}

fn not_kubelet_serving(asked: &Request, usages: &[String]) -> Option<String> {
    let nameless = asked.dns + asked.addresses == 0;
    not_node(asked)
        .or_else(|| nameless.then(|| "DNS or IP subjectAltName is required".into()))
        .or_else(|| no(asked.emails, "email"))
        .or_else(|| no(asked.uris, "URI"))
        .or_else(|| not_node_name(asked))
        .or_else(|| usages_are(usages, SERVER))
}

/// The permissions each of which is enough to have a request approved, and what is said then.
pub fn recognized(
    spec: &CertificateSigningRequestSpec,
    asked: &Request,
) -> Vec<(&'static str, &'static str)> {
    let usages = spec.usages.clone().unwrap_or_default();
    let kubelet = Signer::named(&spec.signer_name) == Some(Signer::KubeletClient)
        && not_kubelet_client(asked, &usages).is_none();
    let mut all = Vec::new();
    if kubelet && spec.username.as_deref() == Some(asked.common_name.as_str()) {
        let message = "Auto approving self kubelet client certificate after SubjectAccessReview.";
        all.push(("selfnodeclient", message));
    }
    if kubelet {
        let message = "Auto approving kubelet client certificate after SubjectAccessReview.";
        all.push(("nodeclient", message));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signer_has_its_rules() {
        let node = Request {
            common_name: "system:node:n".into(),
            organizations: vec![NODES.into()],
            ..Request::default()
        };
        let server = Request {
            dns: 1,
            ..node.clone()
        };
        let user = Request {
            common_name: "jane".into(),
            organizations: vec!["dev".into(), "ops".into()],
            ..Request::default()
        };
        let (client, serving) = (
            "digital signature,client auth",
            "server auth,digital signature",
        );
        let both = "digital signature,key encipherment,client auth";
        for (signer, asked, usages, expected) in [
            ("kube-apiserver-client", &user, client, None),
            ("kube-apiserver-client", &user, "client auth", None),
            (
                "kube-apiserver-client",
                &user,
                "server auth",
                Some("invalid usage for client certificate: server auth"),
            ),
            (
                "kube-apiserver-client",
                &user,
                "digital signature",
                Some("missing required usage for client certificate: client auth"),
            ),
            ("kube-apiserver-client-kubelet", &node, both, None),
            (
                "kube-apiserver-client-kubelet",
                &node,
                serving,
                Some("usages did not match [client auth digital signature]"),
            ),
            (
                "kube-apiserver-client-kubelet",
                &server,
                client,
                Some("DNS subjectAltNames are not allowed"),
            ),
            (
                "kube-apiserver-client-kubelet",
                &user,
                client,
                Some("subject organization is not system:nodes"),
            ),
            ("kubelet-serving", &server, serving, None),
            (
                "kubelet-serving",
                &node,
                serving,
                Some("DNS or IP subjectAltName is required"),
            ),
            ("legacy-unknown", &user, "any", None),
        ] {
            let signer = Signer::named(&format!("kubernetes.io/{signer}")).unwrap();
            let usages: Vec<String> = usages.split(',').map(str::to_owned).collect();
            let refused = signer.refuses(asked, &usages);
            assert_eq!(refused.as_deref(), expected, "{signer:?} {usages:?}");
        }
        assert_eq!(Signer::named("example.com/mine"), None);
    }

    #[test]
    fn kubelets_are_recognized() {
        let asked = Request {
            common_name: "system:node:n".into(),
            organizations: vec![NODES.into()],
            ..Request::default()
        };
        let spec = |user: &str, signer: &str| CertificateSigningRequestSpec {
            signer_name: format!("kubernetes.io/{signer}"),
            username: Some(user.into()),
            usages: Some(CLIENT.map(str::to_owned).to_vec()),
            ..CertificateSigningRequestSpec::default()
        };
        let names = |user: &str, signer: &str| -> Vec<&str> {
            let all = recognized(&spec(user, signer), &asked);
            all.into_iter().map(|(name, _)| name).collect()
        };
        let kubelet = "kube-apiserver-client-kubelet";
        assert_eq!(
            names("system:node:n", kubelet),
            ["selfnodeclient", "nodeclient"]
        );
        assert_eq!(names("system:bootstrap:abc", kubelet), ["nodeclient"]);
        assert!(names("system:node:n", "kube-apiserver-client").is_empty());
    }
}
