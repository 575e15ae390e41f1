//! The rules between fields, as JSON Schema says them. Each has its twin in a `check`.
//!
//! `null` stands for a field left out, so a field is there when its value isn't null.

use super::value::ClusterSize;
use schemars::Schema;
use serde_json::{Value, json};

/// That the field is there and not null.
fn present(field: &str) -> Value {
    json!({ "required": [field], "properties": { field: { "not": { "type": "null" } } } })
}

/// That the field is there and has one of these values.
fn is_any(field: &str, values: &[&str]) -> Value {
    json!({ "required": [field], "properties": { field: { "enum": values } } })
}

/// That the field is left out, or has one of these values.
fn may_be(field: &str, values: &[&str]) -> Value {
    json!({ "properties": { field: { "enum": values } } })
}

fn not(rule: Value) -> Value {
    json!({ "not": rule })
}

fn any(rules: &[Value]) -> Value {
    json!({ "anyOf": rules })
}

/// Adds rules that must all hold.
fn add(schema: &mut Schema, rules: impl IntoIterator<Item = Value>) {
    let all = schema
        .ensure_object()
        .entry("allOf")
        .or_insert_with(|| json!([]));
    if let Some(all) = all.as_array_mut() {
        all.extend(rules);
    }
}

fn exactly_one(fields: &[&str]) -> Value {
    let each: Vec<Value> = fields.iter().map(|field| present(field)).collect();
    json!({ "oneOf": each })
}

fn not_both(one: &str, other: &str) -> Value {
    any(&[not(present(one)), not(present(other))])
}

/// That options of one format are given with that format alone.
fn options_of_format() -> [Value; 4] {
    [
        any(&[not(present("qcow2")), is_any("format", &["qcow2"])]),
        any(&[not(present("subformat")), is_any("format", &["vmdk"])]),
        any(&[
            may_be("compress", &["none", "zstd"]),
            is_any("format", &["qcow2", "vmdk"]),
        ]),
        any(&[
            may_be("compress", &["none", "zlib"]),
            is_any("format", &["qcow2"]),
        ]),
    ]
}

pub(super) fn qcow2(schema: &mut Schema) {
    let asked =
        |option: &str| json!({ "required": [option], "properties": { option: { "const": true } } });
    let large = ClusterSize::schema_from(ClusterSize::EXTENDED_L2_MIN);
    let or_null = json!({ "anyOf": [{ "type": "null" }, large] });
    let old = is_any("compat", &["0.10"]);
    add(
        schema,
        [
            any(&[
                not(asked("extended_l2")),
                json!({ "properties": { "cluster_size": or_null } }),
            ]),
            any(&[not(asked("extended_l2")), not(old.clone())]),
            any(&[not(asked("lazy_refcounts")), not(old)]),
        ],
    );
}

pub(super) fn create_disk(schema: &mut Schema) {
    add(
        schema,
        [
            any(&[present("size"), present("backing")]),
            // The format is qcow2 when it's left out.
            any(&[not(present("qcow2")), may_be("format", &["qcow2"])]),
            any(&[not(present("backing")), may_be("format", &["qcow2"])]),
            any(&[
                may_be("preallocation", &["off", "falloc", "full"]),
                may_be("format", &["qcow2"]),
            ]),
            any(&[not(present("backing")), may_be("preallocation", &["off"])]),
        ],
    );
}

pub(super) fn convert(schema: &mut Schema) {
    let old = json!({ "required": ["qcow2"],
        "properties": { "qcow2": { "type": "object", "required": ["compat"],
            "properties": { "compat": { "const": "0.10" } } } } });
    add(schema, options_of_format());
    add(
        schema,
        [any(&[not(old), may_be("compress", &["none", "zlib"])])],
    );
}

pub(super) fn disk_snapshot(schema: &mut Schema) {
    add(schema, [exactly_one(&["snapshot", "overlay", "base"])]);
}

pub(super) fn domain_snapshot(schema: &mut Schema) {
    let quiesced =
        json!({ "required": ["quiesce"], "properties": { "quiesce": { "const": true } } });
    add(
        schema,
        [
            exactly_one(&["snapshot", "overlays"]),
            any(&[not(quiesced), present("overlays")]),
        ],
    );
}

pub(super) fn rebase(schema: &mut Schema) {
    let object = schema.ensure_object();
    object.insert("required".into(), json!(["disk", "backing"]));
}

pub(super) fn upload(schema: &mut Schema) {
    let disk_formats = ["qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc"];
    add(
        schema,
        [
            exactly_one(&["disk", "media"]),
            any(&[not(present("disk")), is_any("format", &disk_formats)]),
            any(&[not(present("media")), is_any("format", &["iso", "raw"])]),
            not_both("media", "convert_to"),
        ],
    );
}

pub(super) fn download(schema: &mut Schema) {
    let no_iso = json!({ "properties": { "format": { "not": { "const": "iso" } } } });
    let of_media = json!({ "properties": { "format": { "enum": ["iso", "raw", null] } } });
    add(
        schema,
        [
            exactly_one(&["disk", "media"]),
            any(&[not(present("disk")), no_iso]),
            any(&[not(present("media")), of_media]),
            any(&[not(present("media")), may_be("compress", &["none"])]),
        ],
    );
    add(schema, options_of_format().into_iter().skip(1));
}

pub(super) fn definition(schema: &mut Schema) {
    add(schema, [not_both("xml", "template")]);
}

pub(super) fn network(schema: &mut Schema) {
    add(schema, [exactly_one(&["network", "bridge"])]);
}

pub(super) fn template(schema: &mut Schema) {
    let secure =
        json!({ "required": ["secure_boot"], "properties": { "secure_boot": { "const": true } } });
    add(schema, [any(&[not(secure), is_any("firmware", &["efi"])])]);
}

pub(super) fn adopt_disk(schema: &mut Schema) {
    add(
        schema,
        [any(&[
            not(present("backing")),
            is_any("format", &["qcow2"]),
        ])],
    );
}
