//! WebSocket messages of the channel protocols after the handshake of an exec, raw or well framed.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

const PROTOCOLS: [&str; 3] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
];

#[derive(Arbitrary, Debug)]
enum Part<'a> {
    Raw(&'a [u8]),
    Message {
        code: u8,
        channel: u8,
        bytes: &'a [u8],
    },
}

fuzz_target!(|input: (u8, Vec<Part<'_>>)| {
    let (protocol, parts) = input;
    let protocol = PROTOCOLS[usize::from(protocol) % PROTOCOLS.len()];
    let head = format!(
        "GET /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    let mut sent = Vec::new();
    for part in parts {
        match part {
            Part::Raw(bytes) => sent.extend(bytes),
            Part::Message {
                code,
                channel,
                bytes,
            } => message(&mut sent, code, channel, bytes),
        }
    }
    fuzz::upgraded::exec(&head, sent);
});

/// A masked frame whose mask is zero.
fn message(sent: &mut Vec<u8>, code: u8, channel: u8, bytes: &[u8]) {
    let length = (bytes.len() + 1) as u16;
    sent.extend([0x80 | code & 0x0f, 0x80 | 126]);
    sent.extend(length.to_be_bytes());
    sent.extend([0; 4]);
    sent.push(channel);
    sent.extend(&bytes[..usize::from(length) - 1]);
}
