//! Where the contents of volumes come from: the rules of every kind of source, in pods and in PersistentVolumes.
//!
//! Upstream looks at the kinds in a fixed order and holds the first one to its rules; the others are one too many.

mod iscsi;

use api::{FieldError, meta, names};
use serde_json::Value;

use crate::check::{named, one_of_if_set};

pub(crate) use iscsi::{TOO_LONG_PORTAL, long_portal};

/// Kinds of sources of PersistentVolumes, in upstream's order.
pub(crate) const OF_VOLUMES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];
/// Largest partition of a disk, and largest number of a logical unit.
const UNIT_MAX: i64 = 255;
/// Longest name of a CSI driver, in bytes.
const DRIVER_MAX: usize = 63;
/// Longest name of a tenant, in bytes.
const TENANT_MAX: usize = 64;
const HOST_PATH_TYPES: &[&str] = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
/// Texts and lists that sources cannot do without, and that have no other rules first.
const REQUIRED: &[(&str, &[&str])] = &[
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cephfs", &["monitors"]),
    ("cinder", &["volumeID"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("gitRepo", &["repository"]),
    ("glusterfs", &["endpoints", "path"]),
    ("iscsi", &["targetPortal"]),
    ("nfs", &["server", "path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("rbd", &["monitors", "image"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("vsphereVolume", &["volumePath"]),
];

/// The source to look at, and the others, which are one too many: `set` tells whether there is one of a kind.
pub(crate) fn first<'k>(
    kinds: &[&'k str],
    set: impl Fn(&str) -> bool,
    at: &str,
) -> (Option<&'k str>, Vec<FieldError>) {
    let mut given = kinds.iter().copied().filter(|kind| set(kind));
    let first = given.next();
    let refuse = |kind: &str| {
        // Upstream's own spelling.
        let kind = match kind {
            "cephfs" => "cephFS",
            "downwardAPI" => "downwarAPI",
            other => other,
        };
        let why = "may not specify more than 1 volume type";
        FieldError::forbidden(format!("{at}.{kind}"), why)
    };
    (first, given.map(refuse).collect())
}

/// One source, and whose it is: `volume` is the name of the PersistentVolume, or none for a pod's.
struct Source<'a> {
    value: &'a Value,
    at: String,
    volume: Option<&'a str>,
}

impl Source<'_> {
    fn text(&self, field: &str) -> &str {
        meta::str_at(self.value, &[field])
    }

    fn path(&self, field: &str) -> String {
        format!("{}.{field}", self.at)
    }

    fn is_set(&self, field: &str) -> bool {
        match self.value.get(field) {
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::String(text)) => !text.is_empty(),
            _ => false,
        }
    }

    fn required(&self, fields: &[&str]) -> Vec<FieldError> {
        let missing = fields.iter().filter(|f| !self.is_set(f));
        missing
            .map(|f| FieldError::required(self.path(f), ""))
            .collect()
    }

    fn invalid(&self, field: &str, why: impl Into<String>) -> FieldError {
        let value = self.value.get(field).cloned().unwrap_or_default();
        FieldError::invalid(self.path(field), value, why)
    }

    /// The parts of a reference to a Secret that must be there.
    fn secret(&self, fields: &[&str]) -> Vec<FieldError> {
        let Some(secret) = self.value.get("secretRef") else {
            return Vec::new();
        };
        let missing = fields
            .iter()
            .filter(|f| meta::str_at(secret, &[f]).is_empty());
        let at = |f: &&str| format!("{}.secretRef.{f}", self.at);
        missing.map(|f| FieldError::required(at(f), "")).collect()
    }
}

/// Every broken rule of a source of a kind. `volume` is the name of the PersistentVolume it is of.
pub(crate) fn validate(
    kind: &str,
    value: &Value,
    at: &str,
    volume: Option<&str>,
) -> Vec<FieldError> {
    // Upstream's own spelling.
    let field = if kind == "gcePersistentDisk" {
        "persistentDisk"
    } else {
        kind
    };
    let source = Source {
        value,
        at: format!("{at}.{field}"),
        volume,
    };
    let required = REQUIRED.iter().find(|(of, _)| *of == kind);
    let mut errors = required.map_or_else(Vec::new, |(_, fields)| source.required(fields));
    let persistent = volume.is_some();
    errors.extend(match kind {
        "hostPath" | "local" => directory(&source),
        "gitRepo" => descending(source.text("directory"), &source.path("directory")),
        "gcePersistentDisk" | "awsElasticBlockStore" => partition(&source),
        "nfs" if !source.text("path").starts_with('/') => {
            vec![FieldError::invalid(
                source.path("path"),
                source.text("path"),
                "must be an absolute path",
            )]
        }
        "iscsi" => iscsi::validate(&source),
        "glusterfs" if persistent => endpoints_namespace(&source),
        "flocker" => flocker(&source),
        "cinder" if persistent => source.secret(&["name", "namespace"]),
        "cinder" => source.secret(&["name"]),
        "quobyte" => quobyte(&source),
        "fc" => fibre_channel(&source),
        "flexVolume" => flex(&source),
        "azureFile" if persistent && value.get("secretNamespace").is_some() => {
            source.required(&["secretNamespace"])
        }
        "azureDisk" => azure_disk(&source),
        "storageos" => storage_os(&source),
        "csi" => csi(&source),
        _ => Vec::new(),
    });
    errors
}

/// A path that does not lead upwards.
pub(crate) fn no_backsteps(path: &str, at: &str) -> Option<FieldError> {
    let up = path.split('/').any(|part| part == "..");
    up.then(|| FieldError::invalid(at, path, "must not contain '..'"))
}

/// A relative path that stays below where it is used.
pub(crate) fn descending(path: &str, at: &str) -> Vec<FieldError> {
    let absolute = path.starts_with('/');
    let absolute = absolute.then(|| FieldError::invalid(at, path, "must be a relative path"));
    absolute.into_iter().chain(no_backsteps(path, at)).collect()
}

fn directory(source: &Source<'_>) -> Vec<FieldError> {
    let path = source.text("path");
    if path.is_empty() {
        return source.required(&["path"]);
    }
    let mut errors: Vec<FieldError> = no_backsteps(path, &source.path("path"))
        .into_iter()
        .collect();
    let kind = source.text("type");
    if !HOST_PATH_TYPES.contains(&kind) {
        errors.push(FieldError::not_supported(
            source.path("type"),
            kind,
            HOST_PATH_TYPES,
        ));
    }
    errors
}

fn partition(source: &Source<'_>) -> Vec<FieldError> {
    let number = meta::int_at(source.value, &["partition"]).unwrap_or(0);
    let odd = !(0..=UNIT_MAX).contains(&number);
    let error = odd.then(|| source.invalid("partition", "must be between 1 and 255, inclusive"));
    error.into_iter().collect()
}

fn unit(source: &Source<'_>) -> Option<FieldError> {
    let number = meta::int_at(source.value, &["lun"]).unwrap_or(0);
    let odd = !(0..=UNIT_MAX).contains(&number);
    odd.then(|| source.invalid("lun", "must be between 0 and 255, inclusive"))
}

fn endpoints_namespace(source: &Source<'_>) -> Vec<FieldError> {
    let field = "endpointsNamespace";
    let Some(namespace) = source.value.get(field).and_then(Value::as_str) else {
        return Vec::new();
    };
    if namespace.is_empty() {
        let why = "if the endpointnamespace is set, it must be a valid namespace name";
        return vec![source.invalid(field, why)];
    }
    named(
        names::dns1123_label(namespace),
        &source.path(field),
        namespace,
    )
}

fn flocker(source: &Source<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match (source.is_set("datasetName"), source.is_set("datasetUUID")) {
        (false, false) => {
            let why = "one of datasetName and datasetUUID is required";
            errors.push(FieldError::required(&source.at, why));
        }
        (true, true) => {
            let why = "datasetName and datasetUUID can not be specified simultaneously";
            errors.push(FieldError::invalid(&source.at, "resource", why));
        }
        _ => {}
    }
    if source.text("datasetName").contains('/') {
        errors.push(source.invalid("datasetName", "must not contain '/'"));
    }
    errors
}

fn quobyte(source: &Source<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let pairs = "must be a host:port pair or multiple pairs separated by commas";
    let is_pair = |pair: &str| {
        let (host, _) = pair.rsplit_once(':').unwrap_or_default();
        pair.contains(':')
            && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')))
    };
    if !source.is_set("registry") {
        errors.push(FieldError::required(source.path("registry"), pairs));
    } else if source.text("tenant").len() > TENANT_MAX {
        let why = "must be a UUID and may not exceed a length of 64 characters";
        errors.push(FieldError::required(source.path("tenant"), why));
    } else {
        let odd = source
            .text("registry")
            .split(',')
            .filter(|pair| !is_pair(pair));
        errors.extend(odd.map(|_| source.invalid("registry", pairs)));
    }
    errors.extend(source.required(&["volume"]));
    errors
}

fn fibre_channel(source: &Source<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (names, ids) = (source.is_set("targetWWNs"), source.is_set("wwids"));
    if !names && !ids {
        let why = "must specify either targetWWNs or wwids, but not both";
        errors.push(FieldError::required(source.path("targetWWNs"), why));
    }
    if names && ids {
        let why = "targetWWNs and wwids can not be specified simultaneously";
        errors.push(source.invalid("targetWWNs", why));
    }
    if names && source.value.get("lun").is_none() {
        let why = "lun is required if targetWWNs is specified";
        errors.push(FieldError::required(source.path("lun"), why));
    } else if names {
        errors.extend(unit(source));
    }
    errors
}

fn flex(source: &Source<'_>) -> Vec<FieldError> {
    let options = source.value.get("options").and_then(Value::as_object);
    let reserved = |key: &&String| {
        let namespace = key.split_once('/').map_or(key.as_str(), |(n, _)| n);
        let namespace = format!(".{}", namespace.to_lowercase());
        namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io")
    };
    let refuse = |key: &String| {
        let at = format!("{}.options[{key}]", source.at);
        let why = "kubernetes.io and k8s.io namespaces are reserved";
        FieldError::invalid(at, key.as_str(), why)
    };
    let keys = options.into_iter().flat_map(|o| o.keys());
    keys.filter(reserved).map(refuse).collect()
}

fn azure_disk(source: &Source<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let caching = source.text("cachingMode");
    let modes = &["None", "ReadOnly", "ReadWrite"];
    errors.extend(one_of_if_set(caching, source.path("cachingMode"), modes));
    let kind = source.text("kind");
    let kinds = &["Dedicated", "Managed", "Shared"];
    errors.extend(one_of_if_set(kind, source.path("kind"), kinds));
    let (begin, form) = match kind {
        "" => return errors,
        "Managed" => (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        ),
        _ => (
            "https://",
            "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd",
        ),
    };
    let uri = source.text("diskURI");
    if !uri.starts_with(begin) {
        errors.push(FieldError::not_supported(
            source.path("diskURI"),
            uri,
            &[form],
        ));
    }
    errors
}

fn storage_os(source: &Source<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, required) in [("volumeName", true), ("volumeNamespace", false)] {
        let name = source.text(field);
        if !name.is_empty() {
            errors.extend(named(names::dns1123_label(name), &source.path(field), name));
        } else if required {
            errors.extend(source.required(&[field]));
        }
    }
    let fields: &[&str] = if source.volume.is_some() {
        &["name", "namespace"]
    } else {
        &["name"]
    };
    errors.extend(source.secret(fields));
    errors
}

