//! What a message becomes.

use crate::jobs::{at, job};
use proptest::prelude::*;
use serde_json::{Value, json};
use virtbus_wire::{
    Code, Record, StateName,
    envelope::PARAMS_BYTES_MAX,
    protocol::{
        arrival::{Arrival, Arrived, Headers, Life, arrive},
        gate::{Gate, gate},
    },
    state::{JobState, WaitReason},
};

const NUMBERED: &str = "storage-812";

fn message(payload: &[u8]) -> Arrival<'_> {
    Arrival {
        subject: "storage.p.low",
        payload,
        headers: Headers::default(),
        stream: "STORAGE",
        seq: 812,
        time: at(0),
    }
}

fn seen(arrival: &Arrival<'_>) -> Arrived {
    arrive(arrival, Life::First, at(1))
}

/// Id, code of the failure if any, and whether it's a dead letter.
fn outcome(arrival: &Arrival<'_>) -> (String, Option<Code>, bool) {
    match seen(arrival) {
        Arrived::Job { id, record, dlq } => {
            let code = match &record {
                Ok(record) => {
                    assert_eq!(record.state, JobState::Queued);
                    None
                }
                Err(record) => {
                    let JobState::Failed(_, error) = &record.state else {
                        panic!("{:?}", record.state);
                    };
                    Some(error.code)
                }
            };
            let record = record.unwrap_or_else(|failed| failed);
            assert!(record.id == id && arrival.brought(&record));
            (id.to_string(), code, dlq)
        }
        Arrived::System { .. } => panic!("a publisher's message"),
    }
}

fn record(arrival: &Arrival<'_>) -> Record {
    match seen(arrival) {
        Arrived::Job { record, .. } => *record.unwrap_or_else(|failed| failed),
        Arrived::System { .. } => panic!("a publisher's message"),
    }
}

