//! What is served besides the websocket.

use crate::{
    bus::TestBus,
    service::{Service, token},
};

#[tokio::test]
async fn the_console_may_load_nothing_from_elsewhere() {
    let bus = TestBus::start().await;
    let service = Service::start(&bus, "").await;
    for (path, kind) in [
        ("/", "text/html"),
        ("/console.js", "text/javascript"),
        ("/link.js", "text/javascript"),
        ("/store.js", "text/javascript"),
        ("/console.css", "text/css"),
    ] {
        let (status, answer) = service.get(path, None).await.unwrap();
        assert_eq!(status, 200, "{path}");
        let answer = answer.to_lowercase();
        assert!(
            answer.contains(&format!("content-type: {kind}")),
            "{answer:.400}"
        );
        assert!(answer.contains("content-security-policy: default-src 'none';"));
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        for foreign in [
            "http://", "https://", "//cdn", "<script>", "onclick=", "style=\"",
        ] {
            let body = body.replace("http://www.w3.org/2000/svg", "");
            assert!(!body.contains(foreign), "{foreign} in {path}");
        }
    }
}

#[tokio::test]
async fn only_health_and_the_console_are_for_everyone() {
    let bus = TestBus::start().await;
    let service = Service::start(&bus, "").await;
    let own = token("alice", "jobs:read:own");
    let admin = token("root", "admin");
    for (path, token, expected) in [
        ("/livez", None, 200),
        ("/readyz", None, 200),
        ("/metrics", None, 401),
        ("/metrics", Some("nonsense"), 401),
        ("/metrics", Some(own.as_str()), 403),
        ("/metrics", Some(admin.as_str()), 200),
        ("/v1/nothing", Some(admin.as_str()), 404),
    ] {
        let (status, answer) = service.get(path, token).await.unwrap();
        assert_eq!(status, expected, "{path}: {answer}");
    }
    let (_, metrics) = service.get("/metrics", Some(&admin)).await.unwrap();
    assert!(metrics.contains("virtbus_build_info{version="), "{metrics}");
    assert!(service.pid_file().is_some());
}
