//! Errors: exit codes, and their form for programs.

use crate::{
    program::{Site, run},
    steering::asked,
};
use serde_json::{Value, json};

fn code(err: &str) -> Value {
    let error: Value = serde_json::from_str(err).expect(err);
    error["error"]["code"].clone()
}

#[tokio::test]
async fn errors_have_documented_exit_codes_and_a_form_for_programs() {
    let site = Site::start().await;
    for (line, exit, wanted) in [
        ("show nothing-here", 3, "job.not_found"),
        ("show last", 3, "job.not_found"),
        ("show a/b", 2, "usage"),
        ("watch nothing-here", 3, "job.not_found"),
        ("cancel nothing-here", 6, "unreachable"),
        ("pools register p1", 6, "unreachable"),
        ("token --user alice", 2, "usage"),
        ("submit ping", 2, "usage"),
        ("frobnicate", 2, "usage"),
        ("list --state gone", 2, "usage"),
        ("list --context /nowhere/ready.json", 1, "failed"),
    ] {
        let said = site.run(&format!("{line} --json")).await.ended(exit);
        assert_eq!(code(&said.err), wanted, "{line}: {said:?}");
        assert_eq!(said.out, "", "{line}");
    }
}

#[tokio::test]
async fn a_part_of_an_id_that_fits_two_jobs_is_refused() {
    let site = Site::start().await;
    for id in ["aa-12345678", "bb-12345678"] {
        site.register(id, r#"{"task":"ping"}"#, "storage.default.low")
            .await;
    }
    let said = site.run("show 12345678").await.ended(2);
    assert!(said.err.contains("aa-12345678, bb-12345678"), "{said:?}");
    site.run("show aa-12345678").await.ended(0);
}

#[tokio::test]
async fn the_last_job_is_the_one_published_last_though_nobody_has_made_its_record() {
    let site = Site::start().await;
    let queue = "storage.default.low";
    site.register("before", r#"{"task":"ping"}"#, queue).await;
    let client = site.bus.client();
    let newest = r#"{"id":"newest","task":"ping"}"#;
    client.request(queue, newest.into()).await.unwrap();
    let subject = "virtbus.jobs.cancel";
    let answer = json!({"outcome": "cancelled"});
    let (asks, said) = asked(&site, "cancel last", subject, answer).await;
    assert_eq!(asks["id"], "newest");
    said.ended(0);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_with_a_hint() {
    let said = run("nats://127.0.0.1:1", "list --json").await.ended(6);
    assert_eq!(code(&said.err), "unreachable");
    let text = run("nats://127.0.0.1:1", "list").await.ended(6);
    assert!(
        text.err.starts_with("error: ") && text.err.contains("\nhint: "),
        "{text:?}"
    );
}

#[tokio::test]
async fn a_server_that_was_not_set_up_is_told_with_a_hint() {
    let server = virtbus_testbed::Server::dev().await;
    let said = run(&server.url, "list").await.ended(1);
    assert!(said.err.contains("virtbus setup"), "{said:?}");
}

#[tokio::test]
async fn core_is_asked_to_cancel_and_its_answer_is_the_exit_code() {
    use futures_util::StreamExt as _;
    let site = Site::start().await;
    site.register("c-1", r#"{"task":"ping"}"#, "storage.default.low")
        .await;
    let client = site.bus.client().clone();
    let mut asked = client.subscribe("virtbus.jobs.cancel").await.unwrap();
    client.flush().await.unwrap();
    tokio::spawn(async move {
        for outcome in ["cancelled", "too_late"] {
            let request = asked.next().await.unwrap();
            let body: Value = serde_json::from_slice(&request.payload).unwrap();
            assert_eq!(body["id"], "c-1");
            let answer = json!({"outcome": outcome}).to_string();
            let reply = request.reply.unwrap();
            client.publish(reply, answer.into()).await.unwrap();
        }
    });
    site.run("cancel c-1").await.ended(0);
    let late = site.run("cancel c-1 --json").await.ended(4).json();
    assert_eq!(
        late,
        json!({"jobs": [{"id": "c-1", "outcome": "too_late"}]})
    );
}

#[tokio::test]
async fn help_and_completion_need_no_server() {
    let said = run("nats://127.0.0.1:1", "--help").await.ended(0);
    assert!(
        said.out.contains("Exit codes:") && said.out.contains("doctor"),
        "{said:?}"
    );
    let said = run("nats://127.0.0.1:1", "completion bash").await.ended(0);
    assert!(said.out.contains("_virtbus"), "{said:?}");
}
