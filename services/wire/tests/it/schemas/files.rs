//! What the files must hold.

use super::{ALL, folder};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fs};
use virtbus_wire::{
    Class, Envelope, JobError, Record, Task, auth, catalog, control,
    control::Operation,
    frame::{ClientFrame, ProgressItem, ServerFrame},
    task::hypervisor::DomainState,
};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Every file, by its name.
pub(super) fn all() -> BTreeMap<String, Value> {
    let mut files = BTreeMap::new();
    for class in Class::ALL {
        for name in Task::names(class) {
            files.insert(format!("{class}.{name}.json"), of_task(class, name));
        }
    }
    let mut add = |name: &str, schema| files.insert(name.to_owned(), schema);
    add("job.json", read::<Envelope>());
    add("record.json", written::<Record>());
    add("progress.json", written::<ProgressItem>());
    add("token.json", read::<auth::Claims>());
    add("frames.json", frames());
    add("control.json", control());
    add("disk.json", written::<catalog::DiskRecord>());
    add("media.json", written::<catalog::MediaRecord>());
    add("domain.json", written::<catalog::DomainRecord>());
    add("pool.json", written::<catalog::PoolRecord>());
    add("hypervisor.json", written::<catalog::HypervisorRecord>());
    add("worker.json", written::<catalog::WorkerRecord>());
    add("queue.json", written::<catalog::QueueRecord>());
    add("transfer.json", written::<catalog::TransferRecord>());
    files
}

/// A schema of what is read: what may be left out isn't required.
fn reader() -> SchemaGenerator {
    SchemaSettings::draft2020_12().into_generator()
}

/// A schema of what is written: all that is always written is required.
fn writer() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
}

fn read<T: JsonSchema>() -> Value {
    reader().into_root_schema_for::<T>().to_value()
}

fn written<T: JsonSchema>() -> Value {
    writer().into_root_schema_for::<T>().to_value()
}

/// A message with one task; its parameters and its result as definitions of their own.
fn of_task(class: Class, name: &str) -> Value {
    let (mut reader, mut writer) = (reader(), writer());
    let schemas = Task::schemas(class, name, &mut reader, &mut writer);
    let (params, result) = schemas.expect("a task of this class");
    let description = params.get("description").cloned().unwrap_or_default();
    let mut defs = merged(reader.take_definitions(true), writer.take_definitions(true));
    defs.insert("params".to_owned(), params.to_value());
    defs.insert("result".to_owned(), result.to_value());
    let mut required = vec!["task"];
    if Task::restore(class, name, &json!({})).is_err() {
        required.push("params");
    }
    json!({
        "$schema": DIALECT,
        "title": format!("{class}: {name}"),
        "description": description,
        "allOf": [{ "$ref": "job.json" }],
        "type": "object",
        "properties": { "task": { "const": name }, "params": { "$ref": "#/$defs/params" } },
        "required": required,
        "$defs": defs,
    })
}

/// The definitions of both; what both have must be the same.
fn merged(mut one: Map<String, Value>, other: Map<String, Value>) -> Map<String, Value> {
    for (name, schema) in other {
        if let Some(there) = one.insert(name.clone(), schema.clone()) {
            assert_eq!(there, schema, "{name} is read and written differently");
        }
    }
    one
}

fn frames() -> Value {
    let (mut reader, mut writer) = (reader(), writer());
    let client = ClientFrame::json_schema(&mut reader).to_value();
    let server = ServerFrame::json_schema(&mut writer).to_value();
    let mut defs = Map::new();
    // What a client sends and what a server sends share names of types, read or written.
    defs.extend(renamed("client", &client, reader.take_definitions(true)));
    defs.extend(renamed("server", &server, writer.take_definitions(true)));
    json!({
        "$schema": DIALECT,
        "title": "Frames of jobs.v1",
        "description": "What a client and a server send over the websocket.",
        "oneOf": [{ "$ref": "#/$defs/client" }, { "$ref": "#/$defs/server" }],
        "$defs": defs,
    })
}

/// A schema whose references to definitions have a prefix before their names.
fn pointed(prefix: &str, schema: &Value) -> Value {
    let text = schema.to_string();
    let text = text.replace("\"#/$defs/", &format!("\"#/$defs/{prefix}."));
    serde_json::from_str(&text).expect("still JSON")
}

