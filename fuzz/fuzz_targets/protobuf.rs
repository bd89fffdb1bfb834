//! Protobuf bodies: what was encoded here decodes, and encodes to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut body = b"k8s\0".to_vec();
    let raw = data.first().is_some_and(|b| *b == 0xff);
    if raw {
        body = data[1..].to_vec();
    } else if let Some((choice, rest)) = fuzz::split(data) {
        body.extend(unknown(fuzz::kind(choice), rest));
    }
    let Ok(object) = codec::protobuf::to_json(&body) else {
        return;
    };
    let Ok(bytes) = codec::protobuf::encode(&object) else {
        return;
    };
    // What is no pointer is written even when it was left out: after that nothing changes any more.
    let again = codec::protobuf::to_json(&bytes).expect("own bytes");
    assert_eq!(codec::protobuf::encode(&again).expect("own object"), bytes);
});

/// The envelope around a message: type and bytes.
fn unknown(kind: &api::Kind, message: &[u8]) -> Vec<u8> {
    let mut meta = field(1, kind.api_version().as_bytes());
    meta.extend(field(2, kind.kind.as_bytes()));
    let mut out = field(1, &meta);
    out.extend(field(2, message));
    out
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(bytes);
    out
}
