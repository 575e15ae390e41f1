//! What is served over HTTP: the console, the websocket, health, metrics.
//!
//! Everything but the console's own files, `/livez` and `/readyz` asks for a token: the websocket
//! in its first frame, all else as `Authorization: Bearer`.

use crate::{app::App, console, session::MESSAGE_BYTES_MAX, socket};
use axum::{
    Json, Router,
    extract::{Request, State, WebSocketUpgrade},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::any,
};
use std::sync::Arc;
use virtbus_daemon::{Metrics, Readiness, health};
use virtbus_wire::{
    Code, JobError,
    auth::{Claims, Scope},
    control::{Refusal, status},
    frame::SUBPROTOCOL,
};

/// A websocket's buffers: with the defaults an idle client costs fifteen times as much.
const BUFFER_BYTES: usize = 4096;

/// Everything.
pub(crate) fn router(app: &Arc<App>, ready: &Readiness, metrics: &Metrics) -> Router {
    let guarded = health::metrics_route(metrics)
        .layer(middleware::from_fn_with_state(app.clone(), only_overseers));
    Router::new()
        .route("/v1/ws", any(websocket))
        .with_state(app.clone())
        .merge(guarded)
        .merge(health::probes(ready))
        .merge(console::router())
}

async fn websocket(State(app): State<Arc<App>>, upgrade: WebSocketUpgrade) -> Response {
    let Ok(place) = app.places.clone().try_acquire_owned() else {
        let busy = [(header::RETRY_AFTER, "5")];
        return (StatusCode::SERVICE_UNAVAILABLE, busy).into_response();
    };
    upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(move |socket| {
            let sessions = app.sessions.clone();
            // On the heap: axum's own future would hold it several times.
            sessions.track_future(Box::pin(async move {
                socket::serve(socket, app).await;
                drop(place);
            }))
        })
}

/// Lets those through who see everything.
async fn only_overseers(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match bearer(&app, request.headers()) {
        Ok(claims) if claims.scope.allows(Scope::JobsReadAll) => next.run(request).await,
        Ok(_) => refuse(JobError::new(
            Code::AuthForbidden,
            format!("this needs {}", Scope::JobsReadAll),
        )),
        Err(error) => refuse(error),
    }
}

/// Whom the request's token names.
fn bearer(app: &App, headers: &HeaderMap) -> Result<Claims, JobError> {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let Some(token) = token else {
        return Err(JobError::new(Code::AuthRequired, "a token is needed"));
    };
    let verified = app.verifier.verify(token);
    verified.map_err(|error| JobError::new(Code::AuthRequired, error.to_string()))
}

fn refuse(error: JobError) -> Response {
    let number = StatusCode::from_u16(status(error.code)).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = (number, Json(Refusal { error })).into_response();
    if number == StatusCode::UNAUTHORIZED {
        let how = header::HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
    }
    response
}
