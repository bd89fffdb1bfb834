//! The scheduler's configuration file: `KubeSchedulerConfiguration` of
//! `kubescheduler.config.k8s.io/v1`, decoded strictly, so that a misspelt field is an error and not
//! a scheduler that does something else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    extender::ExtenderConfig,
    plugins,
    points::{Point, Points},
    queue::Backoff,
};

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";
/// The scheduler name of pods that name none.
pub const DEFAULT_NAME: &str = "default-scheduler";
/// Most profiles and extenders a file may have.
const MAX_ITEMS: usize = 64;

/// Plugins that were there once.
const GONE: [&str; 4] = [
    "AzureDiskLimits",
    "CinderLimits",
    "EBSLimits",
    "GCEPDLimits",
];

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    /// It is no YAML of this shape.
    #[error("{0}")]
    Syntax(String),
    /// It says things that make no sense.
    #[error("{0}")]
    Invalid(Mistakes),
}

/// Where something makes no sense, and why; each of them.
#[derive(Debug, Default, PartialEq)]
pub struct Mistakes(Vec<(String, String)>);

impl Mistakes {
    fn note(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.0.push((field.into(), problem.into()));
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |(field, problem): &(String, String)| format!("{field}: {problem}");
        match self.0.as_slice() {
            [one] => f.write_str(&told(one)),
            all => write!(
                f,
                "[{}]",
                all.iter().map(told).collect::<Vec<_>>().join(", ")
            ),
        }
    }
}

/// The file. Fields of upstream that mean nothing here are accepted and ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    percentage_of_nodes_to_score: Option<i64>,
    #[serde(default)]
    pod_initial_backoff_seconds: Option<i64>,
    #[serde(default)]
    pod_max_backoff_seconds: Option<i64>,
    #[serde(default)]
    profiles: Vec<ProfileFile>,
    #[serde(default)]
    extenders: Vec<ExtenderConfig>,
    #[serde(default)]
    parallelism: Option<i64>,
    #[serde(default, rename = "leaderElection")]
    _leader_election: Option<Value>,
    #[serde(default, rename = "clientConnection")]
    _client_connection: Option<Value>,
    #[serde(default, rename = "enableProfiling")]
    _enable_profiling: Option<bool>,
    #[serde(default, rename = "enableContentionProfiling")]
    _enable_contention_profiling: Option<bool>,
    #[serde(default, rename = "delayCacheUntilActive")]
    _delay_cache_until_active: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ProfileFile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i64>,
    plugins: BTreeMap<String, PluginSet>,
    plugin_config: Vec<PluginConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PluginSet {
    enabled: Vec<PluginRef>,
    disabled: Vec<PluginRef>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginRef {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginConfig {
    name: String,
    #[serde(default)]
    args: Value,
}

/// A plugin of a profile.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Its name.
    pub name: &'static str,
    /// Where it is enabled.
    pub points: Points,
    /// The weight of its scores; `None`: its own.
    pub weight: Option<i64>,
    /// Its arguments.
    pub args: Value,
}

/// What pods that name one scheduler get.
#[derive(Clone, Debug)]
pub struct ProfileConfig {
    /// The scheduler name.
    pub name: String,
    /// Its plugins.
    pub plugins: Vec<Chosen>,
    /// The share of the nodes that has to suit before a search ends, in percent; `None`: by size.
    pub percentage: Option<usize>,
}

impl Default for ProfileConfig {
    /// Every plugin, as upstream has them.
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.to_owned(),
            plugins: all(),
            percentage: None,
        }
    }
}

fn all() -> Vec<Chosen> {
    plugins::ALL
        .iter()
        .map(|(name, _)| Chosen {
            name,
            points: Points::ALL,
            weight: None,
            args: Value::Null,
        })
        .collect()
}

/// What the scheduler is told.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The profiles.
    pub profiles: Vec<ProfileConfig>,
    /// Schedulers asked over HTTP.
    pub extenders: Vec<ExtenderConfig>,
    /// How long pods wait after failures.
    pub backoff: Backoff,
}

