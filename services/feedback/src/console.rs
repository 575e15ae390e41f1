//! The console's own files, built into the program.
//!
//! They come with a policy that lets the page load nothing from elsewhere and run no script but
//! its own; the token stays in the page.

use axum::{
    Router,
    http::{HeaderName, header},
    response::IntoResponse,
    routing::get,
};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// `/` and what it needs.
pub(crate) fn router() -> Router {
    const FILES: [(&str, &str, &str); 5] = [
        ("/", HTML, include_str!("../console/index.html")),
        (
            "/console.css",
            STYLE,
            include_str!("../console/console.css"),
        ),
        ("/console.js", SCRIPT, include_str!("../console/console.js")),
        ("/link.js", SCRIPT, include_str!("../console/link.js")),
        ("/store.js", SCRIPT, include_str!("../console/store.js")),
    ];
    FILES
        .into_iter()
        .fold(Router::new(), |router, (path, kind, text)| {
            router.route(path, get(move || async move { file(kind, text) }))
        })
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the service has other files.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
