//! Tests of the session's state machine: tables, and a client that keeps what it's told.

mod client;
mod world;

use super::*;
use axum::extract::ws::Utf8Bytes;
use serde_json::{Value, json};
use virtbus_daemon::auth::TokenError;

/// Seconds since 1970 at which the connection is made.
const BEGIN_S: i64 = 1_700_000_000;

fn at(seconds: f64) -> Now {
    let at = Duration::from_secs_f64(seconds);
    let millis = i64::try_from(at.as_millis()).unwrap();
    Now {
        at,
        time: Timestamp::from_millis(BEGIN_S * 1000 + millis),
    }
}

/// `<user> <seconds until the end> <scopes>`, which stands for a signed token here.
fn verify(token: &str) -> Result<Claims, TokenError> {
    let mut words = token.splitn(3, ' ');
    let (Some(sub), Some(ends_in), Some(scope)) = (words.next(), words.next(), words.next()) else {
        return Err(TokenError::Invalid);
    };
    let exp = BEGIN_S + ends_in.parse::<i64>().map_err(|_| TokenError::Claims)?;
    let claims = json!({"sub": sub, "scope": scope, "exp": exp, "aud": "virtbus"});
    serde_json::from_value(claims).map_err(|_| TokenError::Claims)
}

fn hello(token: &str) -> String {
    json!({"t": "hello", "v": 1, "token": token}).to_string()
}

fn place(resumed: Option<u64>) -> Place {
    Place {
        epoch: "7".to_owned(),
        seq: 10,
        resumed,
    }
}

fn live(token: &str) -> Session {
    let mut session = Session::new();
    let acts = session.text(at(0.0), &hello(token), verify);
    assert!(matches!(acts[..], [Act::Join(..)]), "{acts:?}");
    let acts = session.joined(at(0.0), Ok(place(None)));
    assert_eq!(names(&acts), ["welcome"]);
    session
}

fn frame(text: &Utf8Bytes) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What was decided, in short: names of frames, or what else.
fn names(acts: &[Act]) -> Vec<String> {
    let name = |act: &Act| match act {
        Act::Send(text) => frame(text)["t"].as_str().unwrap().to_owned(),
        Act::Join(..) => "(join)".to_owned(),
        Act::Load(_, _, _, from) => format!("(load {from:?})"),
        Act::Command(..) => "(command)".to_owned(),
        Act::Close(code, _) => code.code().to_string(),
    };
    acts.iter().map(name).collect()
}

const EVERYTHING: &str = "alice 3600 admin";
const OWN: &str = "alice 3600 jobs:read:own";

#[test]
fn a_first_frame_that_is_not_a_good_hello_closes() {
    for (text, code) in [
        (hello(EVERYTHING), "(join)"),
        (hello("alice x admin"), "4401"),
        (hello(""), "4401"),
        (
            json!({"t": "hello", "v": 2, "token": EVERYTHING}).to_string(),
            "4406",
        ),
        (json!({"t": "hello", "v": 1}).to_string(), "4400"),
        (json!({"t": "sub", "id": 1}).to_string(), "4400"),
        (json!({"t": "ping", "ref": "a"}).to_string(), "4400"),
        ("nonsense".to_owned(), "4400"),
    ] {
        let acts = Session::new().text(at(0.0), &text, verify);
        assert_eq!(names(&acts), [code], "{text}");
    }
}

#[test]
fn whoever_says_no_hello_in_time_is_closed() {
    let mut session = Session::new();
    assert_eq!(session.deadline(at(0.0)), Duration::from_secs(5));
    assert!(session.tick(at(4.9)).is_empty());
    assert_eq!(names(&session.tick(at(5.0))), ["4408"]);
}

#[test]
fn a_live_session_answers_each_frame_as_the_protocol_says() {
    let ping = json!({"t": "ping", "ref": "p"});
    let sub = json!({"t": "sub", "id": 1, "filter": {"state": ["queued"]}});
    let resumed = json!({"t": "sub", "id": 1, "snapshot": false});
    let cancel = json!({"t": "cmd", "ref": "c", "op": "cancel", "id": "j"});
    let pause = json!({"t": "cmd", "ref": "c", "op": "pause", "queue": "core", "reason": "x"});
    let wrong = json!({"t": "cmd", "ref": "c", "op": "explode"});
    let writer = "alice 3600 jobs:read:own jobs:write";
    for (token, text, expected) in [
        (OWN, &ping, "reply"),
        (OWN, &sub, "(load Start)"),
        (OWN, &resumed, "(load Now)"),
        ("alice 3600 jobs:write", &sub, "4403"),
        (OWN, &cancel, "reply"),
        (writer, &cancel, "(command)"),
        (writer, &pause, "reply"),
        ("alice 3600 queues:write", &pause, "(command)"),
        (EVERYTHING, &pause, "(command)"),
        (EVERYTHING, &wrong, "reply"),
        (OWN, &json!({"t": "hello", "v": 1, "token": OWN}), "4400"),
        (OWN, &json!({"t": "auth", "token": "bad"}), "4401"),
        (
            OWN,
            &json!({"t": "auth", "token": "bob 3600 jobs:read:own"}),
            "4403",
        ),
        (OWN, &json!({"t": "auth", "token": EVERYTHING}), "(join)"),
    ] {
        let acts = live(token).text(at(1.0), &text.to_string(), verify);
        assert_eq!(names(&acts), [expected], "{token}: {text}");
    }
    let acts = live(OWN).text(at(1.0), &cancel.to_string(), verify);
    let [Act::Send(reply)] = &acts[..] else {
        panic!("{acts:?}")
    };
    assert_eq!(frame(reply)["error"]["code"], "auth.forbidden");
}

