//! Ids and names that are options, paths or addresses to somebody, or no text at all.

use super::{AT_ONCE, LOW, PAIR, siege::Siege};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use virtbus_wire::{Code, state::JobState};

const NAMES: [&str; 16] = [
    "--help",
    "-f",
    "",
    ".",
    "..",
    "../d1",
    "/etc/passwd",
    "a/b",
    "a:b",
    "json:{}",
    "nbd:127.0.0.1:1",
    "fat:/etc",
    "d1,backing_file=x",
    "d1\nd2",
    "\u{1b}[2J",
    "d\0",
];

/// Every parameter of a task that is a name.
fn tasks(name: &str) -> [(&'static str, (&'static str, Value)); 12] {
    let on = |task, params| (LOW, (task, params));
    [
        on("create_disk", json!({ "disk": name, "size": "1MiB" })),
        on("create_disk", json!({ "disk": "new", "backing": name })),
        on(
            "convert",
            json!({ "disk": "spare", "to": name, "format": "raw" }),
        ),
        on(
            "create_snapshot",
            json!({ "disk": "spare", "snapshot": name }),
        ),
        on(
            "create_snapshot",
            json!({ "disk": "spare", "overlay": name }),
        ),
        on("create_snapshot", json!({ "disk": "spare", "base": name })),
        on("rebase", json!({ "disk": "spare", "backing": name })),
        on("delete_media", json!({ "media": name })),
        on(
            "adopt_disk",
            json!({ "disk": "new", "format": "raw", "file": name }),
        ),
        on(
            "adopt_disk",
            json!({ "disk": "new", "format": "raw", "backing": name }),
        ),
        on(
            "adopt_media",
            json!({ "media": name, "format": "iso", "file": "x" }),
        ),
        (
            PAIR,
            ("move_disk", json!({ "disk": "spare", "pool": name })),
        ),
    ]
}

pub(super) async fn are_refused(siege: &Siege) {
    let long = "x".repeat(300);
    let names = NAMES.into_iter().chain(["ä", &long]).enumerate();
    let all = names.flat_map(|(index, name)| {
        let tasks = tasks(name).into_iter().enumerate();
        tasks.map(move |(number, task)| (format!("name-{index}-{number}"), task))
    });
    let refused = all.map(async |(id, (subject, task))| {
        let told = format!("{} {}", task.0, task.1);
        let code = siege.refused(&id, subject, task).await;
        assert_eq!(code, Code::JobInvalidParams, "{told}");
    });
    let refused = stream::iter(refused).buffer_unordered(AT_ONCE);
    refused.collect::<Vec<()>>().await;
    are_no_text(siege).await;
}

/// What isn't text is no job, wherever in it that is.
async fn are_no_text(siege: &Siege) {
    for payload in [
        &b"{\"id\":\"u1\",\"task\":\"create_disk\",\"params\":{\"disk\":\"a\xff\",\"size\":4096}}"[..],
        b"{\"id\":\"u\xc3\x28\",\"task\":\"ping\"}",
        b"{\"id\":\"u3\",\"task\":\"create_disk\",\"params\":{\"disk\":\"a\xed\xa0\x80\",\"size\":4096}}",
    ] {
        let sent = siege.site.client.request(LOW, payload.into()).await.unwrap();
        let taken: Value = serde_json::from_slice(&sent.payload).unwrap();
        let record = siege.site.ended(&format!("storage-{}", taken["seq"])).await;
        let JobState::Failed(_, error) = record.state else {
            panic!("{:?}", record.state);
        };
        assert_eq!(error.code, Code::JobMalformed);
    }
}
