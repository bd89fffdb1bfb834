//! The short hash that tells the ReplicaSets of a Deployment apart. Pure.

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// Letters and digits that form no words.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A hash of the template and of how often hashes have collided before, as up to ten characters
/// that may stand in a name.
pub fn of_template(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut hash = fnv1a(
        &serde_json::to_vec(template).unwrap_or_default(),
        0x811c_9dc5,
    );
    if collisions > 0 {
        hash = fnv1a(&collisions.to_le_bytes(), hash);
    }
    safe(&hash.to_string())
}

fn fnv1a(bytes: &[u8], seed: u32) -> u32 {
    bytes.iter().fold(seed, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

fn safe(digits: &str) -> String {
    digits
        .bytes()
        .map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_templates_have_equal_hashes_and_collisions_change_them() {
        let template = PodTemplateSpec::default();
        let hash = of_template(&template, 0);
        assert_eq!(hash, of_template(&template, 0));
        assert_ne!(hash, of_template(&template, 1));
        assert!(hash.len() <= 10 && hash.bytes().all(|b| ALPHABET.contains(&b)));
        assert_eq!(safe("0123456789"), "456789bcdf");
    }
}
