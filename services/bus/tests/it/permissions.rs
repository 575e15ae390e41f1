//! Who may do what: `nats/accounts.conf` on a real server, each role with its own key.

use crate::person::{Person, Verb, site};
use async_nats::ConnectOptions;
use nkeys::KeyPair;
use virtbus_bus::topology::Role;
use virtbus_bus::{Bus, ConnectConfig};
use virtbus_testbed::watch::soon;

const ROLES: [Role; 6] = [
    Role::Publisher,
    Role::Storage,
    Role::Hypervisor,
    Role::Core,
    Role::Feedback,
    Role::Observer,
];

/// Letters of the roles that may: Publisher, Storage, Hypervisor, Core, Feedback, Observer.
const MATRIX: &[(Verb, &str, &str)] = {
    use Verb::{Publish, Subscribe};
    &[
        // Jobs and what comes of them.
        (Publish, "storage.p.low", "PSHCF"),
        (Publish, "hypervisor.p.low", "PSHCF"),
        (Publish, "core", "PSHCF"),
        (Publish, "storage.p", ""),
        (Publish, "dlq.storage.p.low", "SC"),
        (Publish, "dlq.hypervisor.p.low", "HC"),
        (Publish, "dlq.core", "CF"),
        (Publish, "events.jobs.storage-1", ""),
        (Publish, "events.progress.storage-1", "SHF"),
        (Publish, "submitted.storage.p.low", ""),
        (Subscribe, "events.jobs.storage-1", "PSHCFO"),
        (Subscribe, "events.progress.*", "PFO"),
        (Subscribe, "submitted.>", "CO"),
        (Subscribe, "dlq.>", "O"),
        (Subscribe, "storage.>", ""),
        (Subscribe, "$KV.>", ""),
        (Subscribe, ">", ""),
        // Control.
        (Publish, "virtbus.jobs.submit", "PF"),
        (Publish, "virtbus.jobs.cancel", "PF"),
        (Publish, "virtbus.jobs.explain", "PFO"),
        (Publish, "virtbus.disks.list", "PFO"),
        (Publish, "virtbus.queues.pause", "F"),
        (Publish, "virtbus.pools.register", "F"),
        (Publish, "virtbus.hypervisors.fence", "F"),
        (Subscribe, "virtbus.jobs.submit", "C"),
        (Subscribe, "$SRV.PING", "C"),
        (Publish, "$SRV.PING", "O"),
        // Inboxes.
        (Subscribe, "_INBOX.x.y", ""),
        (Subscribe, "_INBOX_core.x", "C"),
        (Subscribe, "_INBOX_storage.x", "S"),
        (Subscribe, "_INBOX_publisher.x", "P"),
        // Taking jobs, in both forms of an ack.
        (
            Publish,
            "$JS.API.CONSUMER.MSG.NEXT.STORAGE.storage_p_high",
            "SC",
        ),
        (
            Publish,
            "$JS.API.CONSUMER.MSG.NEXT.HYPERVISOR.hypervisor_p_low",
            "HC",
        ),
        (Publish, "$JS.API.CONSUMER.MSG.NEXT.CORE.core", "CF"),
        (Publish, "$JS.ACK.STORAGE.storage_p_high.1.1.1.1.0", "S"),
        (Publish, "$JS.ACK._.h.STORAGE.storage_p_high.1.1.1.1.0", "S"),
        (
            Publish,
            "$JS.ACK.HYPERVISOR.hypervisor_p_low.1.1.1.1.0",
            "H",
        ),
        (
            Publish,
            "$JS.ACK._.h.HYPERVISOR.hypervisor_p_low.1.1.1.1.0",
            "H",
        ),
        (Publish, "$JS.ACK.CORE.core.1.1.1.1.0", "F"),
        (Publish, "$JS.ACK._.h.CORE.core.1.1.1.1.0", "F"),
        // Consumers, messages, streams.
        (
            Publish,
            "$JS.API.CONSUMER.CREATE.STORAGE.storage_q_low.storage.q.low",
            "C",
        ),
        (Publish, "$JS.API.CONSUMER.PAUSE.STORAGE.storage_q_low", "C"),
        (
            Publish,
            "$JS.API.CONSUMER.DELETE.STORAGE.storage_q_low",
            "C",
        ),
        (Publish, "$JS.API.CONSUMER.CREATE.DLQ.x.dlq.>", "C"),
        (
            Publish,
            "$JS.API.CONSUMER.INFO.STORAGE.storage_p_high",
            "SCO",
        ),
        (Publish, "$JS.API.CONSUMER.LIST.STORAGE", "CO"),
        (Publish, "$JS.API.STREAM.INFO.STORAGE", "CO"),
        (Publish, "$JS.API.DIRECT.GET.STORAGE", "CO"),
        (Publish, "$JS.API.STREAM.MSG.GET.STORAGE", "CO"),
        (Publish, "$JS.API.STREAM.MSG.DELETE.STORAGE", "C"),
        (Publish, "$JS.API.STREAM.MSG.DELETE.KV_jobs", ""),
        (Publish, "$JS.API.STREAM.PURGE.STORAGE", ""),
        (Publish, "$JS.API.STREAM.PURGE.KV_jobs", ""),
        (Publish, "$JS.API.STREAM.UPDATE.STORAGE", ""),
        (Publish, "$JS.API.STREAM.DELETE.STORAGE", ""),
        (Publish, "$JS.API.STREAM.CREATE.X", ""),
        (Publish, "$JS.API.STREAM.SNAPSHOT.KV_jobs", ""),
        // Records.
        (Publish, "$KV.jobs.storage-1", "SHCF"),
        (Publish, "$KV.disks.d1", "SHC"),
        (Publish, "$KV.media.m1", "SHC"),
        (Publish, "$KV.domains.v1", "HC"),
        (Publish, "$KV.locks.disk.d1", "SHCF"),
        (Publish, "$KV.workers.storage-hv1", "SHCF"),
        (Publish, "$KV.workers_lost.storage-hv1", "C"),
        (Publish, "$KV.transfers.t1", "SC"),
        (Publish, "$KV.pools.p", "C"),
        (Publish, "$KV.queues.storage.p.low", "C"),
        (Publish, "$KV.hypervisors.hv1", "HC"),
        (Publish, "$JS.API.DIRECT.GET.KV_jobs.$KV.jobs.x", "PSHCFO"),
        (Publish, "$JS.API.STREAM.MSG.GET.KV_jobs", "PSHCFO"),
        (Publish, "$JS.API.DIRECT.GET.KV_disks.$KV.disks.x", "SHCO"),
        (
            Publish,
            "$JS.API.DIRECT.GET.KV_transfers.$KV.transfers.x",
            "SCO",
        ),
        (
            Publish,
            "$JS.API.DIRECT.GET.KV_domains.$KV.domains.x",
            "HCO",
        ),
        (Publish, "$JS.API.CONSUMER.CREATE.KV_jobs", "CF"),
        (Publish, "$JS.API.CONSUMER.CREATE.KV_pools", "SHCF"),
        (Publish, "$JS.API.CONSUMER.CREATE.KV_locks", "C"),
    ]
};

