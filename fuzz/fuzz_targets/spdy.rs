//! SPDY/3.1 frames after the handshake of an exec, raw or around the fuzzer's bytes.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use streams::spdy::Encoder;

const HEAD: &str = "POST /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
    X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
const TYPES: [&str; 5] = ["error", "stdin", "stdout", "stderr", "resize"];

#[derive(Arbitrary, Debug)]
enum Part<'a> {
    Raw(&'a [u8]),
    Open { id: u32, kind: u8, flags: u8 },
    Headers(Vec<(&'a str, &'a str)>),
    Control { kind: u8, flags: u8, body: &'a [u8] },
    Data { id: u32, flags: u8, bytes: &'a [u8] },
}

fuzz_target!(|parts: Vec<Part<'_>>| {
    let mut encoder = Encoder::new().unwrap();
    let mut sent = Vec::new();
    let mut block = |headers: Vec<(String, String)>| encoder.encode(&headers).unwrap_or_default();
    for part in parts {
        match part {
            Part::Raw(bytes) => sent.extend(bytes),
            Part::Open { id, kind, flags } => {
                let kind = TYPES[usize::from(kind) % TYPES.len()].to_owned();
                let block = block(vec![("streamtype".to_owned(), kind)]);
                control(
                    &mut sent,
                    1,
                    flags,
                    &[&id.to_be_bytes()[..], &[0; 6], &block].concat(),
                );
            }
            Part::Headers(headers) => {
                let own = |(k, v): (&str, &str)| (k.to_owned(), v.to_owned());
                let block = block(headers.into_iter().map(own).collect());
                control(
                    &mut sent,
                    1,
                    0,
                    &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &block].concat(),
                );
            }
            Part::Control { kind, flags, body } => control(&mut sent, kind, flags, body),
            Part::Data { id, flags, bytes } => {
                sent.extend((id & 0x7fff_ffff).to_be_bytes());
                frame(&mut sent, flags, bytes);
            }
        }
    }
    fuzz::upgraded::exec(HEAD, sent);
});

fn control(sent: &mut Vec<u8>, kind: u8, flags: u8, body: &[u8]) {
    sent.extend([0x80, 3, 0, kind]);
    frame(sent, flags, body);
}

fn frame(sent: &mut Vec<u8>, flags: u8, body: &[u8]) {
    let length = (body.len() as u32).to_be_bytes();
    sent.extend([flags, length[1], length[2], length[3]]);
    sent.extend(body);
}
