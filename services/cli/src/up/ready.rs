//! Bringing up: each process, its own sign that it's ready, and the file that says so of all.

use super::{
    Name,
    config::{Layout, POOL},
    files,
    process::{Ended, Processes},
    token::{self, Key},
};
use crate::{
    command::control::ask,
    context::Ready,
    exit::{Exit, Failure},
    output::Output,
};
use serde_json::json;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::Instant,
};
use virtbus_bus::{
    Bus, ConnectConfig,
    topology::{self, Mode, Role, Wanted},
};
use virtbus_wire::{
    auth::{Scope, Scopes},
    control::Operation,
};

/// The libvirt daemon that is tried first, and the one that is always there.
pub(crate) const LIBVIRT_URI: &str = "qemu:///session";
const LIBVIRT_TEST_URI: &str = "test:///default";
/// The exit codes of a hypervisor service that can't have its libvirt daemon: it isn't there, or
/// another process on this machine, such as a second trial's, speaks for it already.
const EXITS_WITHOUT_LIBVIRT: [i32; 2] = [69, 64];
/// How long one process may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How often is looked.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// The most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 4_096;
/// How long the token of the ready file is good for.
const TOKEN_TTL: Duration = Duration::from_secs(30 * 86_400);

/// Starts everything in order, and writes the ready files when all is ready.
///
/// # Errors
/// When something doesn't come up.
pub(crate) async fn bring_up(
    processes: &mut Processes,
    ended: &mut mpsc::Receiver<Ended>,
    is_uri_fixed: bool,
    ready_files: &[PathBuf],
) -> Result<Ready, Failure> {
    let mut pids = BTreeMap::new();
    pids.insert(Name::Nats, processes.start(Name::Nats)?);
    let bus = connect(processes, ended).await?;
    topology::apply(bus.jetstream(), &Wanted::default(), Mode::Apply).await?;

    pids.insert(Name::Core, processes.start(Name::Core)?);
    answers(processes, ended, Name::Core).await?;
    register(&bus, processes.layout()).await?;

    // Each is told apart from the others' ends by its process id.
    for name in [Name::Storage, Name::Hypervisor, Name::Feedback] {
        pids.insert(name, processes.start(name)?);
    }
    for name in [Name::Storage, Name::Hypervisor, Name::Feedback] {
        let outcome = answers(processes, ended, name).await;
        let is_without_libvirt = matches!(&outcome, Err(NotReady::Ended(who, Some(code), _))
            if *who == Name::Hypervisor && EXITS_WITHOUT_LIBVIRT.contains(code));
        if is_without_libvirt && !is_uri_fixed {
            LIBVIRT_TEST_URI.clone_into(&mut processes.layout_mut().libvirt_uri);
            processes.layout().write()?;
            pids.insert(Name::Hypervisor, processes.start(Name::Hypervisor)?);
            answers(processes, ended, Name::Hypervisor).await?;
        } else {
            outcome?;
        }
    }
    bus.close().await;
    let ready = describe(processes, &pids)?;
    let text = serde_json::to_string(&ready).map_err(|e| Failure::failed(e.to_string()))?;
    for file in ready_files {
        files::write_secret(file, &text)?;
    }
    Ok(ready)
}

/// Why a process isn't ready.
#[derive(Debug)]
enum NotReady {
    /// It ended; with its exit code, and the end of its log.
    Ended(Name, Option<i32>, String),
    /// It takes too long; with what it said last, and the end of its log.
    Late(Name, String, String),
}

impl From<NotReady> for Failure {
    fn from(why: NotReady) -> Self {
        let (message, log) = match why {
            NotReady::Ended(name, Some(code), log) => {
                (format!("{name} ended with exit code {code}"), log)
            }
            NotReady::Ended(name, None, log) => (format!("{name} was killed"), log),
            NotReady::Late(name, said, log) => {
                let limit = READY_LIMIT.as_secs();
                (format!("{name} isn't ready after {limit} s: {said}"), log)
            }
        };
        Self::failed(message).hint(format!("its log ends with:\n{log}"))
    }
}

/// Waits for something that is looked for again and again, or for the end of a process.
async fn level<T>(
    processes: &Processes,
    ended: &mut mpsc::Receiver<Ended>,
    look: impl AsyncFn() -> Result<T, String>,
    waited_for: Name,
) -> Result<T, NotReady> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let said = match look().await {
            Ok(found) => return Ok(found),
            Err(said) => said,
        };
        if Instant::now() >= deadline {
            let log = processes.log_tail(waited_for);
            return Err(NotReady::Late(waited_for, said, log));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            Some((name, _, status)) = ended.recv() => {
                return Err(NotReady::Ended(name, status.code(), processes.log_tail(name)));
            }
        }
    }
}