/// The definitions with a prefix before their names, and `schema` as the prefix itself.
fn renamed(prefix: &str, schema: &Value, defs: Map<String, Value>) -> Map<String, Value> {
    let mut all = Map::from_iter([(prefix.to_owned(), pointed(prefix, schema))]);
    all.extend(prefixed(prefix, defs));
    all
}

fn prefixed(prefix: &str, defs: Map<String, Value>) -> Map<String, Value> {
    let named = |(name, schema)| (format!("{prefix}.{name}"), pointed(prefix, &schema));
    defs.into_iter().map(named).collect()
}

/// Requests and answers by subject; types they share are there once as read, once as written.
fn control() -> Value {
    let (mut reader, mut writer) = (reader(), writer());
    let mut defs = Map::new();
    for operation in Operation::ALL {
        let subject = operation.subject().trim_start_matches("virtbus.");
        let request = request(*operation, &mut reader).to_value();
        let answer = answer(*operation, &mut writer).to_value();
        defs.insert(format!("{subject}.request"), pointed("read", &request));
        defs.insert(format!("{subject}.answer"), pointed("written", &answer));
    }
    let refusal = control::Refusal::json_schema(&mut writer).to_value();
    defs.insert("refusal".to_owned(), pointed("written", &refusal));
    defs.extend(prefixed("read", reader.take_definitions(true)));
    defs.extend(prefixed("written", writer.take_definitions(true)));
    json!({
        "$schema": DIALECT,
        "title": "Requests and answers of the service virtbus",
        "description": "By subject, in the definitions; refusal is the body of an error.",
        "$defs": defs,
    })
}

fn subschema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

fn request(operation: Operation, reader: &mut SchemaGenerator) -> Schema {
    use Operation as Op;
    match operation {
        Op::JobsSubmit => subschema::<control::Submission>(reader),
        Op::JobsGet | Op::JobsRetry | Op::JobsExplain => subschema::<control::OfJob>(reader),
        Op::JobsWait => subschema::<control::Wait>(reader),
        Op::JobsList => subschema::<control::ListJobs>(reader),
        Op::JobsCancel => subschema::<control::Cancel>(reader),
        Op::JobsPriority => subschema::<control::ChangePriority>(reader),
        Op::QueuesPause | Op::QueuesResume | Op::QueuesPurge => {
            subschema::<control::OnQueue>(reader)
        }
        Op::PoolsRegister => subschema::<catalog::PoolRecord>(reader),
        Op::PoolsDeregister | Op::PoolsGet => subschema::<control::PoolName>(reader),
        Op::PoolsLookup => subschema::<control::LookUp>(reader),
        Op::DisksGet => subschema::<control::ById<virtbus_wire::DiskId>>(reader),
        Op::MediaGet => subschema::<control::ById<virtbus_wire::MediaId>>(reader),
        Op::DomainsGet => subschema::<control::ById<virtbus_wire::DomainId>>(reader),
        Op::DisksList | Op::MediaList => subschema::<control::ListOf<catalog::DiskState>>(reader),
        Op::DomainsList => subschema::<control::ListOf<DomainState>>(reader),
        Op::HypervisorsDrain | Op::HypervisorsUndrain => {
            subschema::<control::HypervisorName>(reader)
        }
        Op::HypervisorsFence => subschema::<control::Fence>(reader),
        Op::WorkersDrain | Op::WorkersUndrain => subschema::<control::WorkerName>(reader),
        Op::QueuesList | Op::PoolsList | Op::HypervisorsList | Op::WorkersList => {
            subschema::<control::Nothing>(reader)
        }
    }
}

