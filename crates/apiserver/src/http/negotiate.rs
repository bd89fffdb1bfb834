//! Choosing the form of an answer from the `Accept` header.

/// What the client wants instead of the object itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transform {
    /// The object or list as it is.
    #[default]
    None,
    /// `meta.k8s.io` Table.
    Table,
    /// `meta.k8s.io` PartialObjectMetadata.
    Partial,
    /// `meta.k8s.io` PartialObjectMetadataList.
    PartialList,
}

/// Encoding of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// `application/json`.
    #[default]
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

/// Media type of protobuf bodies.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// What the addressed resource can be written as.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Other forms of the object.
    pub transforms: &'a [Transform],
    /// Whether the object itself has a protobuf form; its metadata always has one.
    pub protobuf: bool,
}

/// A chosen form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    /// Object, Table or metadata only.
    pub transform: Transform,
    /// JSON or YAML.
    pub encoding: Encoding,
    /// Whether `v1beta1` of `meta.k8s.io` was asked for; otherwise `v1`.
    pub beta: bool,
}

impl Form {
    /// `apiVersion` of transformed answers.
    pub fn meta_version(&self) -> &'static str {
        if self.beta {
            "meta.k8s.io/v1beta1"
        } else {
            "meta.k8s.io/v1"
        }
    }
}

/// One media range of an `Accept` header.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaRange<'a> {
    /// Type and subtype in lower case.
    pub kind: String,
    /// Parameters without `q`.
    pub params: Vec<(&'a str, &'a str)>,
    /// Preference between 0 and 1.
    pub q: f32,
}

impl MediaRange<'_> {
    /// Value of a parameter.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params
            .iter()
            .find(|(k, _)| *k == name)
            .map(|(_, v)| *v)
    }
}

/// Splits an `Accept` header, best first.
pub fn parse(accept: &str) -> Vec<MediaRange<'_>> {
    let mut ranges: Vec<MediaRange<'_>> = accept
        .split(',')
        .map(str::trim)
        .filter(|r| !r.is_empty())
        .map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut q = 1.0;
            let mut params = Vec::new();
            for p in parts {
                match p.split_once('=') {
                    Some(("q", v)) => q = v.parse().unwrap_or(0.0),
                    Some((k, v)) => params.push((k.trim(), v.trim().trim_matches('"'))),
                    None => {}
                }
            }
            MediaRange { kind, params, q }
        })
        .collect();
    ranges.sort_by(|a, b| b.q.total_cmp(&a.q));
    ranges
}

/// The first acceptable form; `None` means 406.
pub fn choose(accept: Option<&str>, offer: Offer<'_>) -> Option<Form> {
    let Some(accept) = accept.filter(|a| !a.trim().is_empty()) else {
        return Some(Form::default());
    };
    parse(accept).iter().find_map(|range| {
        let encoding = match range.kind.as_str() {
            "*/*" | "application/*" | "application/json" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            PROTOBUF => Encoding::Protobuf,
            _ => return None,
        };
        if range
            .param("stream")
            .is_some_and(|s| !matches!(s, "" | "watch"))
        {
            return None;
        }
        let transform = match range.param("as") {
            None => Transform::None,
            Some("Table") => Transform::Table,
            Some("PartialObjectMetadata") => Transform::Partial,
            Some("PartialObjectMetadataList") => Transform::PartialList,
            Some(_) => return None,
        };
        let version = range.param("v").unwrap_or("v1");
        let known = range.param("g").is_none_or(|g| g == "meta.k8s.io")
            && matches!(version, "v1" | "v1beta1");
        if transform != Transform::None && (!known || !offer.transforms.contains(&transform)) {
            return None;
        }
        let packed = match transform {
            Transform::None => offer.protobuf,
            Transform::Table => false,
            Transform::Partial | Transform::PartialList => true,
        };
        if encoding == Encoding::Protobuf && !packed {
            return None;
        }
        Some(Form {
            transform,
            encoding,
            beta: version == "v1beta1" && transform != Transform::None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_asks_for_tables() {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let all = [Transform::Table, Transform::PartialList];
        let offer = |transforms, protobuf| Offer {
            transforms,
            protobuf,
        };
        let custom = offer(&all, false);
        assert_eq!(
            choose(Some(accept), custom).unwrap().transform,
            Transform::Table
        );
        assert_eq!(
            choose(Some(accept), offer(&[], true)).unwrap(),
            Form::default()
        );
        assert_eq!(choose(None, custom), Some(Form::default()));
        assert_eq!(choose(Some("text/html"), custom), None);
        let packed = "application/vnd.kubernetes.protobuf, application/json";
        assert_eq!(choose(Some(packed), custom), Some(Form::default()));
        assert_eq!(
            choose(Some(packed), offer(&all, true)).unwrap().encoding,
            Encoding::Protobuf
        );
        let table = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(choose(Some(table), offer(&all, true)), None);
        let metadata =
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
        assert_eq!(
            choose(Some(metadata), custom).unwrap().encoding,
            Encoding::Protobuf
        );
        assert_eq!(choose(Some("application/json;stream=x"), custom), None);
        assert_eq!(
            choose(Some("application/json;q=0.1, application/yaml"), custom)
                .unwrap()
                .encoding,
            Encoding::Yaml
        );
    }
}
