//! Somebody who connects in a role, to a server with accounts.
//!
//! A denied request looks like a timeout, so denials are read from the server's asynchronous
//! errors instead: the server handles a connection's lines in order, so once it has complained
//! about a subject that nobody may use, it has complained about everything before as well.

use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions};
use nkeys::KeyPair;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use virtbus_bus::topology::{Mode, Role, Wanted, apply, keys_conf};
use virtbus_testbed::server::{Server, connect, copy_nats_folder};
use virtbus_testbed::watch::until;

/// A fresh key for every role.
pub(crate) struct Keys(BTreeMap<Role, KeyPair>);

impl Keys {
    pub(crate) fn new() -> Self {
        let keys = Role::ALL
            .into_iter()
            .map(|role| (role, KeyPair::new_user()));
        Self(keys.collect())
    }

    pub(crate) fn seed(&self, role: Role) -> String {
        self.0[&role].seed().unwrap()
    }

    pub(crate) fn conf(&self) -> String {
        keys_conf(|role| self.0[&role].public_key())
    }
}

/// A connection in a role.
pub(crate) struct Person {
    pub(crate) client: Client,
    pub(crate) js: Context,
    pub(crate) role: Role,
    violations: Arc<Mutex<Vec<String>>>,
    sentinels: Mutex<usize>,
}

impl Person {
    pub(crate) async fn connect(url: &str, keys: &Keys, role: Role) -> Self {
        let violations = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&violations);
        let options = ConnectOptions::with_nkey(keys.seed(role))
            .custom_inbox_prefix(role.inbox_prefix())
            .event_callback(move |event| {
                seen.lock().unwrap().push(event.to_string());
                async {}
            });
        let client = connect(url, options).await;
        Self {
            js: jetstream::new(client.clone()),
            client,
            role,
            violations,
            sentinels: Mutex::new(0),
        }
    }

    /// Waits until the server has answered all that was sent so far.
    async fn settled(&self) {
        let sentinel = {
            let mut count = self.sentinels.lock().unwrap();
            *count += 1;
            // Nobody may subscribe to the inbox of a role that doesn't exist.
            format!("_INBOX_nobody.{count}")
        };
        let unwanted = self.client.subscribe(sentinel.clone()).await.unwrap();
        until("the answer to a forbidden subscription", async || {
            let seen = self.violations.lock().unwrap().clone();
            let here = seen.iter().any(|text| names(text, &sentinel));
            here.then_some(()).ok_or(seen)
        })
        .await;
        drop(unwanted);
    }

    /// Whether this role may publish to (or subscribe to) `subject`.
    pub(crate) async fn may(&self, verb: Verb, subject: &str) -> bool {
        let subscription = match verb {
            Verb::Publish => {
                self.client
                    .publish(subject.to_owned(), "".into())
                    .await
                    .unwrap();
                None
            }
            Verb::Subscribe => Some(self.client.subscribe(subject.to_owned()).await.unwrap()),
        };
        self.settled().await;
        drop(subscription);
        let seen = self.violations.lock().unwrap();
        let about = match verb {
            Verb::Publish => "publish to",
            Verb::Subscribe => "subscription to",
        };
        let denied = |text: &&String| names(text, subject) && text.to_lowercase().contains(about);
        !seen.iter().any(|text| denied(&text))
    }

    pub(crate) async fn no_complaints(&self) {
        if matches!(self.role, Role::Admin | Role::Sys) {
            return;
        }
        self.settled().await;
        let seen = self.violations.lock().unwrap();
        let complaints: Vec<&String> = seen
            .iter()
            .filter(|text| text.to_lowercase().contains("violation"))
            .filter(|text| !text.contains("_INBOX_nobody"))
            .collect();
        assert!(complaints.is_empty(), "{}: {complaints:?}", self.role);
    }
}

/// Whether a complaint is about exactly this subject; it is quoted there.
fn names(complaint: &str, subject: &str) -> bool {
    let complaint = complaint.to_lowercase();
    complaint.contains("violation")
        && complaint.contains(&format!("\"{}\"", subject.to_lowercase()))
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Verb {
    Publish,
    Subscribe,
}

/// A server with accounts and everything set up, and its keys.
pub(crate) async fn site() -> (Server, Keys) {
    let keys = Keys::new();
    let folder = tempfile::tempdir().unwrap();
    copy_nats_folder(folder.path());
    std::fs::write(folder.path().join("keys.conf"), keys.conf()).unwrap();
    let config = folder.path().join("production.conf");
    let server = Server::start(folder, &config, &[]).await;
    let admin = Person::connect(&server.url, &keys, Role::Admin).await;
    let queues = ["storage.p.high", "hypervisor.p.low"];
    let wanted = Wanted {
        replicas: None,
        queues: queues.iter().map(|text| text.parse().unwrap()).collect(),
    };
    let report = apply(&admin.js, &wanted, Mode::Apply).await.unwrap();
    assert_eq!(report.refused().count(), 0, "{report}");
    (server, keys)
}
