//! Schemas of custom resources, with their rules, and objects against them.
#![no_main]

use api::custom::Node;
use codec::ContentType;
use fuzz::server::{admin, server};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let Some((schema, object)) = fuzz::two(data) else {
        return;
    };
    let Ok((schema, _)) = codec::parse(schema, ContentType::Json) else {
        return;
    };
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "xs.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "xs", "kind": "X"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": &schema}}]}});
    let uri = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?dryRun=All";
    let request = http::Request::post(uri).header("content-type", "application/json");
    let accepted = server().send(
        request.body(definition.to_string().into_bytes()).unwrap(),
        admin(),
    ) == 201;
    if let Ok(node) = Node::parse(&schema)
        && let Ok((mut object, _)) = codec::parse(object, ContentType::Json)
    {
        api::custom::prune(&mut object, Some(&node));
        nothing_to_prune(&object, &node);
        api::custom::drop_nulls(&mut object, Some(&node));
        api::custom::fill(&mut object, &node);
        // Defaults with unknown fields are refused with their definition.
        if accepted {
            nothing_to_prune(&object, &node);
        }
    }
});

fn nothing_to_prune(object: &Value, node: &Node) {
    let mut again = object.clone();
    let pruned = api::custom::prune(&mut again, Some(node));
    assert_eq!(pruned, Vec::<String>::new());
    assert_eq!(again, *object);
}
