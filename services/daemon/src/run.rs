//! The life of a service process, from the command line to the exit code.

use crate::{
    args::{Args, Command, Look},
    auth::{Verifier, for_overseers},
    common::Common,
    config::{self, ConfigError, Loaded, Settings},
    connection,
    exit::{Exit, Fatal},
    health::{self, Metrics, Readiness},
    identity::Identity,
    log,
};
use axum::Router;
use camino::{Utf8Path, Utf8PathBuf};
use futures_util::FutureExt as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    future::Future, io::Write as _, net::SocketAddr, panic::AssertUnwindSafe, process::ExitCode,
    sync::Arc, time::Duration,
};
use tokio::{
    net::TcpListener,
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use virtbus_bus::Bus;

/// How long threads that still work may take at the very end.
const THREADS_GRACE: Duration = Duration::from_secs(2);
/// The check that fails once the service was asked to stop.
const STOPPING: &str = "stopping";

/// What a service is called.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// The program: `virtbus-storage`.
    pub name: &'static str,
    /// The first part of its default worker id: `storage`.
    pub short: &'static str,
    /// `env!("CARGO_PKG_VERSION")`
    pub version: &'static str,
}

impl Service {
    /// The commit it was built from, where the build knew it.
    #[must_use]
    pub fn commit(&self) -> &'static str {
        option_env!("VIRTBUS_COMMIT").unwrap_or("unknown")
    }

    pub(crate) fn full_version(&self) -> &'static str {
        match option_env!("VIRTBUS_COMMIT") {
            // Once per process: the command line's parser wants text that stays.
            Some(commit) => format!("{} ({commit})", self.version).leak(),
            None => self.version,
        }
    }
}

/// What a running service is given.
#[derive(Debug)]
pub struct Daemon<T> {
    /// What it's called.
    pub service: Service,
    /// Its own settings.
    pub settings: T,
    /// The settings all services have.
    pub common: Common,
    /// Who this process is.
    pub identity: Identity,
    /// Cancelled by the first SIGTERM or SIGINT. The second ends the process at once.
    pub stop: CancellationToken,
    /// The checks behind `/readyz`.
    pub ready: Readiness,
    /// The metrics behind `/metrics`.
    pub metrics: Metrics,
    /// Whose tokens are believed.
    pub verifier: Arc<Verifier>,
    /// Its parts, which end with it.
    pub parts: Parts,
}

/// The long-lived tasks of a service. One that panics ends the whole service: half a service
/// that looks alive is worse than none.
#[derive(Debug, Clone)]
pub struct Parts {
    tracker: TaskTracker,
    broken: mpsc::Sender<&'static str>,
}

impl Parts {
    /// Starts a part, which should end by itself soon after `stop`.
    pub fn spawn(&self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let broken = self.broken.clone();
        self.tracker.spawn(async move {
            if AssertUnwindSafe(part).catch_unwind().await.is_err() {
                // A full channel means that somebody else broke already.
                broken.try_send(name).ok();
            }
        });
    }

    /// Waits until all parts have ended.
    pub async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl<T> Daemon<T> {
    /// Connects to the messaging server; from now on the check `nats` says how the connection is.
    ///
    /// # Errors
    /// When a credential can't be read, or the server can't be reached or refuses us.
    pub async fn connect(&self) -> Result<Bus, Fatal> {
        let connected = Bus::connect(&self.common.nats, self.identity.worker.as_str()).await;
        let bus = connected?;
        let (ready, metrics) = (self.ready.clone(), self.metrics.clone());
        let following = connection::follow(bus.health(), ready, metrics, self.stop.clone());
        self.parts.spawn("nats health", following);
        Ok(bus)
    }

    /// `/livez` and `/readyz` for everyone, `/metrics` for those who see everything.
    pub fn router(&self) -> Router {
        let metrics = health::metrics_route(&self.metrics);
        health::probes(&self.ready).merge(for_overseers(metrics, &self.verifier))
    }

    /// Serves HTTP on `http.listen` until the service stops, and returns the address in use.
    ///
    /// # Errors
    /// When the address can't be had.
    pub async fn listen(&self, router: Router) -> Result<SocketAddr, Fatal> {
        let wanted = self.common.http.listen;
        let taken = |error| Fatal::config("http.listen", format!("{wanted}: {error}"));
        let listener = TcpListener::bind(wanted).await.map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        let stop = self.stop.clone();
        self.parts.spawn("http", async move {
            let served = axum::serve(listener, router)
                .with_graceful_shutdown(stop.cancelled_owned())
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the HTTP listener ended");
            }
        });
        tracing::info!(%address, "listening");
        Ok(address)
    }
}

/// Runs a service: its `main` in one call.
pub fn run<T, F, S>(service: Service, serve: F) -> ExitCode
where
    T: Settings,
    F: FnOnce(Daemon<T>) -> S,
    S: Future<Output = Result<(), Fatal>>,
{
    let args = match Args::read(&service) {
        Ok(args) => args,
        Err(said) => {
            // With standard output closed nobody is there to be told.
            drop(said.print());
            return if said.use_stderr() {
                Exit::Config
            } else {
                Exit::Stopped
            }
            .into();
        }
    };
    let exit = match config::load::<T>(args.config.as_deref(), variables()) {
        Ok(loaded) => match args.command {
            None => run_loaded(service, loaded, serve),
            Some(Command::Config { action }) => look(&loaded, action),
        },
        Err(error) => wrong(&error),
    };
    exit.into()
}

