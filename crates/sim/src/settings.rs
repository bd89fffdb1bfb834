//! What is to be simulated, as stored in the cluster.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use crate::{Profile, ProfileError, addresses};

/// Name of the ConfigMap that says what is simulated.
pub const NAME: &str = "styr-simulation";
/// Its namespace.
pub const NAMESPACE: &str = "kube-system";
/// Most simulated nodes.
pub const MAX_NODES: u32 = 20_000;

const NODES: &str = "nodes";
const PROFILE: &str = "profile";

/// What is to be simulated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// How many nodes.
    pub nodes: u32,
    /// What they look like and how their pods fare.
    pub profile: Profile,
}

/// Settings that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The number of nodes is none.
    #[error("nodes: {0:?} is no number from 0 to {MAX_NODES}")]
    Nodes(String),
    /// The profile is wrong.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// There are not enough addresses.
    #[error(
        "{nodes} nodes of {pods} pods need more addresses than {} has",
        addresses::RANGE
    )]
    Addresses {
        /// Nodes asked for.
        nodes: u32,
        /// Pods of a node.
        pods: u32,
    },
}

impl Settings {
    /// These many nodes of a profile written as YAML.
    ///
    /// # Errors
    /// What is wrong.
    pub fn new(nodes: u32, profile: &str) -> Result<Self, SettingsError> {
        if nodes > MAX_NODES {
            return Err(SettingsError::Nodes(nodes.to_string()));
        }
        let profile = Profile::parse(profile)?;
        let pods = profile.nodes.pods();
        if !addresses::suffice(nodes, pods) {
            return Err(SettingsError::Addresses { nodes, pods });
        }
        Ok(Self { nodes, profile })
    }

    /// What a ConfigMap asks for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(map: &ConfigMap) -> Result<Self, SettingsError> {
        let text = |key: &str| {
            map.data
                .as_ref()
                .and_then(|d| d.get(key))
                .map(String::as_str)
        };
        let nodes = text(NODES).unwrap_or("0").trim();
        let count = nodes
            .parse()
            .map_err(|_| SettingsError::Nodes(nodes.into()))?;
        Self::new(count, text(PROFILE).unwrap_or_default())
    }

    /// The ConfigMap that asks for `nodes` nodes of a profile written as YAML.
    pub fn config_map(nodes: u32, profile: &str) -> ConfigMap {
        let data = BTreeMap::from([
            (NODES.to_owned(), nodes.to_string()),
            (PROFILE.to_owned(), profile.to_owned()),
        ]);
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(NAMESPACE.into()),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..ConfigMap::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_back_and_what_is_wrong_is_said() {
        let map = Settings::config_map(7, "nodes: {namePrefix: n-}");
        assert_eq!(Settings::of(&map).unwrap().profile.nodes.name_prefix, "n-");
        assert_eq!(Settings::of(&ConfigMap::default()), Ok(Settings::default()));
        for (nodes, profile, expected) in [
            (MAX_NODES + 1, "", "nodes: \"20001\""),
            (1, "pods: 3", "pods: invalid type"),
            (
                20_000,
                "nodes: {capacity: {pods: '900'}}",
                "need more addresses",
            ),
        ] {
            let error = Settings::new(nodes, profile).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
