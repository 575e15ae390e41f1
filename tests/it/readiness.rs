//! A service says that it isn't ready, and why, instead of doing what it can't.

use serde_json::json;
use virtbus_testbed::until;
use virtbus_tests::http::{self, Answer};
use virtbus_tests::{Service, Stack};

#[tokio::test]
async fn a_storage_service_whose_pool_nobody_registered_says_so_and_serves_it_once_it_is() {
    let stack = Stack::start().await;
    let bus = stack.bus().await;
    stack.stop(Service::Storage).await;
    let root = stack.folder().join("spare");
    let settings = [
        ("VIRTBUS__POOLS__SPARE__ROOT", root.to_str().unwrap()),
        ("VIRTBUS__POOLS__SPARE__CREATE", "true"),
    ];
    stack.start_again_with(Service::Storage, &settings);
    let server = &stack.ready.transfer;
    let answer = once(server, |answer| {
        answer.status == 503 && answer.body.contains("spare")
    })
    .await;
    assert!(answer.body.contains("\"ready\":false"), "{}", answer.body);
    assert_eq!(
        http::get(server, "/livez").await.unwrap().status,
        200,
        "it's up all the same"
    );

    // Nobody made anything for it.
    let stream = bus.jetstream.get_stream("STORAGE").await.unwrap();
    assert!(stream.consumer_info("storage_spare_high").await.is_err());
    bus.ask("virtbus.pools.register", &json!({"pool": "spare"}))
        .await
        .unwrap();
    assert!(
        stream.consumer_info("storage_spare_high").await.is_ok(),
        "there when it answers"
    );
    once(server, |answer| answer.status == 200).await;
    bus.succeed(
        "storage.spare.high",
        "create_disk",
        json!({"disk": "s1", "size": 512}),
    )
    .await;
    assert!(root.join("disks/s1.qcow2").exists());
    bus.ping("storage.default.high").await;
    bus.ping("storage.default_spare.low").await;
}

async fn once(server: &str, fits: impl Fn(&Answer) -> bool) -> Answer {
    until("the answer of /readyz", async || {
        match http::get(server, "/readyz").await {
            Ok(answer) if fits(&answer) => Ok(answer),
            other => Err(other),
        }
    })
    .await
}

#[tokio::test]
async fn every_service_answers_for_its_health() {
    let stack = crate::shared().await;
    for server in [&stack.ready.http, &stack.ready.transfer] {
        for path in ["/livez", "/readyz"] {
            // The storage service was just started anew, with a tool that is watched.
            until(&format!("{server}{path}"), async || {
                match http::get(server, path).await {
                    Ok(answer) if answer.status == 200 => Ok(()),
                    other => Err(other),
                }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_wrong_configuration_ends_with_64_and_names_each_field() {
    let stack = crate::shared().await;
    let text = "[nats]\nurl = \"nats://127.0.0.1:1\"\n[pools.Bad]\nrut = \"x\"\n";
    let config = stack.folder().join("wrong.toml");
    std::fs::write(&config, text).unwrap();
    let mut command = tokio::process::Command::new(&stack.ready.bin[&Service::Storage]);
    command.arg("--config").arg(&config);
    let ended = virtbus_tests::cli::run(command).await;
    assert_eq!(ended.code, 64, "{ended:?}");
    let said = format!("{}{}", ended.out, ended.err);
    assert!(said.contains("pools"), "{said}");
}

#[tokio::test]
async fn a_service_that_cannot_reach_the_server_ends_with_69() {
    let stack = crate::shared().await;
    let mut command = tokio::process::Command::new(&stack.ready.bin[&Service::Feedback]);
    command
        .arg("--config")
        .arg(&stack.ready.config[&Service::Feedback]);
    // Nobody is given this port.
    command.env("VIRTBUS__NATS__URL", "nats://127.0.0.1:1");
    command.env("VIRTBUS__HTTP__LISTEN", "127.0.0.1:0");
    command.env("VIRTBUS__PID_FILE", stack.folder().join("other.pid"));
    let ended = virtbus_tests::cli::run(command).await;
    assert_eq!(ended.code, 69, "{ended:?}");
}