fn csi(source: &Source<'_>) -> Vec<FieldError> {
    let mut errors = driver_name(source.text("driver"), &source.path("driver"));
    if source.volume.is_none() {
        let Some(secret) = source.value.get("nodePublishSecretRef") else {
            return errors;
        };
        let name = meta::str_at(secret, &["name"]);
        if name.is_empty() {
            let at = source.path("nodePublishSecretRef.name");
            errors.push(FieldError::required(at, ""));
        } else {
            errors.extend(named(
                names::dns1123_subdomain(name),
                &source.path("name"),
                name,
            ));
        }
        return errors;
    }
    errors.extend(source.required(&["volumeHandle"]));
    let secrets = [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ];
    for field in secrets {
        if let Some(secret) = source.value.get(field) {
            errors.extend(secret_reference(secret, &source.path(field)));
        }
    }
    errors
}

/// Name and namespace of a Secret.
fn secret_reference(secret: &Value, at: &str) -> Vec<FieldError> {
    let told = |field: &str, rule: fn(&str) -> Vec<String>| {
        let (text, at) = (meta::str_at(secret, &[field]), format!("{at}.{field}"));
        if text.is_empty() {
            vec![FieldError::required(at, "")]
        } else {
            named(rule(text), &at, text)
        }
    };
    let mut errors = told("name", names::dns1123_subdomain);
    errors.extend(told("namespace", names::dns1123_label));
    errors
}