impl Default for Configuration {
    /// One profile with upstream's defaults.
    fn default() -> Self {
        Self {
            profiles: vec![ProfileConfig::default()],
            extenders: Vec::new(),
            backoff: Backoff::default(),
        }
    }
}

impl Configuration {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let file: File =
            serde_saphyr::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        let mut mistakes = Mistakes::default();
        let read = Self::read(file, &mut mistakes);
        if mistakes.0.is_empty() {
            Ok(read)
        } else {
            Err(ConfigError::Invalid(mistakes))
        }
    }

    fn read(file: File, mistakes: &mut Mistakes) -> Self {
        if (file.api_version.as_str(), file.kind.as_str()) != (API_VERSION, KIND) {
            let problem = format!(
                "no kind \"{}\" is registered for version \"{}\"; this is to be {API_VERSION}, {KIND}",
                file.kind, file.api_version
            );
            mistakes.note("apiVersion", problem);
        }
        if let Some(parallelism) = file.parallelism.filter(|p| *p <= 0) {
            let problem = format!(
                "Invalid value: {parallelism}: should be an integer value greater than zero"
            );
            mistakes.note("parallelism", problem);
        }
        if file.profiles.len() > MAX_ITEMS || file.extenders.len() > MAX_ITEMS {
            mistakes.note("profiles", format!("more than {MAX_ITEMS} items"));
        }
        let share = file.percentage_of_nodes_to_score;
        let share = percentage("percentageOfNodesToScore", share, mistakes);
        let (first, max) = (
            file.pod_initial_backoff_seconds,
            file.pod_max_backoff_seconds,
        );
        let backoff = backoff(first, max, mistakes);
        let mut files = file.profiles;
        if files.is_empty() {
            files.push(ProfileFile::default());
        }
        let mut profiles: Vec<ProfileConfig> = Vec::new();
        for (at, file) in files.into_iter().enumerate() {
            let field = format!("profiles[{at}]");
            let mut profile = profile(&field, file, mistakes);
            if let Some(first) = profiles.iter().position(|p| p.name == profile.name) {
                let problem = format!("Duplicate value: \"profiles[{first}].schedulerName\"");
                mistakes.note(format!("{field}.schedulerName"), problem);
            }
            profile.percentage = profile.percentage.or(share);
            profiles.push(profile);
        }
        check_extenders(&file.extenders, mistakes);
        Self {
            profiles,
            extenders: file.extenders,
            backoff,
        }
    }
}

fn check_extenders(extenders: &[ExtenderConfig], mistakes: &mut Mistakes) {
    let mut managed = BTreeSet::new();
    for (at, extender) in extenders.iter().enumerate() {
        if let Err((name, problem)) = extender.check() {
            mistakes.note(format!("extenders[{at}].{name}"), problem);
        }
        for (j, resource) in extender.managed_resources.iter().enumerate() {
            if !managed.insert(resource.name.as_str()) {
                let field = format!("extenders[{at}].managedResources[{j}].name");
                let name = &resource.name;
                let problem =
                    format!("Invalid value: {name:?}: duplicate extender managed resource name");
                mistakes.note(field, problem);
            }
        }
    }
    let binders = extenders.iter().filter(|e| !e.bind_verb.is_empty());
    let binders = binders.count();
    if binders > 1 {
        let problem = format!(
            "Invalid value: \"found {binders} extenders implementing bind\": only one extender can implement bind"
        );
        mistakes.note("extenders", problem);
    }
}

fn percentage(field: &str, value: Option<i64>, mistakes: &mut Mistakes) -> Option<usize> {
    match value {
        None | Some(0) => None,
        Some(percent @ 1..=100) => usize::try_from(percent).ok(),
        Some(other) => {
            let problem = format!("Invalid value: {other}: not in valid range [0-100]");
            mistakes.note(field, problem);
            None
        }
    }
}

