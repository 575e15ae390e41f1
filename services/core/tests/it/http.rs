//! What core says over HTTP.

use crate::stack::{Stack, until};

#[tokio::test]
async fn metrics_are_for_those_with_a_token_and_health_is_for_everyone() {
    let (_stack, core) = Stack::start().await;
    for (path, expected) in [
        ("/livez", "HTTP/1.1 200"),
        ("/readyz", "HTTP/1.1 200"),
        ("/metrics", "HTTP/1.1 401"),
    ] {
        // Ready again within a moment, should the machine have kept it from its server.
        until(path, async || {
            let said = core.get(path).await;
            match said.starts_with(expected) {
                true => Ok(()),
                false => Err(said),
            }
        })
        .await;
    }
}
