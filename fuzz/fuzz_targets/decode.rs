//! Bodies in JSON and YAML against the schema of a kind: what is accepted is accepted again, unchanged.
#![no_main]

use codec::{ContentType, FieldValidation};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = fuzz::split(data) else {
        return;
    };
    let Some((format, body)) = fuzz::split(rest) else {
        return;
    };
    let kind = fuzz::kind(choice);
    let format = if format % 2 == 0 {
        ContentType::Json
    } else {
        ContentType::Yaml
    };
    let _ = codec::decode(body, format, kind, FieldValidation::Strict);
    let Ok((mut object, _)) = codec::decode(body, format, kind, FieldValidation::Warn) else {
        return;
    };
    codec::default(kind, &mut object);
    let bytes = codec::canonical(&object);
    let again = codec::decode(&bytes, ContentType::Json, kind, FieldValidation::Strict);
    let (again, warnings) = again.expect("what was accepted is accepted");
    assert_eq!(again, object);
    assert!(warnings.is_empty(), "{warnings:?}");
    let _ = codec::protobuf::encode(&object);
});
