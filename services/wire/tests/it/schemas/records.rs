//! Records and rows: any of them passes its schema.

use super::{faults, validator};
use crate::jobs::{any_event, at, queued};
use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::Value;
use std::sync::LazyLock;
use virtbus_wire::{Row, frame::Jobs, frame::ServerFrame};

static RECORD: LazyLock<Validator> = LazyLock::new(|| validator("record.json"));
static SERVER: LazyLock<Validator> = LazyLock::new(|| validator("frames.json#/$defs/server"));

proptest! {
    #[test]
    fn whatever_happens_to_a_job_its_record_and_its_row_pass_the_schema(
        events in prop::collection::vec(any_event(), 0..12),
    ) {
        let mut record = queued();
        for event in events {
            if let Ok(next) = record.clone().apply(event, at(2)) {
                record = next;
            }
        }
        let value = serde_json::to_value(&record).unwrap();
        prop_assert_eq!(faults(&RECORD, &value), [""; 0], "{}", value);
        let row = Row::new(&record, 9);
        let mut shown = serde_json::to_value(&row).unwrap();
        let frame = Jobs { sub: 1, seq: 9, jobs: vec![row], more: false, left: Vec::new() };
        let frame = serde_json::to_value(ServerFrame::Jobs(frame)).unwrap();
        prop_assert_eq!(faults(&SERVER, &frame), [""; 0], "{}", frame);
        // But for what it leaves out, a row says the same as its record.
        let fields = shown.as_object_mut().expect("an object");
        prop_assert_eq!(fields.remove("seq"), Some(Value::from(9)));
        let error = fields.remove("error").and_then(|error| error.get("code").cloned());
        prop_assert_eq!(error, value["error"].get("code").cloned());
        for (name, shown) in fields {
            prop_assert_eq!(&*shown, &value[name.as_str()], "{}", name);
        }
    }
}
