//! `schemas/asyncapi.yaml` against the official parser, without a network.

use crate::root;
use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn validate(document: &Path) -> Output {
    let modules = env::var_os("VIRTBUS_NODE_MODULES")
        .map_or_else(|| root().join(".dev/asyncapi/node_modules"), PathBuf::from);
    assert!(
        modules.is_dir(),
        "the parser isn't installed: run ./dev setup"
    );
    Command::new("node")
        .arg(root().join("tests/asyncapi/validate.cjs"))
        .arg(document)
        .env("NODE_PATH", modules)
        .output()
        .expect("node")
}

#[test]
fn the_asyncapi_document_is_valid() {
    let output = validate(&root().join("schemas/asyncapi.yaml"));
    let findings = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && findings.is_empty(), "{findings}");
}

#[test]
fn a_reference_to_nothing_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let document = folder.path().join("asyncapi.yaml");
    let text = "asyncapi: 3.1.0\n\
        info: { title: t, version: 0.0.0 }\n\
        channels:\n  a:\n    address: a\n    messages:\n      m: { payload: { $ref: './no.json' } }\n";
    std::fs::write(&document, text).unwrap();
    let output = validate(&document);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