/// A connection to the server, once JetStream answers.
async fn connect(processes: &Processes, ended: &mut mpsc::Receiver<Ended>) -> Result<Bus, Failure> {
    let layout = processes.layout();
    let config = ConnectConfig {
        url: layout.nats_url(),
        nkey_file: layout.creds.get(&Role::Admin).cloned(),
        ..ConnectConfig::default()
    };
    let look = async || {
        let bus = Bus::connect(&config, "virtbus-up").await;
        let bus = bus.map_err(|error| error.to_string())?;
        let account = bus.jetstream().query_account().await;
        account.map(|_| bus).map_err(|error| error.to_string())
    };
    Ok(level(processes, ended, look, Name::Nats).await?)
}

/// Waits until a service's `/readyz` says yes.
async fn answers(
    processes: &Processes,
    ended: &mut mpsc::Receiver<Ended>,
    name: Name,
) -> Result<(), NotReady> {
    let port = processes.layout().port(name);
    let look = async || match tokio::time::timeout(LOOK_LIMIT, readyz(port)).await {
        Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => Ok(()),
        Ok(Ok(answer)) => Err(answer.rsplit("\r\n").next().unwrap_or_default().to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    };
    level(processes, ended, look, name).await
}

async fn readyz(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let ask = "GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    stream.write_all(ask.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Registers the pool, or tells a registered one where its storage service is now: what else
/// somebody changed about it stays.
async fn register(bus: &Bus, layout: &Layout) -> Result<(), Failure> {
    let known = ask(bus, Operation::PoolsGet, &json!({"pool": POOL})).await;
    let mut pool = match known {
        Ok(pool) => pool,
        Err(failure) if failure.exit == Exit::NotFound => json!({"pool": POOL, "default": true}),
        Err(failure) => return Err(failure),
    };
    pool["transfer_url"] = layout.http_url(Name::Storage).into();
    ask(bus, Operation::PoolsRegister, &pool).await?;
    Ok(())
}

fn describe(processes: &Processes, pids: &BTreeMap<Name, u32>) -> Result<Ready, Failure> {
    let layout = processes.layout();
    let by_name = |path: &dyn Fn(Name) -> PathBuf| {
        let paths = Name::ALL
            .into_iter()
            .map(|name| (name.to_string(), path(name)));
        paths.collect::<BTreeMap<_, _>>()
    };
    let user = "admin".parse();
    let user = user.map_err(|error| Failure::failed(format!("the token's user {error}")))?;
    let scopes = Scopes::from_iter(Scope::ALL);
    let claims = token::claims(&user, None, scopes, TOKEN_TTL);
    Ok(Ready {
        nats: layout.nats_url(),
        http: layout.http_url(Name::Feedback),
        transfer: layout.http_url(Name::Storage),
        token: Key::read(&layout.token_key())?.mint(&claims)?,
        creds: layout
            .creds
            .iter()
            .map(|(role, path)| (role.to_string(), path.clone()))
            .collect(),
        pool: POOL.to_owned(),
        pool_root: layout.pool_root(),
        hypervisor: layout.hypervisor.clone(),
        pids: pids
            .iter()
            .map(|(name, pid)| (name.to_string(), *pid))
            .collect(),
        config: by_name(&|name| layout.config(name)),
        bin: by_name(&|name| processes.programs().get(&name).cloned().unwrap_or_default()),
    })
}

/// Where to look around.
///
/// # Errors
/// When nobody reads.
pub(crate) fn greet(ready: &Ready, layout: &Layout, output: Output) -> Result<(), Failure> {
    let dir = layout.dir.display();
    output.fields(&[
        ("console", format!("{}/", ready.http).into()),
        ("token", ready.token.as_str().into()),
        ("NATS", ready.nats.as_str().into()),
        (
            "pool",
            format!("{} in {}", ready.pool, ready.pool_root.display()).into(),
        ),
        (
            "hypervisor",
            format!("{} at {}", ready.hypervisor, layout.libvirt_uri).into(),
        ),
        ("logs", format!("{dir}/log").into()),
        ("try", format!("virtbus list --context {dir}").into()),
    ])?;
    output.text("Ctrl-C stops all")
}