/// The name of a CSI driver.
pub(crate) fn driver_name(name: &str, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if name.is_empty() {
        errors.push(FieldError::required(at, ""));
    }
    if name.len() > DRIVER_MAX {
        errors.push(FieldError::too_long(at, DRIVER_MAX));
    }
    let why = names::dns1123_subdomain(&name.to_lowercase());
    errors.extend(named(why, at, name));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_texts;
    use serde_json::json;

    #[test]
    fn every_kind_has_its_rules() {
        for (kind, source, expected) in [
            (
                "hostPath",
                json!({}),
                &["s.hostPath.path: Required value"][..],
            ),
            (
                "hostPath",
                json!({"path": "/a/../b", "type": "Odd"}),
                &[
                    "s.hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
                    "s.hostPath.type: Unsupported value: \"Odd\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
                ],
            ),
            (
                "local",
                json!({"path": ".."}),
                &["s.local.path: Invalid value: \"..\": must not contain '..'"],
            ),
            (
                "nfs",
                json!({"server": "s"}),
                &[
                    "s.nfs.path: Required value",
                    "s.nfs.path: Invalid value: \"\": must be an absolute path",
                ],
            ),
            (
                "gcePersistentDisk",
                json!({"partition": 256}),
                &[
                    "s.persistentDisk.pdName: Required value",
                    "s.persistentDisk.partition: Invalid value: 256: must be between 1 and 255, inclusive",
                ],
            ),
            (
                "iscsi",
                json!({"targetPortal": "p", "iqn": "x", "lun": 256, "chapAuthSession": true, "initiatorName": "iqn.1"}),
                &[
                    "s.iscsi.iqn: Invalid value: \"x\": must be valid format",
                    "s.iscsi.lun: Invalid value: 256: must be between 0 and 255, inclusive",
                    "s.iscsi.secretRef: Required value",
                    "s.iscsi.initiatorname: Invalid value: \"iqn.1\": must be valid format",
                ],
            ),
            (
                "iscsi",
                json!({"targetPortal": "p", "iqn": "iqn.2001-04.com.example:storage.disk1"}),
                &[],
            ),
            (
                "rbd",
                json!({}),
                &[
                    "s.rbd.monitors: Required value",
                    "s.rbd.image: Required value",
                ],
            ),
            (
                "cinder",
                json!({"volumeID": "v", "secretRef": {"name": "n"}}),
                &["s.cinder.secretRef.namespace: Required value"],
            ),
            (
                "flocker",
                json!({}),
                &["s.flocker: Required value: one of datasetName and datasetUUID is required"],
            ),
            (
                "quobyte",
                json!({"registry": "a:1,b", "volume": "v"}),
                &[
                    "s.quobyte.registry: Invalid value: \"a:1,b\": must be a host:port pair or multiple pairs separated by commas",
                ],
            ),
            (
                "fc",
                json!({"targetWWNs": ["a"], "wwids": ["b"]}),
                &[
                    "s.fc.targetWWNs: Invalid value: [\"a\"]: targetWWNs and wwids can not be specified simultaneously",
                    "s.fc.lun: Required value: lun is required if targetWWNs is specified",
                ],
            ),
            (
                "flexVolume",
                json!({"driver": "d", "options": {"a.kubernetes.io/b": "c"}}),
                &[
                    "s.flexVolume.options[a.kubernetes.io/b]: Invalid value: \"a.kubernetes.io/b\": kubernetes.io and k8s.io namespaces are reserved",
                ],
            ),
            (
                "azureFile",
                json!({"secretName": "s", "shareName": "n", "secretNamespace": ""}),
                &["s.azureFile.secretNamespace: Required value"],
            ),
            (
                "azureDisk",
                json!({"diskName": "d", "diskURI": "x", "cachingMode": "Odd", "kind": "Managed"}),
                &[
                    "s.azureDisk.cachingMode: Unsupported value: \"Odd\": supported values: \"None\", \"ReadOnly\", \"ReadWrite\"",
                    "s.azureDisk.diskURI: Unsupported value: \"x\": supported values: \"/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}\"",
                ],
            ),
            (
                "csi",
                json!({"driver": "d", "nodeExpandSecretRef": {"name": "a"}}),
                &[
                    "s.csi.volumeHandle: Required value",
                    "s.csi.nodeExpandSecretRef.namespace: Required value",
                ],
            ),
            (
                "storageos",
                json!({"volumeName": "A"}),
                &["s.storageos.volumeName: Invalid value: \"A\": a lowercase RFC 1123 label…"],
            ),
        ] {
            assert_texts(
                &validate(kind, &source, "s", Some("v")),
                expected,
                &format!("{kind} {source}"),
            );
        }
        assert_texts(
            &validate("csi", &json!({"nodePublishSecretRef": {}}), "s", None),
            &[
                "s.csi.driver: Required value",
                "s.csi.driver: Invalid value: \"\": a lowercase RFC 1123 subdomain…",
                "s.csi.nodePublishSecretRef.name: Required value",
            ],
            &"csi of a pod",
        );
        assert_texts(
            &validate("gitRepo", &json!({"directory": "/a"}), "s", None),
            &[
                "s.gitRepo.repository: Required value",
                "s.gitRepo.directory: Invalid value: \"/a\": must be a relative path",
            ],
            &"gitRepo",
        );
        let (one, others) = first(OF_VOLUMES, |kind| matches!(kind, "nfs" | "cephfs"), "spec");
        assert_eq!(one, Some("nfs"));
        assert_texts(
            &others,
            &["spec.cephFS: Forbidden: may not specify more than 1 volume type"],
            &"two",
        );
    }
}
