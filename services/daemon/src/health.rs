//! Health and metrics over HTTP: `/livez`, `/readyz`, `/metrics`.
//!
//! `/livez` says that the process answers. `/readyz` says whether it can do its work: every part
//! of a service keeps a named check, and while one of them fails the answer is 503 and names it.

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, metrics::info::Info, registry::Registry};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The checks of a service, shared by its parts.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    checks: Arc<Mutex<BTreeMap<String, Result<(), String>>>>,
}

/// The answer of `/readyz`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether no check fails.
    pub ready: bool,
    /// All checks, by name.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Such as `nats`, or `pool default`.
    pub name: String,
    /// Whether it's well.
    pub ok: bool,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Readiness {
    /// Says how a part is, now and until it says otherwise.
    pub fn set(&self, name: impl Into<String>, state: Result<(), impl ToString>) {
        let state = state.map_err(|reason| reason.to_string());
        let name = name.into();
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if checks.get(&name) == Some(&state) {
            return;
        }
        match &state {
            Ok(()) => tracing::info!(check = name, "well"),
            Err(reason) => tracing::warn!(check = name, reason, "not ready"),
        }
        checks.insert(name, state);
    }

    /// Forgets a part that is no more.
    pub fn remove(&self, name: &str) {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.remove(name);
    }

    /// All checks as they are. Without any check nothing is ready.
    #[must_use]
    pub fn report(&self) -> Report {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = !checks.is_empty() && checks.values().all(Result::is_ok);
        let checks = checks.iter().map(|(name, state)| Check {
            name: name.clone(),
            ok: state.is_ok(),
            reason: state.as_ref().err().cloned(),
        });
        Report {
            ready,
            checks: checks.collect(),
        }
    }
}

/// The metrics of a service, shared by its parts.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<RwLock<Registry>>,
}

impl Metrics {
    /// No metrics but `virtbus_build_info`.
    #[must_use]
    pub fn new(version: &'static str, commit: &'static str) -> Self {
        let mut registry = Registry::default();
        let build = Info::new(vec![("version", version), ("commit", commit)]);
        registry.register("virtbus_build", "What is running", build);
        Self {
            registry: Arc::new(RwLock::new(registry)),
        }
    }

    /// Adds metrics. Counters get `_total` after their name by themselves.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        let mut registry = self
            .registry
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        add(&mut registry);
    }

    /// All of them as OpenMetrics text.
    ///
    /// # Errors
    /// When a metric can't be written.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// `/livez` and `/readyz`, which anyone may see.
pub fn probes(ready: &Readiness) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .with_state(ready.clone())
}

/// `/metrics` alone: whoever listens asks for a token first.
pub fn metrics_route(metrics: &Metrics) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .with_state(metrics.clone())
}

async fn readyz(State(ready): State<Readiness>) -> Response {
    let report = ready.report();
    let status = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(report)).into_response()
}

async fn metrics_text(State(metrics): State<Metrics>) -> Response {
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;

    const BODY_MAX: usize = 64 << 10;

    #[tokio::test]
    async fn readyz_names_the_check_that_fails() {
        let ready = Readiness::default();
        let status = |response: &Response| response.status().as_u16();
        assert_eq!(status(&readyz(State(ready.clone())).await), 503);
        ready.set("nats", Ok::<(), String>(()));
        assert_eq!(status(&readyz(State(ready.clone())).await), 200);
        ready.set("pool default", Err("not registered"));
        let response = readyz(State(ready.clone())).await;
        assert_eq!(status(&response), 503);
        let body = to_bytes(response.into_body(), BODY_MAX).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let expected = serde_json::json!({"ready": false, "checks": [
            {"name": "nats", "ok": true},
            {"name": "pool default", "ok": false, "reason": "not registered"},
        ]});
        assert_eq!(body, expected);
        ready.remove("pool default");
        assert!(ready.report().ready);
    }

    #[test]
    fn metrics_say_what_is_running() {
        let text = Metrics::new("1.2.3", "abc").encode().unwrap();
        let line = r#"virtbus_build_info{version="1.2.3",commit="abc"} 1"#;
        assert!(text.contains(line), "{text}");
    }
}
