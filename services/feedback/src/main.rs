//! The feedback service: what happens to jobs, live, for browsers and other programs.
//!
//! One task follows the records of all jobs ([`view`]); each websocket is a pure state machine
//! ([`session`]) with a task that acts for it ([`socket`]). What people ask for is passed on to
//! the core service after a look at their token ([`command`]).

mod app;
mod command;
mod config;
mod console;
mod core_queue;
mod http;
mod session;
mod sight;
mod socket;
mod view;

use app::App;
use config::Config;
use core_queue::CoreQueue;
use std::{collections::BTreeMap, process::ExitCode, time::Duration};
use tokio::time::timeout;
use view::View;
use virtbus_bus::Bus;
use virtbus_daemon::{Daemon, Fatal, Service};
use virtbus_wire::Queue;
use virtbus_worker::Setup;

const SERVICE: Service = Service {
    name: env!("CARGO_BIN_NAME"),
    short: "feedback",
    version: env!("CARGO_PKG_VERSION"),
};

/// How long websockets may take to say goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    virtbus_daemon::run(SERVICE, serve)
}

async fn serve(daemon: Daemon<Config>) -> Result<(), Fatal> {
    let settings = daemon.settings.clone();
    let verifier = daemon.verifier.clone();
    let keyless = "no key to check tokens with: set auth.key_file";
    let has_key = verifier.has_key().then_some(()).ok_or(keyless);
    daemon.ready.set("auth", has_key);

    let bus = daemon.connect().await?;
    let (view, desk) = View::new(settings.view, settings.limits);
    view::spawn(&daemon, &bus, desk);
    let app = App::new(
        view.clone(),
        bus.clone(),
        verifier,
        settings.limits,
        daemon.stop.clone(),
    );
    virtbus_worker::expect_queues(&daemon.ready, &[Queue::Core]);
    daemon
        .listen(http::router(&app, &daemon.ready, &daemon.metrics))
        .await?;

    let worked = virtbus_worker::serve(
        setup(&daemon, &bus),
        CoreQueue { view },
        daemon.stop.clone(),
    )
    .await;
    // Also when the worker can't go on: then nothing here can.
    daemon.stop.cancel();
    app.sessions.close();
    if timeout(GOODBYE_WITHIN, app.sessions.wait()).await.is_err() {
        tracing::warn!(left = app.sessions.len(), "not all websockets have ended");
    }
    bus.close().await;
    worked.map_err(Fatal::from)
}

fn setup(daemon: &Daemon<Config>, bus: &Bus) -> Setup {
    let version = (SERVICE.name.to_owned(), SERVICE.version.to_owned());
    Setup {
        bus: bus.clone(),
        identity: daemon.identity.clone(),
        queues: vec![Queue::Core],
        pools: Vec::new(),
        work: daemon.settings.work.clone(),
        versions: BTreeMap::from([version]),
        state_dir: daemon.common.state_dir.clone(),
        ready: daemon.ready.clone(),
        metrics: daemon.metrics.clone(),
    }
}
