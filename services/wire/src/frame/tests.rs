//! Tests of frames.

use super::*;
use crate::envelope::Envelope;
use crate::record::{Address, Record};
use crate::row::Row;
use crate::time::Timestamp;

fn row(queue: &str) -> Row {
    let job = Envelope::decode(br#"{"task":"resize","labels":{"class":"maths-1"}}"#).unwrap();
    let address = Address::from(queue.to_owned());
    let now = Timestamp::from_millis(0);
    let mut record = Record::new("j1".parse().unwrap(), job, address, now);
    record.objects = vec!["disk.d7".to_owned()];
    Row::new(&record, 9)
}

#[test]
fn unknown_fields_of_a_frame_are_passed_over() {
    let frame = decode_client(r#"{"t":"sub","id":1,"nonsense":true,"filter":{"other":[1]}}"#);
    let ClientFrame::Sub(sub) = frame.unwrap() else {
        panic!("no sub")
    };
    assert_eq!((sub.snapshot, sub.progress_hz.get()), (true, 4));
}

#[test]
fn what_is_no_frame_closes_with_4400() {
    for text in [
        "",
        "[]",
        "{}",
        r#"{"t":"nonsense"}"#,
        r#"{"t":"sub"}"#,
        r#"{"t":"sub","id":-1}"#,
        r#"{"t":"sub","id":1,"filter":{"state":["done"]}}"#,
        r#"{"t":"sub","id":1,"progress_hz":11}"#,
        r#"{"t":"hello","v":1}"#,
        &format!(
            r#"{{"t":"ping","ref":"{}"}}"#,
            "x".repeat(REF_BYTES_MAX + 1)
        ),
        &format!(
            r#"{{"t":"sub","id":1,"filter":{{"task":[{}"x"]}}}}"#,
            r#""x","#.repeat(256)
        ),
    ] {
        let bad = decode_client(text).expect_err(text);
        assert_eq!(bad.close.code(), 4400, "{text}");
    }
}

#[test]
fn a_client_passes_over_frames_of_a_later_version() {
    assert_eq!(decode_server(r#"{"t":"log","lines":[]}"#).unwrap(), None);
    assert!(decode_server(r#"{"t":"hb"}"#).is_err());
    let text = r#"{"t":"hb","seq":1,"now":"2026-11-21T16:30:00.000Z","lag":0}"#;
    assert!(matches!(
        decode_server(text).unwrap(),
        Some(ServerFrame::Hb(_))
    ));
}

#[test]
fn every_frame_that_a_server_sends_is_one_that_a_client_knows() {
    let reply = Reply::new("a".to_owned(), Err(JobError::internal("x")));
    let frames = [
        ServerFrame::Jobs(Jobs {
            sub: 1,
            seq: 9,
            jobs: vec![row("storage.default.low")],
            more: true,
            left: Vec::new(),
        }),
        ServerFrame::Reply(reply),
        ServerFrame::Bye(Bye {
            reason: "drain".to_owned(),
            retry_after_ms: 3_000,
        }),
        ServerFrame::Progress(ProgressFrame {
            sub: 1,
            items: vec![ProgressItem {
                id: "j1".parse().unwrap(),
                attempt: 1,
                progress: crate::state::Progress {
                    percent: Some(41.5),
                    ..Default::default()
                },
            }],
        }),
    ];
    for frame in frames {
        let text = serde_json::to_string(&frame).unwrap();
        assert_eq!(decode_server(&text).unwrap(), Some(frame), "{text}");
    }
}

#[test]
fn a_wrong_command_names_its_field_and_closes_nothing() {
    for (text, field) in [
        (r#"{"t":"cmd","ref":"a","op":"explode"}"#, "op"),
        (
            r#"{"t":"cmd","ref":"a","op":"priority","id":"j","priority":"urgent"}"#,
            "priority",
        ),
        (r#"{"t":"cmd","ref":"a","op":"submit","jobs":[]}"#, "jobs"),
    ] {
        let ClientFrame::Cmd(cmd) = decode_client(text).unwrap() else {
            panic!("no cmd")
        };
        assert_eq!(cmd.command().unwrap_err().detail["field"], field, "{text}");
    }
    let text = r#"{"t":"cmd","ref":"a","op":"cancel","id":"j1","force":true}"#;
    let ClientFrame::Cmd(cmd) = decode_client(text).unwrap() else {
        panic!("no cmd")
    };
    let Command::Cancel(cancel) = cmd.command().unwrap() else {
        panic!("no cancel")
    };
    assert!(cancel.force);
}

#[test]
fn a_filter_takes_what_fits_every_list() {
    let filter = |json: &str| serde_json::from_str::<Filter>(json).unwrap();
    for (json, fits) in [
        ("{}", true),
        (r#"{"queue":["storage.default"]}"#, true),
        (r#"{"queue":["storage.default.low"]}"#, true),
        (r#"{"queue":["storage.def"]}"#, false),
        (r#"{"state":["running","queued"],"task":["resize"]}"#, true),
        (r#"{"state":["queued"],"task":["convert"]}"#, false),
        (r#"{"object":["disk.d9","disk.d7"]}"#, true),
        (r#"{"labels":{"class":"maths-2"}}"#, false),
        (r#"{"job":["j1"]}"#, true),
    ] {
        assert_eq!(
            filter(json).matches(&row("storage.default.low").into()),
            fits,
            "{json}"
        );
    }
}
