//! The files in `schemas/`: they follow from the types, and say the same as the types.

mod examples;
mod files;
mod mutations;
mod records;

use jsonschema::{Retrieve, Uri, Validator};
use serde_json::Value;
use std::{collections::BTreeMap, error::Error, path::PathBuf, sync::LazyLock};

/// Where a schema is, as seen from another: `$ref` names the file alone.
const BASE: &str = "file:///schemas/";

/// Asked at run time, so that a `target` folder copied from another checkout reads this one's.
fn folder() -> PathBuf {
    let member = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo");
    PathBuf::from(member).join("../../schemas")
}

static ALL: LazyLock<BTreeMap<String, Value>> = LazyLock::new(files::all);

struct Files;

impl Retrieve for Files {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn Error + Send + Sync>> {
        let name = uri.as_str().strip_prefix(BASE).unwrap_or_default();
        ALL.get(name)
            .cloned()
            .ok_or_else(|| format!("no schema {name}").into())
    }
}

/// The validator of one file, or of a definition in it (`control.json#/$defs/x`).
fn validator(file: &str) -> Validator {
    let root = serde_json::json!({ "$ref": format!("{BASE}{file}") });
    jsonschema::options()
        .with_base_uri(format!("{BASE}root.json"))
        .with_retriever(Files)
        .should_validate_formats(true)
        .build(&root)
        .unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// What a schema has against a value.
fn faults(validator: &Validator, value: &Value) -> Vec<String> {
    let fault =
        |error: jsonschema::ValidationError<'_>| format!("{}: {error}", error.instance_path());
    validator.iter_errors(value).map(fault).collect()
}