#[test]
fn a_session_that_resumed_loads_only_what_changed() {
    let mut session = Session::new();
    session.text(at(0.0), &hello(OWN), verify);
    let acts = session.joined(at(0.0), Ok(place(Some(4))));
    let [Act::Send(welcome)] = &acts[..] else {
        panic!("{acts:?}")
    };
    let welcome = frame(welcome);
    assert_eq!(welcome["resumed"], true);
    assert_eq!(welcome["limits"], json!({"subs": 16, "msg_bytes": 65_536}));
    let again = json!({"t": "sub", "id": 3, "snapshot": false}).to_string();
    assert_eq!(
        names(&session.text(at(0.0), &again, verify)),
        ["(load After(4))"]
    );
}

#[test]
fn one_user_too_often_is_closed() {
    let mut session = Session::new();
    session.text(at(0.0), &hello(OWN), verify);
    assert_eq!(names(&session.joined(at(0.0), Err(TooMany))), ["4429"]);
}

#[test]
fn too_many_subscriptions_or_frames_close() {
    let mut session = live(OWN);
    let sub = |id: usize| json!({"t": "sub", "id": id}).to_string();
    for id in 0..16 {
        let acts = session.text(at(1.0), &sub(id), verify);
        assert_eq!(names(&acts), ["(load Start)"]);
    }
    // One that is there may be changed.
    let acts = session.text(at(2.0), &sub(3), verify);
    assert_eq!(names(&acts), ["(load Start)"]);
    let acts = session.text(at(2.0), &sub(16), verify);
    assert_eq!(names(&acts), ["4429"]);

    let mut session = live(OWN);
    let ping = json!({"t": "ping", "ref": "p"}).to_string();
    // The burst, less the hello, and what a second and a half earns.
    let mut sent = 0;
    while names(&session.text(at(1.5), &ping, verify)) == ["reply"] {
        sent += 1;
    }
    assert_eq!(sent, 40);
}

#[test]
fn a_session_says_every_20_s_that_it_lives() {
    let mut session = live(OWN);
    assert_eq!(session.deadline(at(1.0)), Duration::from_secs(20));
    assert!(session.tick(at(19.9)).is_empty());
    assert_eq!(names(&session.tick(at(20.0))), ["hb"]);
    assert_eq!(session.deadline(at(20.0)), Duration::from_secs(40));
}

#[test]
fn a_token_is_said_to_expire_a_minute_before_and_can_be_renewed() {
    let mut session = live("alice 100 jobs:read:own");
    session.tick(at(20.0));
    session.tick(at(39.0));
    assert_eq!(session.deadline(at(39.0)), Duration::from_secs(40));
    assert_eq!(names(&session.tick(at(40.0))), ["expiring", "hb"]);
    assert!(session.tick(at(41.0)).is_empty(), "once is enough");
    let newer = json!({"t": "auth", "token": "alice 200 jobs:read:own"}).to_string();
    assert!(session.text(at(50.0), &newer, verify).is_empty());
    assert_eq!(names(&session.tick(at(101.0))), ["hb"]);
    assert_eq!(names(&session.tick(at(140.0))), ["expiring", "hb"]);
    assert_eq!(names(&session.tick(at(200.0))), ["4401"]);
}

#[test]
fn whoever_loses_rights_begins_anew_or_is_closed() {
    let sub = json!({"t": "sub", "id": 1}).to_string();
    for (token, expected) in [
        (OWN, &["reset", "(load Start)"][..]),
        ("alice 3600 jobs:write", &["4403"]),
    ] {
        let mut session = live(EVERYTHING);
        session.text(at(1.0), &sub, verify);
        let renewal = json!({"t": "auth", "token": token}).to_string();
        session.text(at(2.0), &renewal, verify);
        let acts = session.joined(at(2.0), Ok(place(None)));
        assert_eq!(names(&acts), expected, "{token}");
    }
}

#[test]
fn a_client_that_is_too_slow_again_and_again_is_closed() {
    let mut session = live(OWN);
    let sub = json!({"t": "sub", "id": 1}).to_string();
    session.text(at(1.0), &sub, verify);
    let lost = || Waiting {
        overflowed: true,
        ..Waiting::default()
    };
    let mut overflow = |seconds| {
        let acts = names(&session.waiting(at(seconds), lost(), 20));
        session.loaded(1, Load::default());
        while session.next_of_load().is_some() {}
        session.waiting(at(seconds), Waiting::default(), 20);
        acts
    };
    let anew = ["reset", "(load Start)"];
    assert_eq!(overflow(1.0), anew);
    assert_eq!(overflow(2.0), anew);
    assert_eq!(overflow(63.0), anew, "the earlier ones are forgotten");
    assert_eq!(overflow(64.0), anew);
    assert_eq!(overflow(65.0), ["4429"]);
}

#[test]
fn what_is_lost_while_a_load_is_sent_is_no_fault_of_the_client() {
    let mut session = live(OWN);
    let sub = json!({"t": "sub", "id": 1}).to_string();
    session.text(at(1.0), &sub, verify);
    let load = Load {
        seq: 12,
        ..Load::default()
    };
    session.loaded(1, load);
    assert_eq!(session.fill(), Fill::Going);
    while session.next_of_load().is_some() {}
    assert_eq!(session.fill(), Fill::Done);
    let lost = Waiting {
        overflowed: true,
        ..Waiting::default()
    };
    assert_eq!(
        names(&session.waiting(at(2.0), lost, 20)),
        ["(load After(12))"]
    );
}
