//! Bad parameters: refused by name, before any tool sees them, and the jobs behind them go on.

use crate::bad_input::{fails, goes_on};
use crate::shared;
use serde_json::{Value, json};
use virtbus_tests::{code_of, field_of, state_of};

const HIGH: &str = "storage.default.high";
const DEFAULT: &str = "storage.default.default";

#[tokio::test]
async fn a_parameter_that_is_unknown_missing_or_ill_typed_is_named() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let wrong = [
        (
            "resize",
            json!({"disk": "bad1", "size": 512, "sizes": 1}),
            "sizes",
        ),
        ("resize", json!({"disk": "bad1"}), "size"),
        ("resize", json!({"size": 512}), "disk"),
        ("resize", json!({"disk": 7, "size": 512}), "disk"),
        ("resize", json!({"disk": "bad1", "size": true}), "size"),
        (
            "resize",
            json!({"disk": "bad1", "size": 512, "shrink": "yes"}),
            "shrink",
        ),
        ("create_disk", json!({"disk": "bad1"}), "size"),
        (
            "create_disk",
            json!({"disk": "bad1", "size": 512, "format": "qcow3"}),
            "format",
        ),
        (
            "create_disk",
            json!({"disk": "bad1", "size": 512, "path": "/etc/passwd"}),
            "path",
        ),
        (
            "convert",
            json!({"disk": "bad1", "to": "bad2", "format": "iso"}),
            "format",
        ),
        (
            "convert",
            json!({"disk": "bad1", "to": "a/b", "format": "raw"}),
            "to",
        ),
        (
            "delete_disk",
            json!({"disk": "bad1", "mode": "shred"}),
            "mode",
        ),
        ("ping", json!({"sleep_ms": -1}), "sleep_ms"),
    ];
    for (task, params, field) in wrong {
        let record = bus.run(DEFAULT, task, params).await;
        fails(&stack, &record, "job.invalid_params");
        assert_eq!(field_of(&record), field, "{record:#}");
    }
    for params in [json!([]), json!("disk"), json!(7)] {
        let record = bus.run(DEFAULT, "resize", params).await;
        fails(&stack, &record, "job.invalid_params");
    }
    goes_on(&stack, &bus).await;
}

#[tokio::test]
async fn a_size_that_is_none_is_refused_before_any_tool() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let sizes = [
        json!(0),
        json!(-1),
        json!(-1_073_741_824_i64),
        json!(1.5),
        json!(1e300),
        json!(18_446_744_073_709_551_615_u64),
        json!("-1"),
        json!("0"),
        json!("1G "),
        json!("1G"),
        json!(" 1GiB"),
        json!("1GiB\n"),
        json!("+1GiB"),
        json!("0x10"),
        json!("99999999999PiB"),
        json!(""),
        json!([512]),
    ];
    for size in sizes {
        let record = bus
            .run(
                HIGH,
                "create_disk",
                json!({"disk": "bad-size", "size": size}),
            )
            .await;
        fails(&stack, &record, "job.invalid_params");
        assert_eq!(field_of(&record), "size", "{record:#}");
    }
    assert_eq!(
        bus.disk("bad-size").await,
        None,
        "the catalogue never heard of it"
    );
    assert!(
        !stack
            .tool_words()
            .iter()
            .any(|word| word.contains("bad-size"))
    );
    goes_on(&stack, &bus).await;
}

#[tokio::test]
async fn a_disk_above_the_limit_of_its_pool_is_refused() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let pool = bus
        .ask("virtbus.pools.get", &json!({"pool": "default"}))
        .await
        .unwrap();
    let mut limited = pool.clone();
    limited["size_max"] = json!("64GiB");
    bus.ask("virtbus.pools.register", &limited).await.unwrap();
    bus.succeed(
        HIGH,
        "create_disk",
        json!({"disk": "bad-limit", "size": "64GiB"}),
    )
    .await;
    let above = 64 * (1_u64 << 30) + 512;
    let record = bus
        .run(
            HIGH,
            "create_disk",
            json!({"disk": "bad-above", "size": above}),
        )
        .await;
    fails_at_work(&record, "image.too_large");
    let record = bus
        .run(
            DEFAULT,
            "resize",
            json!({"disk": "bad-limit", "size": above}),
        )
        .await;
    fails_at_work(&record, "image.too_large");
    assert_eq!(bus.disk("bad-above").await, None);
    assert_eq!(bus.disk("bad-limit").await.unwrap()["state"], "ready");
    let words = stack.tool_words();
    assert!(
        !words.iter().any(|word| word.contains(&above.to_string())),
        "{words:?}"
    );
    goes_on(&stack, &bus).await;
}

/// What only the pool's record tells is found when the work begins.
fn fails_at_work(record: &Value, code: &str) {
    assert_eq!(
        (state_of(record), code_of(record)),
        ("failed", code),
        "{record:#}"
    );
}

#[tokio::test]
async fn a_disk_that_is_no_name_never_reaches_a_tool() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let long = "evil".repeat(75);
    let names = [
        "evil/1",
        "/etc/evil",
        "../evil",
        "..",
        ".",
        "",
        "-evil",
        "--evil",
        "evil\n",
        "evil\0x",
        "evil 1",
        "evil.raw",
        "json:{\"file\":\"evil\"}",
        "nbd://evil",
        &long,
    ];
    for name in names {
        for (task, params, field) in [
            ("create_disk", json!({"disk": name, "size": 512}), "disk"),
            (
                "create_disk",
                json!({"disk": "bad3", "size": 512, "backing": name}),
                "backing",
            ),
            ("delete_disk", json!({"disk": name}), "disk"),
        ] {
            let record = bus.run(DEFAULT, task, params).await;
            fails(&stack, &record, "job.invalid_params");
            assert_eq!(field_of(&record), field, "{record:#}");
        }
    }
    let words = stack.tool_words();
    assert!(!words.is_empty(), "the words of tools are seen at all");
    assert!(!words.iter().any(|word| word.contains("evil")), "{words:?}");
    goes_on(&stack, &bus).await;
}