#[test]
fn a_job_is_named_by_its_id_then_by_its_header_then_by_its_number() {
    let named = br#"{"id":"web-7","task":"ping"}"#;
    let mut arrival = message(named);
    arrival.headers.msg_id = Some("header/that is no id");
    assert_eq!(outcome(&arrival), ("web-7".to_owned(), None, false));
    let mut arrival = message(br#"{"task":"ping"}"#);
    arrival.headers.msg_id = Some("from-header");
    assert_eq!(outcome(&arrival), ("from-header".to_owned(), None, false));
    arrival.headers.msg_id = None;
    assert_eq!(outcome(&arrival), (NUMBERED.to_owned(), None, false));
}

#[test]
fn what_cannot_be_decoded_fails_under_its_number_and_is_a_dead_letter() {
    let long_id = format!(r#"{{"task":"ping","id":"{}"}}"#, "x".repeat(300));
    for payload in [
        "",
        "not json",
        "[]",
        "{}",
        r#"{"task":7}"#,
        r#"{"task":"ping","id":"a/b"}"#,
        r#"{"task":"ping","id":".."}"#,
        r#"{"task":"ping","id":"-x"}"#,
        r#"{"task":"ping","id":"a\nb"}"#,
        r#"{"task":"ping","id":"storage-7"}"#,
        r#"{"task":"ping","id":"hypervisor-7-0a0b0c0d"}"#,
        r#"{"task":"ping","id":"u1-finish"}"#,
        r#"{"task":"ping","user":"a b"}"#,
        &long_id,
    ] {
        let expected = (NUMBERED.to_owned(), Some(Code::JobMalformed), true);
        assert_eq!(outcome(&message(payload.as_bytes())), expected, "{payload}");
    }
}

#[test]
fn headers_that_name_no_job_are_malformed() {
    let named = |msg_id, job, generation| {
        let mut arrival = message(br#"{"task":"ping"}"#);
        arrival.headers = Headers {
            msg_id,
            job,
            generation,
            traceparent: None,
        };
        outcome(&arrival)
    };
    let malformed = (NUMBERED.to_owned(), Some(Code::JobMalformed), true);
    assert_eq!(named(Some("a b"), None, None), malformed);
    assert_eq!(named(Some("core-3"), None, None), malformed);
    assert_eq!(named(None, Some("a b"), Some("2")), malformed);
    assert_eq!(named(None, Some("j1"), None), malformed);
    assert_eq!(named(None, Some("j1"), Some("0")), malformed);
    assert_eq!(named(None, None, Some("2")), malformed);
}

#[test]
fn a_publication_by_the_system_is_known_by_its_headers_alone() {
    let mut arrival = message(b"whatever");
    arrival.headers.job = Some("storage-7");
    arrival.headers.generation = Some("3");
    let (id, generation) = (job("storage-7"), 3);
    assert_eq!(seen(&arrival), Arrived::System { id, generation });
}

#[test]
fn what_decodes_but_cannot_run_fails_under_its_own_id() {
    let large = "x".repeat(PARAMS_BYTES_MAX);
    let long = "u".repeat(114);
    for (payload, code) in [
        (
            r#"{"id":"j","task":"nope"}"#.to_owned(),
            Code::JobUnknownTask,
        ),
        (
            format!(r#"{{"id":"j","task":"ping","params":{{"x":"{large}"}}}}"#),
            Code::JobInvalidParams,
        ),
        (
            r#"{"id":"j","task":"ping","locks":{"exclusive":["disk.d1"]}}"#.to_owned(),
            Code::JobInvalidParams,
        ),
        (
            r#"{"id":"j","task":"ping","after":["j"]}"#.to_owned(),
            Code::JobInvalidParams,
        ),
        (
            r#"{"id":"j","task":"ping","retry":{"max_attempts":0}}"#.to_owned(),
            Code::JobInvalidParams,
        ),
        (
            format!(r#"{{"id":"{long}","task":"upload"}}"#),
            Code::JobInvalidParams,
        ),
        (
            format!(r#"{{"id":"j","task":"ping","expires_at":"{}"}}"#, at(1)),
            Code::JobExpired,
        ),
    ] {
        let (id, found, dlq) = outcome(&message(payload.as_bytes()));
        assert_eq!((found, dlq), (Some(code), false), "{payload}");
        assert!(id == "j" || id == long, "{payload}");
    }
}

#[test]
fn a_refused_job_that_could_run_keeps_what_it_is_about() {
    let body = |more: &str| {
        format!(r#"{{"id":"j","task":"resize","params":{{"disk":"d1","size":4096}},{more}}}"#)
    };
    for more in [
        format!(r#""expires_at":"{}""#, at(1)),
        r#""after":["j"]"#.to_owned(),
    ] {
        let refused = record(&message(body(&more).as_bytes()));
        assert_eq!(refused.state.name(), StateName::Failed, "{more}");
        // Run again by hand, it locks its disk.
        assert_eq!(refused.objects, ["disk.d1"], "{more}");
    }
}

#[test]
fn a_subject_that_is_no_queue_fails_whatever_the_job() {
    for subject in ["storage.p.urgent", "storage.b_a.low", "storage.P.low"] {
        let mut arrival = message(br#"{"id":"j","task":"ping"}"#);
        arrival.subject = subject;
        assert_eq!(outcome(&arrival).1, Some(Code::QueueUnknown));
        assert_eq!(record(&arrival).queue.to_string(), subject);
    }
}

#[test]
fn a_failed_jobs_record_stays_small_and_says_whose_it_was() {
    let megabyte = "x".repeat(1 << 20);
    for payload in [
        format!(r#"{{"task":"ping","user":"alice","params":{{"x":"{megabyte}"}}}}"#),
        format!(r#"{{"task":"ping","user":"alice","reason":"{megabyte}"}}"#),
        format!(r#"{{"task":"ping","user":"alice","id":"{megabyte}"}}"#),
        format!(r#"{{"task":"ping","user":"alice","labels":{{"a":"{megabyte}"}}}}"#),
        format!(r#"{{"task":"ping","user":"alice","id":"{megabyte}"}}"#),
    ] {
        let record = record(&message(payload.as_bytes()));
        assert_eq!(record.user.as_ref().unwrap().as_str(), "alice");
        let bytes = serde_json::to_vec(&record).unwrap().len();
        assert!(bytes < 16 * 1024, "{bytes}");
    }
    let huge = megabyte.as_bytes();
    assert!(serde_json::to_vec(&record(&message(huge))).unwrap().len() < 16 * 1024);
}

#[test]
fn a_number_used_in_an_earlier_life_of_the_stream_gets_the_time_appended() {
    let payload = br#"{"task":"ping"}"#;
    let old = record(&message(payload));
    let mut arrival = message(payload);
    assert_eq!(arrival.life(&old), Life::First, "its own record");
    arrival.time = at(86_400);
    assert_eq!(arrival.life(&old), Life::Later);
    let Arrived::Job { id, .. } = arrive(&arrival, Life::Later, at(86_401)) else {
        panic!("a publisher's message");
    };
    let seconds = at(86_400).as_millis() / 1000;
    assert_eq!(id.to_string(), format!("{NUMBERED}-{seconds:08x}"));
    let chosen = record(&message(br#"{"id":"mine","task":"ping"}"#));
    assert_eq!(arrival.life(&chosen), Life::First, "a copy, no other life");
}

#[test]
fn params_are_kept_as_checked_and_the_trace_as_it_came() {
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut arrival = message(br#"{"task":"resize","params":{"disk":"d1","size":"1GiB"}}"#);
    arrival.headers.traceparent = Some(trace);
    let found = record(&arrival);
    assert_eq!(found.trace.unwrap().traceparent, trace);
    assert_eq!(
        (found.params, found.objects),
        (
            json!({"disk":"d1","size":1073741824,"shrink":false}),
            vec!["disk.d1".to_owned()]
        )
    );
    arrival.headers.traceparent = Some("00\n");
    assert_eq!(record(&arrival).trace, None);
}

fn coming_after(on: &str) -> Record {
    let payload = format!(r#"{{"task":"ping","after":[{{"job":"a","on":{on}}}]}}"#);
    record(&message(payload.as_bytes()))
}

#[test]
fn a_job_waits_for_what_it_comes_after() {
    let record = coming_after(r#"["succeeded"]"#);
    let with = |state| gate(&record, at(1), |_| state);
    for state in [None, Some(StateName::Queued), Some(StateName::Cancelling)] {
        let job = job("a");
        assert_eq!(
            with(state),
            Gate::Wait(WaitReason::Dependency { job, state })
        );
    }
    assert_eq!(with(Some(StateName::Succeeded)), Gate::Open);
    let Gate::Drop(error) = with(Some(StateName::Failed)) else {
        panic!("it can't come true any more");
    };
    assert_eq!(error.code, Code::JobDependencyUnmet);
    assert_eq!(
        Value::Object(error.detail),
        json!({"job": "a", "state": "failed"})
    );
}

#[test]
fn a_retry_does_not_look_at_dependencies_again() {
    let record = coming_after(r#"["succeeded"]"#);
    let Gate::Drop(error) = gate(&record, at(1), |_| Some(StateName::Failed)) else {
        panic!("it can't come true any more");
    };
    let dropped = record
        .apply(virtbus_wire::Event::Drop(error), at(1))
        .unwrap();
    let again = dropped.apply(virtbus_wire::Event::Retry, at(2)).unwrap();
    assert_eq!(gate(&again, at(3), |_| Some(StateName::Failed)), Gate::Open);
}

#[test]
fn times_bound_the_first_start_only() {
    let payload = format!(
        r#"{{"task":"ping","not_before":"{}","expires_at":"{}"}}"#,
        at(10),
        at(20)
    );
    let record = record(&message(payload.as_bytes()));
    let until = at(10);
    let wait = Gate::Wait(WaitReason::Time { until, error: None });
    assert_eq!(gate(&record, at(5), |_| None), wait);
    assert_eq!(gate(&record, at(10), |_| None), Gate::Open);
    let Gate::Fail(error) = gate(&record, at(20), |_| None) else {
        panic!("too late");
    };
    assert_eq!(error.code, Code::JobExpired);
    let begun = Record {
        attempt: 1,
        ..record
    };
    assert_eq!(gate(&begun, at(30), |_| None), Gate::Open);
}

proptest! {
    #[test]
    fn any_bytes_become_a_job_that_reads_back(
        payload in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "\\{\"task\":\"[a-z]{0,9}\",\"id\":\"[a-z0-9-]{0,9}\",\"params\":[0-9{}\\[\\]]{0,3}\\}"
                .prop_map(String::into_bytes),
        ],
        msg_id in prop::option::of("[ -~]{0,20}"),
        subject in "storage\\.[a-z_.]{0,9}",
    ) {
        let mut arrival = message(&payload);
        arrival.subject = &subject;
        arrival.headers.msg_id = msg_id.as_deref();
        let found = record(&arrival);
        let json = serde_json::to_vec(&found).unwrap();
        prop_assert!(json.len() < 16 * 1024);
        prop_assert_eq!(serde_json::from_slice::<Record>(&json).unwrap(), found);
    }
}
