//! Configuration: defaults, then a TOML file, then the environment; read once and checked whole.
//!
//! An unknown key is an error, and every problem that can be told at once is, each with the path
//! of its field and the layer it came from.

use crate::{
    common::{self, Common},
    mask,
};
use config::{Config, Environment, File, FileFormat, Map, Source, Value, ValueKind};
use serde::{Serialize, de::DeserializeOwned};
use serde_path_to_error::{Path as FieldPath, Segment};
use std::{collections::BTreeSet, fmt, path::Path};

/// `VIRTBUS__NATS__URL` sets `nats.url`.
const PREFIX: &str = "VIRTBUS";
const SEPARATOR: &str = "__";
/// After so many problems the rest isn't looked for.
const PROBLEMS_MAX: usize = 50;

/// The settings of one service, beside those all have.
pub trait Settings: Serialize + DeserializeOwned {
    /// What can't be used although its form is right: limits that contradict each other, two
    /// pools in one folder. Nothing outside is touched.
    fn check(&self, common: &Common) -> Vec<Problem> {
        let _ = common;
        Vec::new()
    }
}

/// All settings of a service.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    /// What all services are told.
    pub common: Common,
    /// What only this one is.
    pub own: T,
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The path of the field, such as `pools.default.root`.
    pub field: String,
    /// What is wrong.
    pub reason: String,
    /// The file, or "the environment"; none for a default or when it can't be told.
    pub origin: Option<String>,
}

