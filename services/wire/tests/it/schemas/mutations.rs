//! Parameters changed at random: types and schema agree on each.

use super::{examples, faults, validator};
use jsonschema::Validator;
use proptest::{prelude::*, sample::Index};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::LazyLock};
use virtbus_wire::{Class, Task};

/// Refusals whose reason no schema can tell.
const BEYOND_SCHEMAS: [&str; 7] = [
    "must be another disk",
    "is above size_max",
    "must be a multiple of 512 bytes",
    "names a disk twice",
    "each disk needs a new disk of its own",
    "a new disk can't be one of the disks",
    "is not a size",
];

static VALIDATORS: LazyLock<BTreeMap<(Class, &'static str), Validator>> = LazyLock::new(|| {
    let names = Class::ALL
        .into_iter()
        .flat_map(|class| Task::names(class).iter().map(move |n| (class, *n)));
    let of = |(class, name)| {
        (
            (class, name),
            validator(&format!("{class}.{name}.json#/$defs/params")),
        )
    };
    names.map(of).collect()
});

static EXAMPLES: LazyLock<Vec<(Class, String, Value)>> = LazyLock::new(examples::valid_params);

/// Every field of every example, and every value of such a field.
static FIELDS: LazyLock<Vec<(String, Value)>> = LazyLock::new(|| {
    let mut fields = Vec::new();
    for (_, _, params) in EXAMPLES.iter() {
        collect(params, &mut fields);
    }
    fields
});

fn collect(value: &Value, fields: &mut Vec<(String, Value)>) {
    if let Some(object) = value.as_object() {
        for (name, value) in object {
            fields.push((name.clone(), value.clone()));
            collect(value, fields);
        }
    }
}

fn odd_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(1),
        json!(511),
        json!(512),
        json!(65536),
        json!(1u64 << 53),
        json!(""),
        json!("-1"),
        json!("1G "),
        json!("10GiB"),
        json!("64KiB"),
        json!("1B"),
        json!("d1"),
        json!("../x"),
        json!("-x"),
        json!("a\nb"),
        json!("x".repeat(300)),
        json!("qcow2"),
        json!("raw"),
        json!("vmdk"),
        json!("iso"),
        json!("zlib"),
        json!("zstd"),
        json!("0.10"),
        json!("metadata"),
        json!("efi"),
        json!([]),
        json!({}),
        json!(["d1", "d1"]),
    ]
}

/// One change of an object: a field is set, taken away or added.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, Index),
    SetOdd(Index, Index),
    Remove(Index),
    Add(Index),
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<Index>(), any::<Index>()).prop_map(|(at, with)| Change::Set(at, with)),
        (any::<Index>(), any::<Index>()).prop_map(|(at, with)| Change::SetOdd(at, with)),
        any::<Index>().prop_map(Change::Remove),
        any::<Index>().prop_map(Change::Add),
    ]
}

/// The places of all objects within a value, as JSON pointers.
fn objects(value: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(object) = value.as_object() {
        found.push(at.to_owned());
        for (name, value) in object {
            objects(value, &format!("{at}/{name}"), found);
        }
    }
    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
        objects(value, &format!("{at}/{index}"), found);
    }
}

fn apply(change: &Change, object: &mut Map<String, Value>) {
    let names: Vec<String> = object.keys().cloned().collect();
    let named = |at: &Index| (!names.is_empty()).then(|| at.get(&names).clone());
    match change {
        Change::Set(at, with) => {
            if let Some(name) = named(at) {
                let same: Vec<&Value> = FIELDS
                    .iter()
                    .filter(|(n, _)| *n == name)
                    .map(|(_, value)| value)
                    .collect();
                if !same.is_empty() {
                    object.insert(name, (*with.get(&same)).clone());
                }
            }
        }
        Change::SetOdd(at, with) => {
            if let Some(name) = named(at) {
                object.insert(name, with.get(&odd_values()).clone());
            }
        }
        Change::Remove(at) => {
            if let Some(name) = named(at) {
                object.remove(&name);
            }
        }
        Change::Add(with) => {
            let (name, value) = with.get(&FIELDS).clone();
            object.insert(name, value);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn types_and_schema_agree_on_every_change_of_an_example(
        example in any::<Index>(),
        changes in prop::collection::vec((any::<Index>(), any_change()), 0..4),
    ) {
        let (class, task, params) = example.get(&EXAMPLES);
        let mut params = params.clone();
        for (place, change) in &changes {
            let mut places = Vec::new();
            objects(&params, "", &mut places);
            let place: &String = place.get(&places);
            if let Some(object) = params.pointer_mut(place).and_then(Value::as_object_mut) {
                apply(change, object);
            }
        }
        let name = *Task::names(*class).iter().find(|name| *name == task).expect("a task");
        let validator = &VALIDATORS[&(*class, name)];
        let against = faults(validator, &params);
        match Task::restore(*class, task, &params) {
            Ok(task) => {
                prop_assert_eq!(&against, &[""; 0], "{}: {}", name, params);
                let written = task.params();
                prop_assert_eq!(faults(validator, &written), [""; 0], "{}: {}", name, written);
                let again = Task::restore(*class, name, &written);
                prop_assert_eq!(again, Ok(task));
            }
            Err(error) => {
                let beyond = BEYOND_SCHEMAS.iter().any(|text| error.message.contains(text));
                prop_assert!(beyond || !against.is_empty(), "{name}: {params}: {error}");
            }
        }
    }
}