#[tokio::test]
async fn each_role_may_do_what_it_needs_and_nothing_else() {
    let (server, keys) = site().await;
    let mut wrong = Vec::new();
    for (role, letter) in ROLES.into_iter().zip("PSHCFO".chars()) {
        let person = Person::connect(&server.url, &keys, role).await;
        for &(verb, subject, letters) in MATRIX {
            let expected = letters.contains(letter);
            if person.may(verb, subject).await != expected {
                wrong.push(format!("{role}: {verb:?} {subject}, expected {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_service_connects_with_its_seed_and_inbox() {
    let (server, keys) = site().await;
    let folder = tempfile::tempdir().unwrap();
    let seed = folder.path().join("storage.nk");
    std::fs::write(&seed, keys.seed(Role::Storage) + "\n").unwrap();
    let config = ConnectConfig {
        url: server.url.clone(),
        nkey_file: Some(seed),
        inbox_prefix: Some(Role::Storage.inbox_prefix()),
        ..ConnectConfig::default()
    };
    let bus = Bus::connect(&config, "storage-test").await.unwrap();
    bus.jetstream().get_key_value("disks").await.unwrap();
    assert_eq!(bus.health().borrow().refused, None);
}

#[tokio::test]
async fn nobody_gets_in_without_a_key() {
    let (server, _keys) = site().await;
    let error = async_nats::connect(&server.url).await.unwrap_err();
    assert_eq!(
        error.kind(),
        async_nats::ConnectErrorKind::AuthorizationViolation
    );
    let stranger = KeyPair::new_user().seed().unwrap();
    let error = ConnectOptions::with_nkey(stranger)
        .connect(&server.url)
        .await;
    assert!(error.is_err());
}

#[tokio::test]
async fn the_server_s_own_account_sees_no_jobs() {
    let (server, keys) = site().await;
    let sys = Person::connect(&server.url, &keys, Role::Sys).await;
    let statistics = sys.client.request("$SYS.REQ.SERVER.PING", "".into());
    soon("statistics", statistics).await.unwrap();
    assert!(sys.js.get_stream("STORAGE").await.is_err());
}
