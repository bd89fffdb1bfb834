//! Quantities, durations, times, JSON paths and names: what is written back reads the same.
#![no_main]

use api::Quantity;
use api::jsonpath::JsonPath;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(quantity) = text.parse::<Quantity>() {
        let (_, _) = (quantity.value(), quantity.milli_value());
        let written = quantity.to_string();
        let again: Quantity = written.parse().expect("own text");
        assert_eq!(again, quantity, "{written}");
        assert_eq!(again.to_string(), written);
    }
    if let Some(time) = api::time::parse(text) {
        assert!(api::time::parse(&api::time::format(time)).is_some());
    }
    let _ = cel::parse_duration(text);
    let _ = cel::parse_timestamp(text);
    if let Ok(path) = JsonPath::parse(text) {
        let object = serde_json::json!({"a": [{"b": 1}, {"b": [2, 3]}], "c": {"d": "e"}});
        let _ = path.find(&object);
    }
});