/// The same for a program whose command line is another one's, such as a test's: its environment
/// says everything.
pub fn run_by_environment<T, F, S>(service: Service, serve: F) -> ExitCode
where
    T: Settings,
    F: FnOnce(Daemon<T>) -> S,
    S: Future<Output = Result<(), Fatal>>,
{
    let exit = match config::load::<T>(None, variables()) {
        Ok(loaded) => run_loaded(service, loaded, serve),
        Err(error) => wrong(&error),
    };
    exit.into()
}

/// The environment. Variables that aren't text can't be ours.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}

fn wrong(error: &ConfigError) -> Exit {
    let mut out = std::io::stderr().lock();
    // With standard error closed the exit code has to do.
    drop(writeln!(out, "the configuration can't be used:"));
    for line in error.to_string().lines() {
        drop(writeln!(out, "  {line}"));
    }
    Exit::Config
}

fn look<T: Settings>(loaded: &Loaded<T>, action: Look) -> Exit {
    let text = match action {
        Look::Check => "the configuration is good\n".to_owned(),
        Look::Show => match config::show(loaded) {
            Ok(text) => text,
            Err(error) => return wrong(&error),
        },
    };
    // A reader that has gone away, such as `head`, has seen what it wanted.
    drop(std::io::stdout().write_all(text.as_bytes()));
    Exit::Stopped
}

fn run_loaded<T, F, S>(service: Service, loaded: Loaded<T>, serve: F) -> Exit
where
    F: FnOnce(Daemon<T>) -> S,
    S: Future<Output = Result<(), Fatal>>,
{
    let ended = start(service, loaded, serve);
    match ended {
        Ok(()) => {
            tracing::info!("stopped");
            Exit::Stopped
        }
        Err(fatal) => {
            // On standard error by itself, too, when logs could not be set up.
            tracing::error!(reason = %fatal, "can't go on");
            if !tracing::dispatcher::has_been_set() {
                drop(writeln!(std::io::stderr(), "{fatal}"));
            }
            fatal.exit()
        }
    }
}

fn start<T, F, S>(service: Service, loaded: Loaded<T>, serve: F) -> Result<(), Fatal>
where
    F: FnOnce(Daemon<T>) -> S,
    S: Future<Output = Result<(), Fatal>>,
{
    log::start(&loaded.common.log)?;
    raise_open_files();
    let _pid_file = loaded
        .common
        .pid_file
        .as_deref()
        .map(PidFile::write)
        .transpose()?;
    let bug = |error: std::io::Error| Fatal::Bug(error.to_string());
    let runtime = runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(bug)?;
    let ended = runtime.block_on(live(service, loaded, serve));
    // Tasks that are left are dropped here, and with them the tools they run.
    runtime.shutdown_timeout(THREADS_GRACE);
    ended
}

/// Lets the process have as many open files and connections as the system allows it: the usual
/// soft limit is a compatibility measure for programs that we are not.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = ?limit.current, "few files can be open at once");
    }
}

async fn live<T, F, S>(service: Service, loaded: Loaded<T>, serve: F) -> Result<(), Fatal>
where
    F: FnOnce(Daemon<T>) -> S,
    S: Future<Output = Result<(), Fatal>>,
{
    let mut signals = Signals::listen()?;
    let (broken, mut breaks) = mpsc::channel(1);
    let ready = Readiness::default();
    ready.set(connection::NATS, Err("not connected yet"));
    let daemon = Daemon {
        identity: Identity::new(loaded.common.worker.id.as_ref(), service.short),
        stop: CancellationToken::new(),
        ready: ready.clone(),
        metrics: Metrics::new(service.version, service.commit()),
        verifier: Arc::new(Verifier::new(&loaded.common.auth)?),
        parts: Parts {
            tracker: TaskTracker::new(),
            broken,
        },
        settings: loaded.own,
        common: loaded.common,
        service,
    };
    tracing::info!(
        program = service.name,
        version = service.version,
        worker = %daemon.identity.worker,
        boot = %daemon.identity.boot,
        "starting"
    );
    let stop = daemon.stop.clone();
    let mut serving = std::pin::pin!(AssertUnwindSafe(serve(daemon)).catch_unwind());
    loop {
        tokio::select! {
            ended = &mut serving => {
                return ended.unwrap_or_else(|_| Err(Fatal::Bug("the service panicked".to_owned())));
            }
            Some(part) = breaks.recv() => {
                return Err(Fatal::Bug(format!("the part {part:?} panicked")));
            }
            () = signals.next() => {
                if stop.is_cancelled() {
                    tracing::warn!("asked to stop a second time: stopping at once");
                    return Ok(());
                }
                tracing::info!("asked to stop");
                ready.set(STOPPING, Err("the service is stopping"));
                stop.cancel();
            }
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Fatal> {
        let bug = |error: std::io::Error| Fatal::Bug(error.to_string());
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(bug)?,
            interrupt: signal(SignalKind::interrupt()).map_err(bug)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The file with this process's id, there while it runs.
struct PidFile(Utf8PathBuf);

impl PidFile {
    fn write(path: &Utf8Path) -> Result<Self, Fatal> {
        let unwritable = |error: std::io::Error| Fatal::config("pid_file", error);
        // A reader sees the old id or the new one, never half of it.
        let draft = path.with_added_extension("new");
        std::fs::write(&draft, format!("{}\n", std::process::id())).map_err(unwritable)?;
        std::fs::rename(&draft, path).map_err(unwritable)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let own = std::process::id().to_string();
        // Somebody else's id stays: another start of the service has taken the file over.
        let is_ours = std::fs::read_to_string(&self.0).is_ok_and(|id| id.trim() == own);
        if is_ours && let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, "the pid file stays");
        }
    }
}
