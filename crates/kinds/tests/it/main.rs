//! The rules against what a real API server recorded, and against manifests that people write.
//!
//! Both lie beside the repository; where they are absent the tests say so and pass.

use std::path::{Path, PathBuf};

use api::{Kind, meta};
use codec::{ContentType, FieldValidation};
use kinds::Ctx;
use serde_json::Value;

fn shared(path: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared")
        .join(path);
    if !found.exists() {
        println!("skipped: {} is not there", found.display());
        return None;
    }
    Some(found)
}

fn create(kind: &Kind, body: &[u8], like: &Value) -> Value {
    let (mut obj, warnings) =
        codec::decode(body, ContentType::Json, kind, FieldValidation::Strict).expect("decodes");
    assert!(warnings.is_empty());
    for field in ["namespace", "uid", "creationTimestamp"] {
        meta::set(
            &mut obj,
            &["metadata", field],
            meta::get(like, &["metadata", field])
                .cloned()
                .unwrap_or_default(),
        );
    }
    codec::default(kind, &mut obj);
    kinds::default(kind, &mut obj);
    let ctx = Ctx {
        kind,
        subresource: "",
        now: "2026-06-15T04:15:57Z".parse().expect("time"),
    };
    kinds::prepare_create(&mut obj, &ctx);
    assert_eq!(kinds::validate_create(kind, &obj), vec![]);
    obj
}

#[test]
fn creates_answer_what_upstream_answered() {
    let Some(folder) = shared("api/recorded/v1-36") else {
        return;
    };
    let mut seen = 0;
    for (file, group, resource) in [
        ("patch-deployment.json", "apps", "deployments"),
        ("job-create.json", "batch", "jobs"),
    ] {
        let text = std::fs::read_to_string(folder.join(file)).expect("readable");
        let exchanges: Vec<Value> = serde_json::from_str(&text).expect("JSON");
        let kind = api::kind(group, "v1", resource).expect("served");
        for exchange in exchanges
            .iter()
            .filter(|e| e["response_status_code"] == 201)
        {
            let mut answer: Value =
                serde_json::from_str(exchange["response_body"].as_str().unwrap_or_default())
                    .expect("JSON");
            let got = create(
                kind,
                exchange["request_body"]
                    .as_str()
                    .unwrap_or_default()
                    .as_bytes(),
                &answer,
            );
            meta::remove(&mut answer, &["metadata", "managedFields"]);
            meta::remove(&mut answer, &["metadata", "resourceVersion"]);
            assert_eq!(got, answer, "{file}");
            seen += 1;
        }
    }
    assert!(seen >= 2);
}

fn manifests(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            manifests(&path, out);
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            out.push(path);
        }
    }
}

/// Manifests that upstream refuses as well, or that are no objects of a served version.
const NOT_VALID: &[&str] = &[
    "ssa/nginx-deployment-replicas-only.yaml",
    "job/job-tmpl.yaml",
    "networking/dual-stack-ipv6-svc.yaml",
];

#[test]
fn manifests_are_accepted() {
    let Some(folder) = shared("manifests") else {
        return;
    };
    let mut files = Vec::new();
    manifests(&folder, &mut files);
    let mut problems = Vec::new();
    let mut accepted = 0;
    for file in &files {
        let text = std::fs::read_to_string(file).expect("readable");
        for document in text.split("\n---") {
            match check(document) {
                Ok(true) => accepted += 1,
                Ok(false) => {}
                Err(why) if NOT_VALID.iter().any(|n| file.ends_with(n)) => {
                    println!("{}: {why}", file.display())
                }
                Err(why) => problems.push(format!("{}: {why}", file.display())),
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(accepted > 100, "{accepted}");
}

fn check(document: &str) -> Result<bool, String> {
    let (obj, _) = codec::parse(document.as_bytes(), ContentType::Yaml).map_err(|s| s.message)?;
    let (group, version) = meta::split_api_version(meta::str_at(&obj, &["apiVersion"]));
    let Some(kind) = api::kind_by_gvk(group, version, meta::str_at(&obj, &["kind"])) else {
        return Ok(false);
    };
    let (mut obj, _) = codec::decode(
        document.as_bytes(),
        ContentType::Yaml,
        kind,
        FieldValidation::Strict,
    )
    .map_err(|s| s.message)?;
    if kind.namespaced && meta::namespace(&obj).is_empty() {
        meta::set(&mut obj, &["metadata", "namespace"], "default".into());
    }
    if !meta::str_at(&obj, &["metadata", "generateName"]).is_empty() {
        meta::set(&mut obj, &["metadata", "name"], "generated".into());
    }
    // The server gives every new object its identifier first.
    meta::set(&mut obj, &["metadata", "uid"], "u".into());
    codec::default(kind, &mut obj);
    kinds::default(kind, &mut obj);
    let once = obj.clone();
    codec::default(kind, &mut obj);
    kinds::default(kind, &mut obj);
    if obj != once {
        return Err("defaults are not idempotent".to_owned());
    }
    let ctx = Ctx {
        kind,
        subresource: "",
        now: api::time::Timestamp::UNIX_EPOCH,
    };
    kinds::prepare_create(&mut obj, &ctx);
    let errors = kinds::validate_create(kind, &obj);
    if !errors.is_empty() {
        return Err(errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; "));
    }
    // What was accepted can be written back as it is, and printed.
    let mut again = obj.clone();
    kinds::prepare_update(&mut again, &obj, &ctx);
    let errors = kinds::validate_update(kind, &again, &obj);
    if again != obj || !errors.is_empty() {
        return Err(format!("an unchanged update changes: {errors:?}"));
    }
    let stored: Value =
        serde_json::from_slice(&codec::canonical(&obj)).map_err(|e| e.to_string())?;
    if stored != obj {
        return Err("the stored form differs".to_owned());
    }
    if kinds::row(kind, &obj, ctx.now).len() != kind.columns.len() {
        return Err("row".to_owned());
    }
    Ok(true)
}
