//! `virtbus` on a terminal and in scripts.

use crate::shared;
use serde_json::json;
use virtbus_tests::cli::virtbus;
use virtbus_tests::ready;
use virtbus_tests::state_of;

/// Where no server is: nobody is given this port.
const NOBODY: &str = "nats://127.0.0.1:1";

#[tokio::test]
async fn submit_waits_and_its_exit_code_tells_how_it_ended() {
    let stack = shared().await;
    let create = [
        "submit",
        "create_disk",
        "-p",
        "disk=cli1",
        "-p",
        "size=1MiB",
        "--wait",
    ];
    let ended = virtbus(&stack, &create).await.ok();
    assert!(ended.out.contains("succeeded"), "{ended:?}");
    let fails = [
        "submit",
        "ping",
        "-p",
        "fail=true",
        "--attempts",
        "1",
        "--wait",
    ];
    assert_eq!(virtbus(&stack, &fails).await.code, 10, "a job that failed");
    let late = [
        "submit",
        "ping",
        "-p",
        "sleep_ms=60000",
        "--id",
        "cli-late",
        "--wait",
        "--wait-timeout",
        "1s",
    ];
    assert_eq!(virtbus(&stack, &late).await.code, 7, "not over in time");
    virtbus(&stack, &["cancel", "cli-late"]).await.ok();
}

#[tokio::test]
async fn submit_prints_the_id_and_the_job_goes_on() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let ended = virtbus(
        &stack,
        &["submit", "ping", "--user", "carol", "--label", "a=b"],
    )
    .await
    .ok();
    let record = bus.end_of(ended.out.trim()).await;
    assert_eq!(state_of(&record), "succeeded", "{record:#}");
    assert_eq!(
        (&record["user"], &record["labels"]),
        (&json!("carol"), &json!({"a": "b"}))
    );
    let words = [
        "submit",
        "ping",
        "--id",
        "cli-json",
        "--priority",
        "low",
        "--json",
    ];
    let told = virtbus(&stack, &words).await.ok().json();
    assert_eq!(
        (&told["id"], &told["queue"]),
        (&json!("cli-json"), &json!("storage.default.low"))
    );
    bus.end_of("cli-json").await;
}

#[tokio::test]
async fn submit_watches_a_job_with_its_progress() {
    let stack = shared().await;
    let create = [
        "submit",
        "create_disk",
        "-p",
        "disk=cli2",
        "-p",
        "size=8MiB",
        "--watch",
    ];
    virtbus(&stack, &create).await.ok();
    let words = [
        "submit",
        "convert",
        "-p",
        "disk=cli2",
        "-p",
        "to=cli3",
        "-p",
        "format=raw",
    ];
    // It begins when it's surely being watched: what was over by then would be told as it ended.
    let later = ["--not-before", "5s", "--watch", "--json"];
    let words = [words.as_slice(), &later].concat();
    let lines = virtbus(&stack, &words).await.ok().json_lines();
    assert_eq!(lines[0]["event"], "submitted", "{lines:#?}");
    let text = json!(lines).to_string();
    assert!(
        text.contains("running") && text.contains("succeeded"),
        "{text}"
    );
}

#[tokio::test]
async fn what_would_be_refused_is_not_published() {
    let stack = shared().await;
    let cases: [&[&str]; 5] = [
        &["submit", "make_coffee"],
        &["submit", "resize", "-p", "disk=cli1"],
        &["submit", "resize", "-p", "disk=../x", "-p", "size=1GiB"],
        &["submit", "create_disk", "-p", "disk=cli9", "-p", "size=1G"],
        &["submit", "ping", "--id", "storage-1"],
    ];
    for words in cases {
        let ended = virtbus(&stack, words).await;
        assert_eq!(ended.code, 2, "{words:?}: {ended:?}");
        assert!(ended.out.is_empty() && !ended.err.is_empty(), "{ended:?}");
    }
    let words = [
        "submit",
        "resize",
        "-p",
        "disk=cli1",
        "-p",
        "size=-1",
        "--json",
    ];
    let ended = virtbus(&stack, &words).await;
    assert_eq!(ended.code, 2);
    let text = if ended.out.is_empty() {
        &ended.err
    } else {
        &ended.out
    };
    let error: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(error["error"]["code"], "job.invalid_params", "{error}");
}

#[tokio::test]
async fn list_and_show_tell_what_happened() {
    let stack = shared().await;
    let words = [
        "submit",
        "ping",
        "--id",
        "cli-shown",
        "--label",
        "test=list",
        "--wait",
    ];
    virtbus(&stack, &words).await.ok();
    let words = ["list", "--label", "test=list", "--json"];
    let list = virtbus(&stack, &words).await.ok().json();
    let rows = list["jobs"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{list:#}");
    assert_eq!(
        (&rows[0]["id"], &rows[0]["state"]),
        (&json!("cli-shown"), &json!("succeeded"))
    );
    let table = virtbus(&stack, &["list", "--label", "test=list"])
        .await
        .ok();
    assert!(
        table.out.contains("cli-shown") && table.out.contains("succeeded"),
        "{table:?}"
    );
    let shown = virtbus(&stack, &["show", "cli-shown"]).await.ok();
    assert!(
        shown.out.contains("succeeded") && shown.out.contains("ping"),
        "{shown:?}"
    );
    let record = virtbus(&stack, &["show", "cli-shown", "--json"])
        .await
        .ok()
        .json();
    assert_eq!(record, stack.bus().await.record("cli-shown").await.unwrap());
    assert_eq!(
        virtbus(&stack, &["show", "no-such-job-here"]).await.code,
        3,
        "not found"
    );
    let watched = virtbus(&stack, &["watch", "cli-shown"]).await.ok();
    assert!(
        watched.out.contains("succeeded") || watched.err.contains("succeeded"),
        "{watched:?}"
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_exit_code_of_its_own() {
    let stack = shared().await;
    let mut command = tokio::process::Command::new(ready::virtbus());
    command.args(["list", "--server", NOBODY]);
    let ended = virtbus_tests::cli::run(command).await;
    assert_eq!(ended.code, 6, "{ended:?}");
    assert_eq!(
        virtbus(&stack, &["frobnicate"]).await.code,
        2,
        "wrong arguments"
    );
}

#[tokio::test]
async fn setup_finds_nothing_to_change_on_what_up_made() {
    let stack = shared().await;
    let ended = virtbus(&stack, &["setup", "--dry-run", "--json"])
        .await
        .ok();
    let told = ended.json();
    assert!(told.is_object() || told.is_array(), "{told}");
    virtbus(&stack, &["setup"]).await.ok();
    stack.bus().await.ping("storage.default.high").await;
}

#[tokio::test]
async fn shells_get_their_completion_and_people_the_exit_codes() {
    let stack = shared().await;
    for shell in ["bash", "zsh", "fish"] {
        let script = virtbus(&stack, &["completion", shell]).await.ok();
        assert!(script.out.contains("submit"), "{shell}");
    }
    let help = virtbus(&stack, &["--help"]).await.ok();
    assert!(help.out.contains("Exit codes"), "{}", help.out);
    let version = virtbus(&stack, &["--version"]).await.ok();
    assert!(version.out.starts_with("virtbus "), "{version:?}");
}
