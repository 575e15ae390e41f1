//! The examples: valid ones are accepted by schema and types, invalid ones by neither.

use super::{faults, folder, validator};
use serde_json::Value;
use std::{collections::BTreeMap, fs};
use virtbus_wire::{Class, Envelope, Size, Task, control::Submission, frame};

/// Invalid examples whose fault no schema can tell, each with the reason.
const BEYOND_SCHEMAS: [(&str, &str); 11] = [
    (
        "storage.create_disk.backing-is-itself.json",
        "compares two fields",
    ),
    (
        "storage.create_snapshot.overlay-is-itself.json",
        "compares two fields",
    ),
    ("storage.convert.to-is-disk.json", "compares two fields"),
    ("storage.rebase.onto-itself.json", "compares two fields"),
    (
        "storage.adopt_disk.backing-is-itself.json",
        "compares two fields",
    ),
    (
        "storage.upload.size-above-size-max.json",
        "compares two fields",
    ),
    (
        "storage.resize.size-text-not-of-sectors.json",
        "a multiple, written as text",
    ),
    (
        "storage.finish_upload.by-a-publisher.json",
        "says who may publish, not what",
    ),
    (
        "hypervisor.create_snapshot.two-disks-one-overlay.json",
        "compares two values",
    ),
    (
        "hypervisor.start_domain.disk-twice.json",
        "the same disk may be written in two ways",
    ),
    ("core.feedback.payload-too-large.json", "a size in bytes"),
];

struct Example {
    file: String,
    class: Class,
    task: String,
    json: Value,
}

/// The examples of tasks in one folder, named `<class>.<task>[.<what>].json`.
fn tasks(kind: &str) -> Vec<Example> {
    let mut examples = Vec::new();
    for (file, json) in read(kind) {
        let mut parts = file.split('.');
        let class = parts.next().unwrap_or_default();
        let Some(class) = Class::ALL.into_iter().find(|c| c.as_str() == class) else {
            continue;
        };
        let task = parts.next().unwrap_or_default().to_owned();
        examples.push(Example {
            class,
            task,
            json,
            file: file.clone(),
        });
    }
    examples
}

/// All examples of one folder, by file name.
fn read(kind: &str) -> BTreeMap<String, Value> {
    let folder = folder().join("examples").join(kind);
    let mut examples = BTreeMap::new();
    for entry in fs::read_dir(&folder).expect("a folder of examples") {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        examples.insert(file, json);
    }
    examples
}

/// The parameters of valid examples, for other tests.
pub(super) fn valid_params() -> Vec<(Class, String, Value)> {
    let params = |example: Example| {
        let params = example.json.get("params").cloned();
        (
            example.class,
            example.task,
            params.unwrap_or_else(|| Value::Object(Default::default())),
        )
    };
    tasks("valid").into_iter().map(params).collect()
}

fn decoded(class: Class, json: &Value) -> Result<Task, virtbus_wire::JobError> {
    let envelope = Envelope::decode(json.to_string().as_bytes())?;
    envelope.check()?;
    match Task::decode(class, &envelope.task, &envelope.params) {
        // What only the system makes is still to be read from its record.
        Err(error) if envelope.task == "finish_upload" => {
            Task::restore(class, &envelope.task, &envelope.params).map_err(|_| error)
        }
        decoded => decoded,
    }
}

/// Sizes as they are written: integers of bytes.
fn normalised(value: &Value) -> Value {
    match value {
        Value::String(text) => match text.parse::<Size>() {
            Ok(size) => size.bytes().into(),
            Err(_) => value.clone(),
        },
        Value::Array(items) => items.iter().map(normalised).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), normalised(value)))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// Whether `whole` says all that `part` says; beyond it there may be defaults.
fn includes(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part.iter().all(|(name, value)| {
            value.is_null() || whole.get(name).is_some_and(|there| includes(there, value))
        }),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(w, p)| includes(w, p))
        }
        // A disk's id alone stands for a disk with nothing special.
        (Value::Object(whole), Value::String(id)) => whole.get("disk") == Some(&id.as_str().into()),
        (whole, part) => whole == part,
    }
}

#[test]
fn valid_examples_pass_the_schema_and_read_back_the_same() {
    for Example {
        file,
        class,
        task,
        json,
    } in tasks("valid")
    {
        let validator = validator(&format!("{class}.{task}.json"));
        assert_eq!(faults(&validator, &json), [""; 0], "{file}");
        let decoded = decoded(class, &json).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(decoded.name(), task, "{file}");
        let written = decoded.params();
        let wanted = normalised(json.get("params").unwrap_or(&Value::Null));
        assert!(
            wanted.is_null() || includes(&written, &wanted),
            "{file}: {written}"
        );
        let again = Task::restore(class, &task, &written).unwrap();
        assert_eq!((again.params(), &again), (written, &decoded), "{file}");
    }
}

#[test]
fn invalid_examples_fail_both_the_types_and_the_schema() {
    let beyond: BTreeMap<_, _> = BEYOND_SCHEMAS.into_iter().collect();
    let mut unseen: Vec<&str> = beyond.keys().copied().collect();
    for Example {
        file,
        class,
        task,
        json,
    } in tasks("invalid")
    {
        let envelope = Envelope::decode(json.to_string().as_bytes());
        let decoded =
            envelope.and_then(|job| Task::decode(class, &job.task, &job.params).map(|_| ()));
        let error = decoded.expect_err(&file);
        let named = ["field", "task"]
            .iter()
            .any(|key| error.detail.contains_key(*key));
        assert!(named, "{file}: {error}");
        let accepts = faults(&validator(&format!("{class}.{task}.json")), &json).is_empty();
        assert_eq!(
            accepts,
            beyond.contains_key(file.as_str()),
            "{file}: {error}"
        );
        unseen.retain(|name| *name != file);
    }
    assert_eq!(unseen, [""; 0], "examples that are not there");
}

#[test]
fn every_task_has_examples() {
    let (valid, invalid) = (tasks("valid"), tasks("invalid"));
    for class in Class::ALL {
        for name in Task::names(class) {
            let of = |examples: &[Example]| {
                examples
                    .iter()
                    .filter(|e| e.class == class && e.task == *name)
                    .count()
            };
            assert!(of(&valid) >= 1, "{class} {name} has no valid example");
            assert!(
                of(&invalid) >= 2,
                "{class} {name} has fewer than two invalid examples"
            );
        }
    }
}

#[test]
fn envelopes_submissions_and_frames_have_examples_too() {
    let job = validator("job.json");
    let submit = validator("control.json#/$defs/jobs.submit.request");
    let (client, server) = (
        validator("frames.json#/$defs/client"),
        validator("frames.json#/$defs/server"),
    );
    for (kind, right) in [("valid", true), ("invalid", false)] {
        for (file, json) in read(kind) {
            let text = json.to_string();
            let (types, schema) = match file.split('.').next().unwrap_or_default() {
                "job" => {
                    let read = Envelope::decode(text.as_bytes()).and_then(|job| job.check());
                    (read.is_ok(), faults(&job, &json))
                }
                "submit" => {
                    let read = Submission::decode(text.as_bytes());
                    (read.is_ok(), faults(&submit, &json))
                }
                "client" => (frame::decode_client(&text).is_ok(), faults(&client, &json)),
                "server" => {
                    let read = frame::decode_server(&text);
                    (
                        read.is_ok_and(|frame| frame.is_some()),
                        faults(&server, &json),
                    )
                }
                _ => continue,
            };
            assert_eq!(types, right, "{file}: types");
            assert_eq!(schema.is_empty(), right, "{file}: schema: {schema:?}");
        }
    }
}
