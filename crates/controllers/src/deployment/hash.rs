//! The short hash that tells the ReplicaSets of a Deployment apart, and names that end in it. Pure.

use k8s_openapi::api::core::v1::PodTemplateSpec;

use crate::pods::NAME_MAX;

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

/// `owner-hash`, the owner's name cut so that it stays a name.
pub fn name(owner: &str, hash: &str) -> String {
    name_cut_at(NAME_MAX.saturating_sub(1 + hash.len()), owner, hash)
}

/// `owner-hash`, the owner's name cut to so many characters.
pub fn name_cut_at(most: usize, owner: &str, hash: &str) -> String {
    format!("{}-{hash}", &owner[..owner.floor_char_boundary(most)])
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

    #[test]
    fn long_names_make_way_for_the_hash() {
        let long = "d".repeat(253);
        let short = &long[..242];
        assert_eq!(name("d", "0123456789"), "d-0123456789");
        assert_eq!(name(short, "0123456789"), format!("{short}-0123456789"));
        assert_eq!(name(&long, "0123456789"), format!("{short}-0123456789"));
        assert_eq!(name_cut_at(3, "abcd", "x"), "abc-x");
        assert_eq!(name_cut_at(4, "abcd", "x"), "abcd-x");
    }
}
