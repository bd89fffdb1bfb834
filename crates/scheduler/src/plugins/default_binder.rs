//! Binds a pod to its node.

use client::Error;
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{
    api::core::v1::{Binding, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Resource, api::PostParams, core::Request};

use super::Handle;
use crate::{
    framework::{Cycle, Plugin, PreFilter},
    pod::PodInfo,
};

struct DefaultBinder {
    client: client::Client,
}

pub(super) fn make(handle: &Handle) -> Box<dyn Plugin> {
    Box::new(DefaultBinder {
        client: handle.client.clone(),
    })
}

impl DefaultBinder {
    async fn post(&self, pod: &PodInfo, node: &str) -> Result<(), Error> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.key.name.to_string()),
                namespace: Some(pod.key.namespace.to_string()),
                uid: Some(pod.uid().to_string()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let body = serde_json::to_vec(&binding).map_err(|e| Error::Other(e.to_string()))?;
        let path = Pod::url_path(&(), Some(&pod.key.namespace));
        let request = Request::new(path).create_subresource(
            "binding",
            &pod.key.name,
            &PostParams::default(),
            body,
        )?;
        self.client.request_text(request).await?;
        Ok(())
    }
}

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }

    /// It has nothing against any node.
    fn pre_filter(&self, _: &mut Cycle<'_>, _: &PodInfo) -> PreFilter {
        PreFilter::Skip
    }

    fn bind<'a>(
        &'a self,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> Option<BoxFuture<'a, Result<(), Error>>> {
        Some(self.post(pod, node).boxed())
    }
}
