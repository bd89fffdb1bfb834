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
///
/// `transforms` lists what the addressed resource can be turned into.
pub fn choose(accept: Option<&str>, transforms: &[Transform]) -> Option<Form> {
    let Some(accept) = accept.filter(|a| !a.trim().is_empty()) else {
        return Some(Form::default());
    };
    parse(accept).iter().find_map(|range| {
        let encoding = match range.kind.as_str() {
            "*/*" | "application/*" | "application/json" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            _ => return None,
        };
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
        if transform != Transform::None && (!known || !transforms.contains(&transform)) {
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
        assert_eq!(
            choose(Some(accept), &all).unwrap().transform,
            Transform::Table
        );
        assert_eq!(choose(Some(accept), &[]).unwrap(), Form::default());
        assert_eq!(choose(None, &all), Some(Form::default()));
        assert_eq!(choose(Some("text/html"), &all), None);
        assert_eq!(
            choose(
                Some("application/vnd.kubernetes.protobuf, application/json"),
                &all
            ),
            Some(Form::default())
        );
        assert_eq!(
            choose(Some("application/json;q=0.1, application/yaml"), &all)
                .unwrap()
                .encoding,
            Encoding::Yaml
        );
    }
}