impl Problem {
    /// Something wrong with a field.
    #[must_use]
    pub fn new(field: impl Into<String>, reason: impl ToString) -> Self {
        Self {
            field: field.into(),
            reason: reason.to_string(),
            origin: None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)?;
        match &self.origin {
            Some(origin) => write!(f, " (from {origin})"),
            None => Ok(()),
        }
    }
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read or isn't TOML, or a variable can't be a key.
    #[error("{0}")]
    Unreadable(String),
    /// Fields are wrong, all of those that could be told at once.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

/// Reads and checks a service's configuration from a file, if there is one, and these variables.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load<T: Settings>(
    path: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded<T>, ConfigError> {
    let mut own = collect(path, env)?;
    let mut shared = Map::new();
    for key in common::KEYS {
        if let Some(value) = own.remove(key) {
            shared.insert(key.to_owned(), value);
        }
    }
    let mut problems = Vec::new();
    let common: Option<Common> = read(shared.clone(), &mut problems);
    let service: Option<T> = read(own.clone(), &mut problems);
    if let (Some(common), Some(service)) = (common, service) {
        let found = common.check().into_iter().chain(service.check(&common));
        problems.extend(found.map(|problem| Problem {
            origin: origin_of(&shared, &problem.field).or(origin_of(&own, &problem.field)),
            ..problem
        }));
        if problems.is_empty() {
            let own = service;
            return Ok(Loaded { common, own });
        }
    }
    Err(ConfigError::Invalid(problems))
}

/// The settings in force as TOML, without what must not be seen.
///
/// # Errors
/// When a setting has no form in TOML.
pub fn show<T: Settings>(loaded: &Loaded<T>) -> Result<String, ConfigError> {
    let unprintable = |error: &dyn fmt::Display| ConfigError::Unreadable(error.to_string());
    let mut tree = serde_json::to_value(&loaded.common).map_err(|error| unprintable(&error))?;
    let own = serde_json::to_value(&loaded.own).map_err(|error| unprintable(&error))?;
    if let (Some(tree), serde_json::Value::Object(own)) = (tree.as_object_mut(), own) {
        tree.extend(own);
    }
    mask::mask(&mut tree);
    toml::to_string_pretty(&tree).map_err(|error| unprintable(&error))
}

fn collect(
    path: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Map<String, Value>, ConfigError> {
    let environment = Environment::with_prefix(PREFIX)
        .prefix_separator(SEPARATOR)
        .separator(SEPARATOR)
        .ignore_empty(true)
        .source(Some(env.into_iter().collect()));
    let mut layers = Config::builder();
    if let Some(path) = path {
        let unreadable =
            |error| ConfigError::Unreadable(format!("can't read {}: {error}", path.display()));
        // Read here: the library's own message doesn't say what the system said.
        std::fs::File::open(path).map_err(unreadable)?;
        layers = layers.add_source(File::from(path).format(FileFormat::Toml));
    }
    let merged = layers.add_source(environment).build();
    merged
        .and_then(|merged| merged.collect())
        .map_err(|error| ConfigError::Unreadable(error.to_string()))
}

/// Reads a table, and on a problem again without the field in question, to find the next one.
fn read<T: DeserializeOwned>(
    mut table: Map<String, Value>,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let mut removed = BTreeSet::new();
    let mut is_whole = true;
    while problems.len() < PROBLEMS_MAX {
        let tree = Value::new(None, ValueKind::Table(table.clone()));
        let error = match serde_path_to_error::deserialize(tree) {
            Ok(value) => return is_whole.then_some(value),
            Err(error) => error,
        };
        is_whole = false;
        let path = keys(error.path());
        let (field, reason) = explain(path.join("."), error.into_inner());
        // A field that was taken out because it's wrong isn't missing.
        if !removed.contains(&field) {
            problems.push(Problem {
                origin: origin_of(&table, &field),
                field,
                reason,
            });
        }
        if !remove(&mut table, &path) {
            break;
        }
        removed.insert(path.join("."));
    }
    None
}

fn explain(path: String, error: config::ConfigError) -> (String, String) {
    if let config::ConfigError::At { error, .. } = error {
        return explain(path, *error);
    }
    if let config::ConfigError::Type {
        unexpected,
        expected,
        ..
    } = &error
    {
        return (path, format!("{unexpected} is not {expected}"));
    }
    if let config::ConfigError::NotFound(field) = &error {
        let name = field.rsplit('.').next().unwrap_or(field);
        let whole = match path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        return (whole, "is missing".to_owned());
    }
    (path, error.to_string())
}

/// The keys that lead to a field. A list counts as one field.
fn keys(path: &FieldPath) -> Vec<String> {
    let mut keys = Vec::new();
    for segment in path {
        match segment {
            Segment::Map { key } => keys.push(key.clone()),
            Segment::Seq { .. } => break,
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    keys
}

fn remove(table: &mut Map<String, Value>, path: &[String]) -> bool {
    match path {
        [] => false,
        [last] => table.remove(last).is_some(),
        [first, rest @ ..] => match table.get_mut(first).map(|value| &mut value.kind) {
            Some(ValueKind::Table(inner)) => remove(inner, rest),
            _ => false,
        },
    }
}

fn origin_of(table: &Map<String, Value>, field: &str) -> Option<String> {
    let (first, rest) = field
        .split_once('.')
        .map_or((field, None), |(first, rest)| (first, Some(rest)));
    let value = table.get(first)?;
    match (&value.kind, rest) {
        (ValueKind::Table(inner), Some(rest)) => origin_of(inner, rest),
        _ => value.origin().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::{collections::BTreeMap, io::Write as _};
    use tempfile::NamedTempFile;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Own {
        slots: u16,
        api_token: Option<String>,
        pools: BTreeMap<String, Pool>,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pool {
        root: String,
        #[serde(default)]
        flush: bool,
    }

    impl Settings for Own {
        fn check(&self, _: &Common) -> Vec<Problem> {
            let none = (self.slots > 100).then(|| Problem::new("slots", "is more than 100"));
            none.into_iter().collect()
        }
    }

    fn file(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::with_suffix(".toml").unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn problems(text: &str, pairs: &[(&str, &str)]) -> Vec<Problem> {
        match load::<Own>(Some(file(text).path()), env(pairs)) {
            Err(ConfigError::Invalid(problems)) => problems,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_environment_goes_before_the_file_and_the_file_before_defaults() {
        let file = file("slots = 3\n[nats]\nurl = 'nats://a:1'\n[pools.p]\nroot = '/r'\n");
        let env = env(&[
            ("VIRTBUS__NATS__URL", "nats://b:2"),
            ("VIRTBUS__POOLS__P__FLUSH", "true"),
            ("VIRTBUS__HTTP__LISTEN", ""),
            ("OTHER", "x"),
        ]);
        let loaded = load::<Own>(Some(file.path()), env).unwrap();
        assert_eq!(loaded.common.nats.url, "nats://b:2");
        assert_eq!(loaded.common.http.listen, "127.0.0.1:0".parse().unwrap());
        assert_eq!(loaded.own.slots, 3);
        assert!(loaded.own.pools["p"].flush);
    }

    #[test]
    fn all_problems_are_told_at_once_each_with_its_field_and_layer() {
        let found = problems(
            "slots = 'many'\nslotz = 1\n[http]\nlisten = 'here'\n[pools.p]\nflush = true\n",
            &[("VIRTBUS__LOG__FORMAT", "loud")],
        );
        let fields: BTreeSet<&str> = found.iter().map(|p| p.field.as_str()).collect();
        let expected = [
            "http.listen",
            "log.format",
            "pools.p.root",
            "slots",
            "slotz",
        ];
        assert_eq!(fields, BTreeSet::from(expected), "{found:#?}");
        let of = |field: &str| found.iter().find(|p| p.field == field).unwrap();
        let layer = of("log.format").origin.as_deref();
        assert_eq!(layer, Some("the environment"));
        assert!(
            of("http.listen")
                .origin
                .as_deref()
                .unwrap()
                .ends_with(".toml")
        );
        assert_eq!(of("pools.p.root").reason, "is missing");
    }

    #[test]
    fn what_contradicts_the_services_own_rules_is_a_problem_too() {
        let found = problems("slots = 101\n[log]\nfilter = 'a=b=c'\n", &[]);
        let fields: Vec<&str> = found.iter().map(|p| p.field.as_str()).collect();
        assert_eq!(fields, ["log.filter", "slots"]);
        assert!(found.iter().all(|p| p.origin.is_some()), "{found:#?}");
    }

    #[test]
    fn a_file_that_is_absent_or_not_toml_is_said_so() {
        let absent = load::<Own>(Some(Path::new("/nowhere.toml")), []).unwrap_err();
        assert!(absent.to_string().contains("No such file"), "{absent}");
        let broken = load::<Own>(Some(file("slots = ").path()), []).unwrap_err();
        assert!(matches!(broken, ConfigError::Unreadable(_)), "{broken}");
    }

    #[test]
    fn what_is_shown_can_be_loaded_and_has_no_secrets() {
        let env = env(&[
            ("VIRTBUS__API_TOKEN", "s3cret"),
            ("VIRTBUS__NATS__URL", "nats://u:s3cret@h:1,nats://v"),
            ("VIRTBUS__NATS__PASSWORD_FILE", "/etc/pass"),
        ]);
        let shown = show(&load::<Own>(None, env).unwrap()).unwrap();
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("nats://********@h:1,nats://v"), "{shown}");
        assert!(shown.contains("/etc/pass"), "{shown}");
        load::<Own>(Some(file(&shown).path()), []).unwrap();
    }
}