fn backoff(first: Option<i64>, max: Option<i64>, mistakes: &mut Mistakes) -> Backoff {
    let mut backoff = Backoff::default();
    if let Some(first) = first {
        if first < 1 {
            let problem = format!("Invalid value: {first}: must be greater than 0");
            mistakes.note("podInitialBackoffSeconds", problem);
        }
        backoff.first = SignedDuration::from_secs(first);
    }
    if let Some(max) = max {
        backoff.max = SignedDuration::from_secs(max);
    }
    if backoff.max < backoff.first {
        let max = backoff.max.as_secs();
        let problem = format!(
            "Invalid value: {max}: must be greater than or equal to PodInitialBackoffSeconds"
        );
        mistakes.note("podMaxBackoffSeconds", problem);
    }
    backoff
}

fn profile(field: &str, file: ProfileFile, mistakes: &mut Mistakes) -> ProfileConfig {
    let name = file.scheduler_name.unwrap_or(DEFAULT_NAME.to_owned());
    if name.is_empty() {
        mistakes.note(format!("{field}.schedulerName"), "Required value");
    }
    let share = file.percentage_of_nodes_to_score;
    let percentage = percentage(
        &format!("{field}.percentageOfNodesToScore"),
        share,
        mistakes,
    );
    let mut chosen = all();
    let within = format!("{field}.plugins");
    for (key, set) in &file.plugins {
        let field = format!("{within}.{key}");
        if key != "multiPoint" && !Point::ALL.iter().any(|(name, _)| name == key) {
            mistakes.note(field, "unknown field");
            continue;
        }
        check_set(&field, set, &chosen, mistakes);
    }
    if let Some(set) = file.plugins.get("multiPoint") {
        switch(&mut chosen, set, None);
    }
    for (key, point) in Point::ALL {
        if let Some(set) = file.plugins.get(*key) {
            switch(&mut chosen, set, Some(*point));
        }
    }
    arguments(field, &mut chosen, file.plugin_config, mistakes);
    let sorts = |c: &&Chosen| c.points.has(Point::QueueSort) && c.name == plugins::SORTS;
    if chosen.iter().filter(sorts).count() != 1 {
        let problem = "one queue sort plugin required";
        mistakes.note(format!("{within}.queueSort"), problem);
    }
    let binds = |c: &&Chosen| c.points.has(Point::Bind) && c.name == plugins::BINDS;
    if chosen.iter().filter(binds).count() == 0 {
        let problem = "at least one bind plugin is needed";
        mistakes.note(format!("{within}.bind"), problem);
    }
    chosen.retain(|c| c.points != Points::NONE);
    ProfileConfig {
        name,
        plugins: chosen,
        percentage,
    }
}

fn check_set(field: &str, set: &PluginSet, known: &[Chosen], mistakes: &mut Mistakes) {
    let is_known = |name: &str| known.iter().any(|c| c.name == name);
    for (at, plugin) in set.enabled.iter().enumerate() {
        let name = plugin.name.as_str();
        let field = format!("{field}.enabled[{at}]");
        if GONE.contains(&name) {
            let problem = format!(
                "Invalid value: {name:?}: was invalid in version \"v1\" (KubeSchedulerConfiguration is version \"{API_VERSION}\")"
            );
            mistakes.note(field, problem);
        } else if !is_known(name) {
            mistakes.note(field, format!("plugin {name:?} does not exist"));
        } else if set.enabled[..at].iter().any(|p| p.name == name) {
            mistakes.note(field, format!("plugin {name:?} already registered"));
        } else if plugin.weight < 0 {
            let problem = format!("Invalid value: {}: must not be negative", plugin.weight);
            mistakes.note(format!("{field}.weight"), problem);
        }
    }
    for (at, plugin) in set.disabled.iter().enumerate() {
        let name = plugin.name.as_str();
        if name != "*" && !is_known(name) && !GONE.contains(&name) {
            let field = format!("{field}.disabled[{at}]");
            mistakes.note(field, format!("plugin {name:?} does not exist"));
        }
    }
}

