//! What core says over HTTP.

use crate::stack::Stack;

#[tokio::test]
async fn metrics_are_for_those_with_a_token_and_health_is_for_everyone() {
    let (_stack, core) = Stack::start().await;
    for (path, expected) in [
        ("/livez", "HTTP/1.1 200"),
        ("/readyz", "HTTP/1.1 200"),
        ("/metrics", "HTTP/1.1 401"),
    ] {
        let said = core.get(path).await;
        assert!(said.starts_with(expected), "{path}: {said}");
    }
}
