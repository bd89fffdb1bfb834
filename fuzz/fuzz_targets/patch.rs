//! JSON, merge and strategic merge patches of an object, both the fuzzer's.
#![no_main]

use codec::patch::{json_patch, merge_patch, strategic_merge};
use codec::{ContentType, FieldValidation};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = fuzz::split(data) else {
        return;
    };
    let Some((object, patch)) = fuzz::two(rest) else {
        return;
    };
    let kind = fuzz::kind(choice);
    let Ok((object, _)) = codec::decode(object, ContentType::Json, kind, FieldValidation::Ignore)
    else {
        return;
    };
    let Ok((patch, _)) = codec::parse(patch, ContentType::Json) else {
        return;
    };
    let _ = json_patch(&object, &patch);
    if patch.is_object() {
        let merged = merge_patch(&object, &patch);
        assert_eq!(merge_patch(&merged, &patch), merged);
    }
    if let Ok(out) = strategic_merge(kind, &object, &patch)
        && out.is_object()
    {
        assert_eq!(
            strategic_merge(kind, &out, &json!({})).expect("an empty patch"),
            out
        );
    }
});