fn answer(operation: Operation, writer: &mut SchemaGenerator) -> Schema {
    use Operation as Op;
    match operation {
        Op::JobsSubmit => subschema::<control::SubmitAnswer>(writer),
        Op::JobsGet | Op::JobsWait => subschema::<Record>(writer),
        Op::JobsList => subschema::<control::JobList>(writer),
        Op::JobsCancel => subschema::<control::Cancelled>(writer),
        Op::JobsPriority => subschema::<control::PriorityAnswer>(writer),
        Op::JobsRetry => subschema::<control::RetryAnswer>(writer),
        Op::JobsExplain => subschema::<control::Explained>(writer),
        Op::QueuesList => subschema::<control::QueueList>(writer),
        Op::QueuesPause | Op::QueuesResume => subschema::<control::Paused>(writer),
        Op::QueuesPurge => subschema::<control::Purged>(writer),
        Op::PoolsRegister | Op::PoolsGet => subschema::<catalog::PoolRecord>(writer),
        Op::PoolsDeregister => subschema::<control::Nothing>(writer),
        Op::PoolsList => subschema::<control::PoolList>(writer),
        Op::PoolsLookup => subschema::<control::Location>(writer),
        Op::DisksGet => subschema::<control::DiskRow>(writer),
        Op::DisksList => subschema::<control::DiskList>(writer),
        Op::MediaGet => subschema::<control::MediaRow>(writer),
        Op::MediaList => subschema::<control::MediaList>(writer),
        Op::DomainsGet => subschema::<control::DomainRow>(writer),
        Op::DomainsList => subschema::<control::DomainList>(writer),
        Op::HypervisorsList => subschema::<control::HypervisorList>(writer),
        Op::HypervisorsDrain | Op::HypervisorsUndrain => {
            subschema::<control::HypervisorRow>(writer)
        }
        Op::HypervisorsFence => subschema::<control::FenceOutcome>(writer),
        Op::WorkersList => subschema::<control::WorkerList>(writer),
        Op::WorkersDrain | Op::WorkersUndrain => subschema::<control::Drained>(writer),
    }
}

/// Rewritten with `VIRTBUS_UPDATE=1 cargo test -p virtbus-wire`. Compared as JSON: the order of
/// keys depends on what else is built.
#[test]
fn the_files_follow_from_the_types() {
    let update = std::env::var_os("VIRTBUS_UPDATE").is_some();
    for (name, schema) in &*ALL {
        let path = folder().join(name);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let same = serde_json::from_str::<Value>(&text).is_ok_and(|there| there == *schema);
        if !same && update {
            fs::write(path, format!("{schema:#}\n")).unwrap();
        }
        assert!(
            same || update,
            "schemas/{name} differs: VIRTBUS_UPDATE=1 rewrites it"
        );
    }
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = ALL.contains_key(&name) || !name.ends_with(".json");
        assert!(known, "schemas/{name} belongs to no type");
    }
}

/// The document refers to the files; here is seen that it forgets none.
#[test]
fn the_asyncapi_document_has_every_task_and_subject() {
    let text = fs::read_to_string(folder().join("asyncapi.yaml")).unwrap();
    let has = |part: &str| assert!(text.contains(part), "asyncapi.yaml lacks {part}");
    for class in Class::ALL {
        for name in Task::names(class)
            .iter()
            .filter(|name| **name != "finish_upload")
        {
            has(&format!("$ref: '#/components/messages/{class}.{name}'"));
            has(&format!("$ref: './{class}.{name}.json'"));
        }
    }
    for operation in Operation::ALL {
        let subject = operation.subject().trim_start_matches("virtbus.");
        has(&format!("address: {operation}\n"));
        for part in ["request", "answer"] {
            has(&format!("$ref: './control.json#/$defs/{subject}.{part}'"));
        }
    }
    for file in ["job", "record", "progress", "frames"] {
        has(&format!("$ref: './{file}.json"));
    }
}

/// Readers of AsyncAPI know draft-07; beyond it only `$defs` is used.
#[test]
fn no_keyword_is_newer_than_the_readers_know() {
    const NEWER: [&str; 6] = [
        "unevaluatedProperties",
        "unevaluatedItems",
        "prefixItems",
        "dependentSchemas",
        "dependentRequired",
        "$dynamicRef",
    ];
    for (name, schema) in &*ALL {
        let text = schema.to_string();
        for keyword in NEWER {
            assert!(
                !text.contains(&format!("\"{keyword}\":")),
                "{name}: {keyword}"
            );
        }
    }
}

#[test]
fn every_file_is_a_schema() {
    for name in ALL.keys() {
        super::validator(name);
    }
    let refusal = super::validator("control.json#/$defs/refusal");
    let body = json!({ "error": JobError::internal("x") });
    assert_eq!(super::faults(&refusal, &body), [""; 0]);
}
