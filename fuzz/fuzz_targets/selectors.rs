//! Label and field selectors.
#![no_main]

use api::selector::{FieldSelector, LabelSelector};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(selector) = LabelSelector::parse(text) {
        let _ = selector.matches_with(|key| (key == "a").then_some("b"));
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        let _ = selector.matches_with(|field| field.to_owned());
    }
    if let Ok((value, _)) = codec::parse(data, codec::ContentType::Json) {
        let _ = LabelSelector::from_value(&value);
    }
});
