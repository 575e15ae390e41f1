//! What is served over HTTP: the console, the websocket, health, metrics.
//!
//! Everything but the console's own files, `/livez` and `/readyz` asks for a token: the websocket
//! in its first frame, all else as `Authorization: Bearer`.

use crate::{app::App, console, session::MESSAGE_BYTES_MAX, socket};
use axum::{
    Router,
    extract::{State, WebSocketUpgrade},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use std::sync::Arc;
use virtbus_daemon::{Metrics, Readiness, auth::for_overseers, health};
use virtbus_wire::frame::SUBPROTOCOL;

/// A websocket's buffers: with the defaults an idle client costs fifteen times as much.
const BUFFER_BYTES: usize = 4096;

/// Everything.
pub(crate) fn router(app: &Arc<App>, ready: &Readiness, metrics: &Metrics) -> Router {
    let guarded = for_overseers(health::metrics_route(metrics), &app.verifier);
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
