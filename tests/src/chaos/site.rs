//! The system under test on this machine: nats-server, two of core and storage each, feedback,
//! each behind wires of its own.

use super::crew::{Crew, Kind, Spec};
use super::journal::Journal;
use super::proxy::Wire;
use crate::ready::programs;
use crate::warden::Warden;
use async_nats::{Client, ConnectOptions, ServerAddr};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use virtbus_testbed::{port, server, until, within};

/// The one pool.
pub const POOL: &str = "default";
/// Who publishes and asks, each over a wire of its own.
pub const PUBLISHERS: usize = 4;
/// Jobs that one storage service runs at once.
const SLOTS: u32 = 8;
/// How long a new cluster may take to elect its leaders.
const SET_UP_LIMIT: Duration = Duration::from_secs(180);
/// Messages that may wait to be read by one of ours.
const CAPACITY: usize = 1 << 20;
/// The services, by kind and name.
const SERVICES: [(Kind, &str); 5] = [
    (Kind::Core, "core-a"),
    (Kind::Core, "core-b"),
    (Kind::Storage, "storage-a"),
    (Kind::Storage, "storage-b"),
    (Kind::Feedback, "feedback"),
];

/// A node of the messaging servers.
#[derive(Debug, Clone, Copy)]
struct Node {
    client: u16,
    route: u16,
    /// Nobody listens there: nodes reach each other over the wires alone, whatever they gossip.
    nowhere: u16,
}

/// A wire between two messaging servers.
#[derive(Debug)]
pub struct Route {
    /// The one that connects.
    pub from: usize,
    /// The one that listens.
    pub to: usize,
    /// What is between them.
    pub wire: Wire,
}

/// Everything that runs.
#[derive(Debug)]
pub struct Site {
    /// The processes.
    pub crew: Crew,
    /// The wires to the messaging servers, by who uses them.
    pub links: BTreeMap<String, Vec<Wire>>,
    /// The wires between messaging servers.
    pub routes: Vec<Route>,
    /// Where all files are.
    pub folder: PathBuf,
    nodes: Vec<Node>,
    _warden: Warden,
}

impl Site {
    /// Starts everything; returns when the first job was done.
    pub async fn start(folder: &Path, nodes: usize, journal: &Arc<Journal>) -> Self {
        let folder = folder.canonicalize().unwrap();
        for name in ["log", "pool", "conf"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        let held = hold_ports(3 * nodes);
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let ports: Vec<u16> = held.iter().map(port).collect();
        let nodes = ports.chunks(3).map(|ports| Node {
            client: ports[0],
            route: ports[1],
            nowhere: ports[2],
        });
        let mut site = Self {
            crew: Crew::new(Arc::clone(journal)),
            links: BTreeMap::new(),
            routes: Vec::new(),
            nodes: nodes.collect(),
            _warden: Warden::of(&folder),
            folder,
        };
        site.start_servers(held).await;
        site.set_up().await;
        for (kind, name) in SERVICES {
            site.start_service(kind, name).await;
        }
        for number in 0..PUBLISHERS {
            site.link(&format!("publisher-{number}")).await;
        }
        site.register().await;
        site
    }

    /// The pool's folder.
    pub fn pool_root(&self) -> PathBuf {
        self.folder.join("pool")
    }

    /// The servers' own addresses, without wires.
    pub fn direct_url(&self) -> String {
        let urls = self.nodes.iter().map(|node| url(node.client));
        urls.collect::<Vec<_>>().join(",")
    }

    /// The addresses of somebody's wires.
    pub fn url_of(&self, who: &str) -> String {
        let urls = self.links[who].iter().map(|wire| url(wire.port()));
        urls.collect::<Vec<_>>().join(",")
    }

    /// How many messaging servers there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// A connection that nobody cuts, as long as a server is there.
    pub async fn client(&self) -> Client {
        let options = ConnectOptions::new().subscription_capacity(CAPACITY);
        connect(&self.direct_url(), options).await
    }

    /// A connection over somebody's wires.
    pub async fn client_of(&self, who: &str) -> Client {
        connect(&self.url_of(who), ConnectOptions::new()).await
    }

    /// `held` keeps their ports until the wires have theirs.
    async fn start_servers(&mut self, held: Vec<TcpListener>) {
        for from in 0..self.nodes.len() {
            for to in (0..self.nodes.len()).filter(|to| *to != from) {
                let name = format!("route {} to {}", from + 1, to + 1);
                let wire = Wire::new(name, address(self.nodes[to].route)).await;
                self.routes.push(Route { from, to, wire });
            }
        }
        drop(held);
        for number in 0..self.nodes.len() {
            let name = format!("nats-{}", number + 1);
            let config = self.folder.join("conf").join(format!("{name}.conf"));
            fs::write(&config, self.nats_conf(number)).unwrap();
            let spec = self.spec(&name, Kind::Nats, server::program().into(), config);
            self.crew.add(spec);
        }
    }

    fn nats_conf(&self, number: usize) -> String {
        let node = self.nodes[number];
        let store = self.folder.join("store").join(number.to_string());
        // Of a cluster a node may die while the others go on without what it had written last.
        let sync = if self.nodes.len() > 1 { "always" } else { "2m" };
        let mut text = format!(
            "server_name: \"n{}\"\nlisten: \"127.0.0.1:{}\"\nmax_payload: 2MB\n\
             write_deadline: \"10s\"\n\
             jetstream {{ store_dir: {:?}, max_file_store: 64GB, max_memory_store: 256MB, \
             sync_interval: {sync} }}\n",
            number + 1,
            node.client,
            store.to_str().unwrap(),
        );
        if self.nodes.len() > 1 {
            let mine = self.routes.iter().filter(|route| route.from == number);
            let routes: Vec<String> = mine
                .map(|route| {
                    format!(
                        "{:?}",
                        format!("nats-route://127.0.0.1:{}", route.wire.port())
                    )
                })
                .collect();
            writeln!(
                text,
                "cluster {{ name: chaos, listen: \"127.0.0.1:{}\", \
                 advertise: \"127.0.0.1:{}\", no_advertise: true, routes: [{}] }}",
                node.route,
                node.nowhere,
                routes.join(", "),
            )
            .unwrap();
        }
        text
    }

    /// Streams and buckets, with a copy on each node.
    async fn set_up(&self) {
        let copies = self.nodes.len().to_string();
        within(SET_UP_LIMIT, "virtbus setup", async || {
            let output = Command::new(programs().join("virtbus"))
                .args(["setup", "--server", &url(self.nodes[0].client)])
                .args(["--replicas", &copies])
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            output.status.success().then_some(()).ok_or(said)
        })
        .await;
    }

    async fn link(&mut self, who: &str) {
        let mut wires = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let name = format!("{who} to nats-{}", number + 1);
            wires.push(Wire::new(name, address(node.client)).await);
        }
        self.links.insert(who.to_owned(), wires);
    }

