//! Questions to the cluster's names.
#![no_main]

use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use traffic::dns::{Domain, Outcome, Zone};

fuzz_target!(|data: &[u8]| {
    let Ok(request) = Message::from_vec(data) else {
        return;
    };
    let ranges = ["10.43.0.0/16".parse().unwrap()];
    let domain = Domain::new("cluster.local", &ranges).unwrap();
    match domain.answer(&request, &Zone::default(), 0) {
        Outcome::Answer(answer) | Outcome::Follow(answer, _) => {
            let _ = answer.to_vec();
        }
        Outcome::Forward => {}
    }
});