/// Disables and enables plugins at a point, or (`None`) at all.
fn switch(chosen: &mut [Chosen], set: &PluginSet, point: Option<Point>) {
    let set_to = |one: &mut Chosen, on: bool| match point {
        Some(point) => one.points.set(point, on),
        None if on => one.points = Points::ALL,
        None => one.points = Points::NONE,
    };
    for one in chosen.iter_mut() {
        if set
            .disabled
            .iter()
            .any(|d| d.name == "*" || d.name == one.name)
        {
            set_to(one, false);
        }
        if let Some(enabled) = set.enabled.iter().find(|e| e.name == one.name) {
            set_to(one, true);
            let scores = point.is_none_or(|p| p == Point::Score);
            if scores && enabled.weight != 0 {
                one.weight = Some(enabled.weight);
            }
        }
    }
}

fn arguments(
    field: &str,
    chosen: &mut [Chosen],
    configs: Vec<PluginConfig>,
    mistakes: &mut Mistakes,
) {
    for (at, config) in configs.into_iter().enumerate() {
        let field = format!("{field}.pluginConfig[{at}]");
        let Some(one) = chosen.iter_mut().find(|c| c.name == config.name) else {
            let problem = format!("plugin {:?} does not exist", config.name);
            mistakes.note(field, problem);
            continue;
        };
        if one.args != Value::Null {
            mistakes.note(field, format!("Duplicate value: {:?}", one.name));
            continue;
        }
        one.args = config.args;
        if let Value::Object(args) = &mut one.args {
            let kind = args.remove("kind");
            args.remove("apiVersion");
            let expected = format!("{}Args", one.name);
            if kind.is_some_and(|k| k != expected.as_str()) {
                let problem = format!("args for plugin {} were not of type {expected}", one.name);
                mistakes.note(field, problem);
                continue;
            }
        }
        if let Err(problem) = plugins::check(one.name, &one.args) {
            mistakes.note(format!("{field}.args"), problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Result<Configuration, ConfigError> {
        Configuration::parse(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}"))
    }

    #[test]
    fn profiles_with_plugins_switched_and_weighed() {
        let config = parse(
            r#"
podInitialBackoffSeconds: 2
percentageOfNodesToScore: 30
leaderElection: {leaderElect: false}
profiles:
- schedulerName: default-scheduler
- schedulerName: packing
  percentageOfNodesToScore: 100
  plugins:
    multiPoint:
      disabled: [{name: InterPodAffinity}]
    score:
      disabled: [{name: "*"}]
      enabled: [{name: NodeResourcesFit, weight: 5}]
  pluginConfig:
  - name: NodeResourcesFit
    args:
      apiVersion: kubescheduler.config.k8s.io/v1
      kind: NodeResourcesFitArgs
      scoringStrategy: {type: MostAllocated}
"#,
        )
        .unwrap();
        assert_eq!(config.backoff.first, SignedDuration::from_secs(2));
        let [default, packing] = &config.profiles[..] else {
            panic!("{config:?}");
        };
        assert_eq!(default.plugins.len(), plugins::ALL.len());
        assert_eq!(default.percentage, Some(30));
        assert_eq!(packing.percentage, Some(100));
        let named = |name: &str| packing.plugins.iter().find(|c| c.name == name);
        assert!(named("InterPodAffinity").is_none());
        let affinity = named("NodeAffinity").unwrap();
        assert!(affinity.points.has(Point::Filter) && !affinity.points.has(Point::Score));
        assert_eq!(named("NodeResourcesFit").unwrap().weight, Some(5));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("profile: []", "profile"),
            (
                "percentageOfNodesToScore: 101",
                "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]",
            ),
            (
                "podInitialBackoffSeconds: 20",
                "podMaxBackoffSeconds: Invalid value: 10: must be greater than or equal to PodInitialBackoffSeconds",
            ),
            (
                "profiles: [{schedulerName: a}, {schedulerName: a}]",
                "profiles[1].schedulerName: Duplicate value: \"profiles[0].schedulerName\"",
            ),
            (
                "profiles: [{plugins: {filter: {enabled: [{name: Nope}]}}}]",
                "profiles[0].plugins.filter.enabled[0]: plugin \"Nope\" does not exist",
            ),
            (
                "profiles: [{plugins: {filters: {}}}]",
                "profiles[0].plugins.filters: unknown field",
            ),
            (
                "profiles: [{plugins: {bind: {disabled: [{name: '*'}]}}}]",
                "profiles[0].plugins.bind: at least one bind plugin is needed",
            ),
            (
                "profiles: [{plugins: {queueSort: {disabled: [{name: '*'}]}}}]",
                "profiles[0].plugins.queueSort: one queue sort plugin required",
            ),
            (
                "profiles: [{pluginConfig: [{name: NodeName, args: {a: 1}}]}]",
                "profiles[0].pluginConfig[0].args: it takes no arguments",
            ),
            (
                "profiles: [{pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: 101}}]}]",
                "profiles[0].pluginConfig[0].args: hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]",
            ),
            (
                "profiles: [{pluginConfig: [{name: InterPodAffinity, args: {hard: 1}}]}]",
                "hard",
            ),
            (
                "profiles: [{pluginConfig: [{name: InterPodAffinity, args: {kind: NodeAffinityArgs}}]}]",
                "profiles[0].pluginConfig[0]: args for plugin InterPodAffinity were not of type InterPodAffinityArgs",
            ),
            ("extenders: [{filterVerb: f}]", "urlPrefix"),
            (
                "percentageOfNodesToScore: -1",
                "percentageOfNodesToScore: Invalid value: -1: not in valid range [0-100]",
            ),
            (
                "podInitialBackoffSeconds: 0",
                "podInitialBackoffSeconds: Invalid value: 0: must be greater than 0",
            ),
            (
                "parallelism: 0",
                "parallelism: Invalid value: 0: should be an integer value greater than zero",
            ),
            (
                "profiles: [{schedulerName: ''}]",
                "profiles[0].schedulerName: Required value",
            ),
            (
                "profiles: [{plugins: {filter: {enabled: [{name: EBSLimits}]}}}]",
                "profiles[0].plugins.filter.enabled[0]: Invalid value: \"EBSLimits\": was invalid in version \"v1\" (KubeSchedulerConfiguration is version \"kubescheduler.config.k8s.io/v1\")",
            ),
            (
                "profiles: [{plugins: {score: {enabled: [{name: NodeAffinity}, {name: NodeAffinity}]}}}]",
                "profiles[0].plugins.score.enabled[1]: plugin \"NodeAffinity\" already registered",
            ),
            (
                "profiles: [{plugins: {score: {enabled: [{name: NodeAffinity, weight: -2}]}}}]",
                "profiles[0].plugins.score.enabled[0].weight: Invalid value: -2: must not be negative",
            ),
            (
                "profiles: [{pluginConfig: [{name: NodeAffinity}, {name: NodeAffinity, args: {}}, {name: NodeAffinity, args: {}}]}]",
                "profiles[0].pluginConfig[2]: Duplicate value: \"NodeAffinity\"",
            ),
            (
                "extenders: [{urlPrefix: 'http://a', prioritizeVerb: p}]",
                "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
            ),
            (
                "extenders: [{urlPrefix: 'http://a', managedResources: [{name: a/b}]}, {urlPrefix: 'http://b', managedResources: [{name: a/b}]}]",
                "extenders[1].managedResources[0].name: Invalid value: \"a/b\": duplicate extender managed resource name",
            ),
            (
                "extenders: [{urlPrefix: 'http://a', bindVerb: b}, {urlPrefix: 'http://b', bindVerb: b}]",
                "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let all = parse("percentageOfNodesToScore: 101\nprofiles: [{schedulerName: ''}]");
        assert_eq!(
            all.unwrap_err().to_string(),
            "[percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100], profiles[0].schedulerName: Required value]"
        );
        let other = Configuration::parse("apiVersion: v1\nkind: Pod\n").unwrap_err();
        assert!(
            other.to_string().starts_with("apiVersion: no kind \"Pod\""),
            "{other}"
        );
    }
}
