//! Schemas of custom resources, with their rules, and objects against them.
#![no_main]

use api::custom::Node;
use codec::ContentType;
use fuzz::server::{admin, server};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let Some((schema, object)) = fuzz::two(data) else {
        return;
    };
    let Ok((schema, _)) = codec::parse(schema, ContentType::Json) else {
        return;
    };
    if let Ok(node) = Node::parse(&schema)
        && let Ok((mut object, _)) = codec::parse(object, ContentType::Json)
    {
        api::custom::prune(&mut object, Some(&node));
        // Before defaults, which only accepted definitions keep to their own schema.
        let mut again = object.clone();
        assert_eq!(
            api::custom::prune(&mut again, Some(&node)),
            Vec::<String>::new()
        );
        assert_eq!(again, object);
        api::custom::drop_nulls(&mut object, Some(&node));
        api::custom::fill(&mut object, &node);
    }
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "xs.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "xs", "kind": "X"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema}}]}});
    let uri = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?dryRun=All";
    let request = http::Request::post(uri).header("content-type", "application/json");
    server().send(
        request.body(definition.to_string().into_bytes()).unwrap(),
        admin(),
    );
});
