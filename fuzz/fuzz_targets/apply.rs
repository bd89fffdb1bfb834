//! Applied configurations of two managers, after an update of a third: applying again changes nothing.
#![no_main]

use api::time::Timestamp;
use codec::apply::{Context, Reset};
use codec::{ContentType, FieldValidation};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = fuzz::split(data) else {
        return;
    };
    let Some((first, rest)) = fuzz::two(rest) else {
        return;
    };
    let Some((second, third)) = fuzz::two(rest) else {
        return;
    };
    let kind = fuzz::kind(choice);
    let Some(schema) = kind.schema.get() else {
        return;
    };
    let read = |bytes: &[u8]| -> Option<Value> {
        let decoded = codec::decode(bytes, ContentType::Json, kind, FieldValidation::Ignore);
        let mut object = decoded.ok()?.0;
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.kind.as_str().into();
        Some(object)
    };
    let context = Context {
        api_version: &kind.api_version(),
        kind: &kind.kind,
        schema,
        subresource: "",
        reset: &Reset::Nothing,
        versions: &|_, _| None,
        now: Timestamp::UNIX_EPOCH,
    };
    let mut live = read(first);
    if let Some(live) = &mut live {
        context.track(None, live, "updater");
    }
    for (body, manager) in [(second, "a"), (third, "b")] {
        let Some(config) = read(body) else { continue };
        let _ = context.apply(live.as_ref(), &config, manager, false);
        let Ok(once) = context.apply(live.as_ref(), &config, manager, true) else {
            continue;
        };
        let twice = context.apply(Some(&once), &config, manager, false);
        let twice = twice.expect("what one owns alone does not conflict");
        assert_eq!(twice, once);
        live = Some(once);
    }
});
