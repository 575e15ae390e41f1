//! What browsers see.

use crate::{
    bus::TestBus,
    service::{Service, token, token_for},
    socket::{Socket, is_last_of_load, tells_of},
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use virtbus_testbed::until;

const OWN: &str = "jobs:read:own";
const ALL: &str = "jobs:read:all";

#[tokio::test]
async fn a_snapshot_is_followed_by_changes_and_by_progress() {
    let bus = TestBus::start().await;
    bus.put("j1", "alice", "queued").await;
    bus.put("j2", "alice", "succeeded").await;
    let service = Service::start(&bus, "").await;
    let (mut socket, welcome) = Socket::hello(&service, &token("alice", OWN), None).await;
    assert_eq!(welcome["seq"], 2);
    assert_eq!(welcome["user"]["sub"], "alice");
    assert_eq!(welcome["resumed"], false);
    socket.send(json!({"t": "sub", "id": 1})).await;
    let snapshot = socket.until("a snapshot", is_last_of_load).await;
    assert_eq!(snapshot["jobs"].as_array().unwrap().len(), 2);
    let row = &snapshot["jobs"][0];
    assert_eq!((&row["id"], &row["seq"]), (&json!("j1"), &json!(1)));
    assert!(row.get("params").is_none() && row.get("result").is_none());

    let seq = bus.put("j1", "alice", "running").await;
    let change = socket
        .until("a change", |frame| tells_of(frame, "j1"))
        .await;
    assert_eq!(change["seq"], seq);
    assert_eq!(change["jobs"][0]["state"], "running");
    assert_eq!(change["jobs"][0]["worker"], "st-1");

    bus.progress("j1", 1, 41.5).await;
    let progress = socket
        .until("progress", |frame| frame["t"] == "progress")
        .await;
    assert_eq!(progress["items"][0]["id"], "j1");
    assert_eq!(progress["items"][0]["percent"], 41.5);

    bus.put("j1", "alice", "failed").await;
    let ended = socket.until("the end", |frame| tells_of(frame, "j1")).await;
    assert_eq!(ended["jobs"][0]["error"], json!({"code": "tool.failed"}));
    bus.remove("j1").await;
    let gone = socket
        .until("the end of the record", |frame| !frame["left"].is_null())
        .await;
    assert_eq!(gone["left"], json!(["j1"]));
    assert_eq!(socket.rows.len(), 1);
}

#[tokio::test]
async fn whoever_comes_back_gets_the_newest_state_of_what_changed_once() {
    let bus = TestBus::start().await;
    for job in ["j1", "j2", "j3"] {
        bus.put(job, "alice", "queued").await;
    }
    let mut service = Service::start(&bus, "").await;
    let alice = token("alice", OWN);
    for is_restarted in [false, true] {
        let (mut socket, welcome) = Socket::hello(&service, &alice, None).await;
        let cursor = json!({"epoch": welcome["epoch"], "seq": welcome["seq"]});
        socket.send(json!({"t": "sub", "id": 1})).await;
        socket.until("a snapshot", is_last_of_load).await;
        drop(socket);

        let mut witness = Socket::subscribed(&service, &alice).await;
        let mut last = 0;
        for state in ["running", "cancelling", "running"] {
            last = bus.put("j2", "alice", state).await;
        }
        // What the service hasn't heard of yet nobody has missed.
        witness
            .until("the last change", |frame| frame["seq"] == last)
            .await;
        if is_restarted {
            service = service.restart(&bus, "").await;
        }
        let (mut socket, welcome) = Socket::hello(&service, &alice, Some(cursor.clone())).await;
        assert_eq!(welcome["resumed"], true, "{welcome} {is_restarted}");
        socket
            .send(json!({"t": "sub", "id": 1, "snapshot": false}))
            .await;
        let missed = socket.until("what was missed", is_last_of_load).await;
        assert_eq!(missed["jobs"].as_array().unwrap().len(), 1, "{missed}");
        assert_eq!(missed["jobs"][0]["state"], "running");
    }
    for cursor in [
        json!({"epoch": "1", "seq": 3}),
        json!({"epoch": "x", "seq": 3}),
    ] {
        let (_, welcome) = Socket::hello(&service, &alice, Some(cursor)).await;
        assert_eq!(welcome["resumed"], false);
    }
    let (_, welcome) = Socket::hello(&service, &alice, None).await;
    let beyond = json!({"epoch": welcome["epoch"], "seq": 1000});
    let (_, welcome) = Socket::hello(&service, &alice, Some(beyond)).await;
    assert_eq!(welcome["resumed"], false);
}

#[tokio::test]
async fn jobs_of_others_are_never_seen() {
    let bus = TestBus::start().await;
    bus.put("a1", "alice", "queued").await;
    bus.put("b1", "bob", "queued").await;
    let service = Service::start(&bus, "").await;
    let mut alice = Socket::subscribed(&service, &token("alice", OWN)).await;
    let mut all = Socket::subscribed(&service, &token("carol", ALL)).await;
    let mut tenant = Socket::subscribed(&service, &token("dave", "jobs:read:tenant")).await;
    assert_eq!(alice.rows.keys().collect::<Vec<_>>(), ["a1"]);
    for state in ["running", "succeeded"] {
        bus.put("b1", "bob", state).await;
        bus.progress("b1", 1, 50.0).await;
    }
    bus.remove("b1").await;
    bus.put("a2", "alice", "queued").await;
    // All of Bob's was before this, and Alice's first frame is about her own.
    let frame = alice.next().await.unwrap();
    assert!(tells_of(&frame, "a2"), "{frame}");
    for overseer in [&mut all, &mut tenant] {
        overseer
            .until("the last", |frame| tells_of(frame, "a2"))
            .await;
        assert_eq!(overseer.rows.keys().collect::<Vec<_>>(), ["a1", "a2"]);
    }
    let mut nobody = Socket::hello(&service, &token("alice", "jobs:write"), None)
        .await
        .0;
    nobody.send(json!({"t": "sub", "id": 1})).await;
    assert_eq!(nobody.closed().await.code, 4403);
}

#[tokio::test]
async fn each_kind_of_misuse_has_its_close_code() {
    let bus = TestBus::start().await;
    let service = Service::start(&bus, "[limits]\nsessions_per_user_max = 2").await;
    let alice = token("alice", OWN);
    let hello = |token: &str| json!({"t": "hello", "v": 1, "token": token}).to_string();
    let expired = token_for("alice", OWN, 0).replace('.', "x");
    for (text, code) in [
        ("{".to_owned(), 4400),
        (hello("wrong"), 4401),
        (hello(&expired), 4401),
        (
            json!({"t": "hello", "v": 9, "token": alice}).to_string(),
            4406,
        ),
        ("x".repeat(65_537), 4413),
        ("x".repeat(4 << 20), 4413),
    ] {
        let mut socket = Socket::connect(&service).await;
        let length = text.len();
        socket.send_text(text).await;
        assert_eq!(socket.closed().await.code, code, "{length}");
    }
    let mut silent = Socket::connect(&service).await;
    assert_eq!(silent.closed().await.code, 4408);

    let (_one, _) = Socket::hello(&service, &alice, None).await;
    let (two, _) = Socket::hello(&service, &alice, None).await;
    let mut three = Socket::connect(&service).await;
    three.send_text(hello(&alice)).await;
    assert_eq!(three.closed().await.code, 4429);
    drop(two);
    until("room for one more", async || {
        let mut again = Socket::connect(&service).await;
        again.send_text(hello(&alice)).await;
        again.next().await.map(|_| ())
    })
    .await;
}

#[tokio::test]
async fn a_frame_of_the_greatest_size_is_read() {
    let bus = TestBus::start().await;
    let service = Service::start(&bus, "").await;
    let (mut socket, _) = Socket::hello(&service, &token("alice", OWN), None).await;
    let start = r#"{"t":"ping","ref":"p","x":""#;
    let padding = "x".repeat(65_536 - start.len() - 2);
    socket.send_text(format!("{start}{padding}\"}}")).await;
    assert_eq!(socket.next().await.unwrap()["ref"], "p");
}

#[tokio::test]
async fn commands_go_to_the_core_service_in_the_name_of_the_caller() {
    let bus = TestBus::start().await;
    bus.put("a1", "alice", "running").await;
    bus.put("b1", "bob", "running").await;
    let mut asked = bus.bus.client().subscribe("virtbus.>").await.unwrap();
    let service = Service::start(&bus, "").await;
    let scopes = "jobs:read:own jobs:write";
    let (mut socket, _) = Socket::hello(&service, &token("alice", scopes), None).await;
    let cmd = |reference: &str, op: &str, fields: Value| {
        let mut cmd = json!({"t": "cmd", "ref": reference, "op": op});
        cmd.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        cmd
    };
    // Not hers: as if it weren't there, and core isn't even asked.
    socket.send(cmd("1", "cancel", json!({"id": "b1"}))).await;
    let reply = socket.next().await.unwrap();
    assert_eq!(reply["result"], json!({"outcome": "unknown"}), "{reply}");
    socket
        .send(cmd("2", "pause", json!({"queue": "core"})))
        .await;
    let reply = socket.next().await.unwrap();
    assert_eq!(reply["error"]["code"], "auth.forbidden");

    // Whoever says somebody else's name is still who the token names.
    let forged = json!({"id": "a1", "by": "root", "user": "root", "sub": "root"});
    socket.send(cmd("3", "cancel", forged)).await;
    let request = asked.next().await.unwrap();
    assert_eq!(request.subject.as_str(), "virtbus.jobs.cancel");
    let body: Value = serde_json::from_slice(&request.payload).unwrap();
    let asked_for = json!({"id": "a1", "only_waiting": false, "force": false, "by": "alice"});
    assert_eq!(body, asked_for);
    let client = bus.bus.client();
    client
        .publish(request.reply.unwrap(), r#"{"outcome":"cancelling"}"#.into())
        .await
        .unwrap();
    let reply = socket.next().await.unwrap();
    let expected =
        json!({"t": "reply", "ref": "3", "ok": true, "result": {"outcome": "cancelling"}});
    assert_eq!(reply, expected);

    let job = json!({"task": "ping", "user": "root", "tenant": "other", "by": "root"});
    for (number, jobs) in [
        ("4", job.clone()),
        ("5", json!({"jobs": [job], "by": "root"})),
    ] {
        socket.send(cmd(number, "submit", jobs)).await;
        let request = asked.next().await.unwrap();
        let body: Value = serde_json::from_slice(&request.payload).unwrap();
        assert_eq!(body["by"], "alice");
        let job = body["jobs"].get(0).unwrap_or(&body);
        assert_eq!(
            (&job["user"], &job["tenant"]),
            (&json!("alice"), &json!("acme"))
        );
    }
}

#[tokio::test]
async fn changes_that_nobody_was_told_of_are_found() {
    let bus = TestBus::start().await;
    let service = Service::start(&bus, "").await;
    let mut socket = Socket::subscribed(&service, &token("alice", OWN)).await;
    // Followed by one that is told: the gap shows at once.
    bus.publish_changes(false).await;
    bus.put("j1", "alice", "queued").await;
    bus.put("j2", "alice", "queued").await;
    bus.put("j1", "alice", "running").await;
    bus.publish_changes(true).await;
    bus.put("j3", "alice", "queued").await;
    socket
        .until("the last", |frame| tells_of(frame, "j3"))
        .await;
    assert_eq!(socket.rows.keys().collect::<Vec<_>>(), ["j1", "j2", "j3"]);
    assert_eq!(socket.rows["j1"]["state"], "running");
    // Followed by silence: a look now and then finds it.
    bus.publish_changes(false).await;
    bus.remove("j2").await;
    let gone = socket
        .until("the end of the record", |frame| !frame["left"].is_null())
        .await;
    assert_eq!(gone["left"], json!(["j2"]));
}

#[tokio::test]
async fn an_application_reaches_the_browsers_it_means() {
    let bus = TestBus::start().await;
    let service = Service::start(&bus, "").await;
    let (mut alice, _) = Socket::hello(&service, &token("alice", OWN), None).await;
    let (mut bob, _) = Socket::hello(&service, &token("bob", OWN), None).await;
    for (id, to, delivered) in [
        ("m1", json!({"user": "alice"}), 1),
        ("m2", json!({"tenant": "acme"}), 2),
        ("m3", json!({"role": "jobs:read:own"}), 2),
        ("m4", json!({"all": true}), 2),
        ("m5", json!({"user": "nobody"}), 0),
    ] {
        let params = json!({"to": to, "topic": "news", "payload": {"id": id}});
        let job = json!({"id": id, "task": "feedback", "params": params});
        bus.publish("core", &job).await;
        let record = bus.ended(id).await;
        assert_eq!(
            record["result"],
            json!({"delivered": delivered}),
            "{record}"
        );
    }
    for id in ["m1", "m2", "m3", "m4"] {
        let expected = json!({"t": "feedback", "topic": "news", "payload": {"id": id}});
        assert_eq!(alice.next().await.unwrap(), expected);
        if id != "m1" {
            assert_eq!(bob.next().await.unwrap(), expected);
        }
    }
    bus.publish("core", &json!({"id": "p1", "task": "ping"}))
        .await;
    let record = bus.ended("p1").await;
    assert_eq!(record["state"], "succeeded");
    assert_eq!(record["result"]["checks"], json!([]));
    let fails =
        json!({"id": "p2", "task": "ping", "params": {"fail": true}, "retry": {"max_attempts": 1}});
    bus.publish("core", &fails).await;
    let record = bus.ended("p2").await;
    assert_eq!(
        record["error"]["detail"]["cause"], "tool.failed",
        "{record}"
    );
}

#[tokio::test]
async fn another_bucket_of_the_same_name_is_begun_anew() {
    let bus = TestBus::start().await;
    bus.put("j1", "alice", "queued").await;
    let service = Service::start(&bus, "").await;
    let mut socket = Socket::subscribed(&service, &token("alice", OWN)).await;
    bus.bus.jetstream().delete_stream("KV_jobs").await.unwrap();
    let wanted = virtbus_bus::topology::Wanted::default();
    let mode = virtbus_bus::topology::Mode::Apply;
    virtbus_bus::topology::apply(bus.bus.jetstream(), &wanted, mode)
        .await
        .unwrap();
    bus.put("j2", "alice", "queued").await;
    let bye = socket
        .until("a farewell", |frame| frame["t"] == "bye")
        .await;
    assert_eq!(bye["reason"], "epoch");
    assert_eq!(socket.closed().await.code, 1012);
    let socket = Socket::subscribed(&service, &token("alice", OWN)).await;
    assert_eq!(socket.rows.keys().collect::<Vec<_>>(), ["j2"]);
}

#[tokio::test]
async fn a_service_that_stops_says_goodbye() {
    let bus = TestBus::start().await;
    let mut service = Service::start(&bus, "").await;
    let mut socket = Socket::subscribed(&service, &token("alice", OWN)).await;
    service.signal("TERM");
    let bye = socket
        .until("a farewell", |frame| frame["t"] == "bye")
        .await;
    assert_eq!(bye["reason"], "drain");
    assert_eq!(socket.closed().await.code, 1001);
    assert_eq!(service.ended().await.code(), Some(0));
}