    async fn start_service(&mut self, kind: Kind, name: &str) {
        self.link(name).await;
        let config = self.folder.join("conf").join(format!("{name}.toml"));
        fs::write(&config, self.service_toml(kind, name)).unwrap();
        let program = match kind {
            Kind::Nats => unreachable!("a messaging server is no service of ours"),
            Kind::Core => "virtbus-core",
            Kind::Storage => "virtbus-storage",
            Kind::Feedback => "virtbus-feedback",
        };
        let spec = self.spec(name, kind, programs().join(program), config);
        self.crew.add(spec);
    }

    fn service_toml(&self, kind: Kind, name: &str) -> String {
        let state = self.folder.join("state").join(name);
        fs::create_dir_all(&state).unwrap();
        let mut text = format!(
            "state_dir = {state:?}\n[nats]\nurl = {:?}\n[worker]\nid = {name:?}\n\
             [http]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"text\"\n",
            self.url_of(name),
        );
        match kind {
            Kind::Nats | Kind::Core => {}
            Kind::Storage => write!(
                text,
                "[work]\nslots = {SLOTS}\nreserved_high = 1\nlong_max = 3\ndrain_s = 5\n\
                 [pools.{POOL}]\nroot = {:?}\ncreate = true\n",
                self.pool_root(),
            )
            .unwrap(),
            Kind::Feedback => text.push_str("[work]\nslots = 4\ndrain_s = 5\n"),
        }
        text
    }

    fn spec(&self, name: &str, kind: Kind, program: PathBuf, config: PathBuf) -> Spec {
        let log = self.folder.join("log").join(format!("{name}.log"));
        let name = name.to_owned();
        Spec {
            name,
            kind,
            program,
            config,
            log,
        }
    }

    /// Registers the pool, and waits until its queues are served.
    async fn register(&self) {
        let client = self.client().await;
        let question = json!({"pool": POOL, "default": true, "transfer_url": "http://127.0.0.1:1"});
        let ask = async |subject: &'static str, question: &Value| {
            let sent = client.request(subject, question.to_string().into()).await;
            let answer = sent.map_err(|error| error.to_string())?;
            let body: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
            match body.get("error") {
                Some(error) => Err(error.to_string()),
                None => Ok(body),
            }
        };
        until("the pool is registered", async || {
            ask("virtbus.pools.register", &question).await
        })
        .await;
        until("both storage services are there", async || {
            let found = ask("virtbus.workers.list", &json!({})).await?;
            let text = found.to_string();
            let all = SERVICES.iter().filter(|(kind, _)| *kind == Kind::Storage);
            let all = all.map(|(_, name)| format!("\"{name}\""));
            if all.into_iter().all(|name| text.contains(&name)) {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
    }
}

/// Connects to the first of several that listens.
async fn connect(urls: &str, options: ConnectOptions) -> Client {
    let servers = urls.split(',').map(str::parse);
    let servers: Vec<ServerAddr> = servers.collect::<Result<_, _>>().unwrap();
    until("a connection", async || {
        options.clone().connect(&servers[..]).await
    })
    .await
}

fn url(port: u16) -> String {
    format!("nats://127.0.0.1:{port}")
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Ports that nobody else gets as long as these are held.
fn hold_ports(count: usize) -> Vec<TcpListener> {
    let bind = |_| TcpListener::bind(address(port::free())).unwrap();
    (0..count).map(bind).collect()
}
