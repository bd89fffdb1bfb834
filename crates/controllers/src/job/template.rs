//! The pods of a Job. Pure.

use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};

use super::{
    plan::NewPod,
    view::{FAILURES, FINALIZER, IGNORED, INDEX},
};
use crate::{claim, pods};

const INDEX_ENV: &str = "JOB_COMPLETION_INDEX";
/// Longest base of a generated name: the server appends five characters to at most 63.
const GENERATED_BASE_MAX: usize = 58;

/// The pod to be made.
pub fn pod(job: &Job, spec: &JobSpec, new: NewPod) -> Pod {
    let meta = &job.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let owner = claim::owner_reference(job);
    let mut pod = pods::from_template(&spec.template, namespace, name, owner);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    if let Some(index) = new.index {
        with_index(&mut pod, name, index);
    }
    if let Some((counted, ignored)) = new.failures {
        let all = pod.metadata.annotations.get_or_insert_default();
        all.insert(FAILURES.into(), counted.to_string());
        if ignored > 0 {
            all.insert(IGNORED.into(), ignored.to_string());
        }
    }
    pod
}

fn with_index(pod: &mut Pod, job: &str, index: u32) {
    let meta = &mut pod.metadata;
    let pair = || (INDEX.to_owned(), index.to_string());
    meta.annotations.get_or_insert_default().extend([pair()]);
    meta.labels.get_or_insert_default().extend([pair()]);
    let end = format!("-{index}-");
    let mut base = job.to_owned();
    base.truncate(GENERATED_BASE_MAX - end.len());
    meta.generate_name = Some(base + &end);
    if let Some(spec) = pod.spec.as_mut() {
        spec.hostname = Some(format!("{job}-{index}"));
        let init = spec.init_containers.iter_mut().flatten();
        init.chain(&mut spec.containers).for_each(tell_index);
    }
}

fn tell_index(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|e| e.name == INDEX_ENV) {
        return;
    }
    env.push(EnvVar {
        name: INDEX_ENV.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: format!("metadata.labels['{INDEX}']"),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    });
}
