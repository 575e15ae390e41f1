use super::site::{Site, Told, code, failed, program};
use crate::task::Step;
use serde_json::json;
use virtbus_wire::{
    Code,
    catalog::{DiskState, InUseBy, UseMode},
};
use virtbus_worker::process;

/// `d1` with `d2` and `d3` on top of it, each with something of its own.
async fn tree(site: &Site) {
    site.filled_disk("d1").await;
    for (number, disk) in ["d2", "d3"].into_iter().enumerate() {
        let params = json!({ "disk": disk, "backing": "d1" });
        site.done(&format!("make-{disk}"), "create_disk", params)
            .await;
        let write = format!("write -P {} 2M 64k", number + 8);
        site.write(&format!("{disk}.qcow2"), "qcow2", &write);
    }
}

fn elsewhere(site: &Site) -> Vec<String> {
    let entries = std::fs::read_dir(site.dir.path().join("other/disks"));
    let entries = entries.into_iter().flatten().map(Result::unwrap);
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_tree_shows_the_same_in_the_other_pool_and_is_gone_from_the_first() {
    let site = Site::start().await;
    tree(&site).await;
    let told = Told::default();
    let params = json!({ "disk": "d3", "pool": "other", "tree": true });
    let job = site.job("j1", "move_disk", params.clone());
    let note = |progress| told.note(&progress);
    let done = site.run_within(&job, &process::Stop::new(), &note).await;
    let done = done.unwrap();
    assert_eq!(done["moved"].as_array().unwrap().len(), 3);
    assert_eq!(done["moved"][0], "d1");
    assert!(done["bytes"].as_u64().unwrap() > 1 << 20);
    for folder in ["disks", "trash", "locks"] {
        assert_eq!(site.files(folder), Vec::<String>::new(), "{folder}");
    }
    assert_eq!(elsewhere(&site), ["d1.qcow2", "d2.qcow2", "d3.qcow2"]);
    for (disk, byte) in [("d1", "0"), ("d2", "8"), ("d3", "9")] {
        let record = site.record(disk).await;
        assert_eq!(
            (record.pool.as_str(), record.state),
            ("other", DiskState::Ready)
        );
        let path = site.dir.path().join(format!("other/disks/{disk}.qcow2"));
        let read = format!("read -P {byte} 2M 64k");
        for read in [read.as_str(), "read -P 7 1M 1M"] {
            let args = ["-r", "-f", "qcow2", "-c", read, path.to_str().unwrap()];
            program("qemu-io", &args);
        }
    }
    let stages = told.stages();
    let phases: Vec<&str> = stages.iter().map(|(phase, _)| phase.as_str()).collect();
    assert_eq!(phases, ["copy", "verify"].repeat(3));
    // Most of the bytes are those of the disk below, and all are read twice.
    let ends: Vec<f64> = stages.iter().map(|(_, ended)| *ended).collect();
    assert!((20.0..50.0).contains(&ends[0]), "{ends:?}");
    assert!((ends[1] - 2.0 * ends[0]).abs() < 1.0, "{ends:?}");
    assert!(ends.windows(2).all(|pair| pair[0] < pair[1]), "{ends:?}");
    // There already is success.
    let again = site.done("j2", "move_disk", params).await;
    assert_eq!(again["bytes"], 0);
}

#[tokio::test]
async fn part_of_a_tree_moves_only_with_the_rest() {
    let site = Site::start().await;
    tree(&site).await;
    let refused = |disk: &str| json!({ "disk": disk, "pool": "other" });
    let of = site.refused("j1", "move_disk", refused("d1")).await;
    assert_eq!(code(&of), Code::DiskHasChildren);
    let of = site.refused("j2", "move_disk", refused("d2")).await;
    assert_eq!(code(&of), Code::JobInvalidParams);
    site.change("d3", |record| {
        record.in_use_by = vec![InUseBy::Domain {
            domain: "web1".parse().unwrap(),
            hypervisor: "hv-1".parse().unwrap(),
            mode: UseMode::Exclusive,
        }];
    })
    .await;
    let params = json!({ "disk": "d2", "pool": "other", "tree": true });
    let of = site.refused("j3", "move_disk", params.clone()).await;
    assert_eq!(
        (code(&of), &of.detail["disk"]),
        (Code::DiskInUse, &json!("d3"))
    );
    site.change("d3", |record| record.in_use_by.clear()).await;
    site.done("trash", "delete_disk", json!({ "disk": "d3" }))
        .await;
    let of = site.refused("j4", "move_disk", params).await;
    assert_eq!(code(&of), Code::DiskWrongState);
    assert_eq!(elsewhere(&site), Vec::<String>::new());
    assert_eq!(site.files("disks"), ["d1.qcow2", "d2.qcow2"]);
}

#[tokio::test]
async fn a_disk_stays_where_it_is_until_it_can_go() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let params = json!({ "disk": "d1", "pool": "other" });
    let mut alone = site.job("j1", "move_disk", params.clone());
    let queue: virtbus_wire::Queue = "storage.default.low".parse().unwrap();
    alone.record.queue = queue.into();
    assert_eq!(code(&failed(site.run(&alone).await)), Code::PoolUnsupported);
    site.register(json!({ "pool": "other", "state": "draining" }))
        .await;
    let refused = site.refused("j2", "move_disk", params.clone()).await;
    assert_eq!(code(&refused), Code::PoolDisabled);
    site.register(json!({ "pool": "other" })).await;
    let stray = site.dir.path().join("other/disks/d1.qcow2");
    std::fs::create_dir_all(stray.parent().unwrap()).unwrap();
    std::fs::write(&stray, "mine").unwrap();
    let refused = site.refused("j3", "move_disk", params.clone()).await;
    assert_eq!(code(&refused), Code::DiskExists);
    assert_eq!(std::fs::read(&stray).unwrap(), b"mine");
    std::fs::remove_file(stray).unwrap();
    std::fs::rename(site.dir.path().join("other"), site.dir.path().join("away")).unwrap();
    let refused = site.refused("j4", "move_disk", params).await;
    assert_eq!(code(&refused), Code::PoolUnreachable);
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
}

#[tokio::test]
async fn a_tree_of_which_half_has_its_names_is_still_whole() {
    for gives_up in [false, true] {
        let site = Site::start().await;
        tree(&site).await;
        let params = json!({ "disk": "d1", "pool": "other", "tree": true });
        let envelope = json!({ "id": "j", "task": "move_disk", "params": params });
        site.die(&site.claimed(envelope.clone(), 1), Step::Commit)
            .await;
        // As if it had died between the two.
        let part = site.dir.path().join("other/disks");
        std::fs::rename(part.join(".j.1.d1.part"), part.join("d1.qcow2")).unwrap();
        let next = site.claimed(envelope, 2);
        if gives_up {
            virtbus_worker::Perform::clean(&site.store, &next)
                .await
                .unwrap();
            super::claims::abandon(&site.store, &next).await.unwrap();
            assert_eq!(elsewhere(&site), Vec::<String>::new());
            assert_eq!(site.files("disks").len(), 3);
            assert_eq!(site.state("d1").await, Some(DiskState::Ready));
        } else {
            site.run(&next).await.unwrap();
            assert_eq!(elsewhere(&site).len(), 3);
            assert_eq!(site.files("disks"), Vec::<String>::new());
        }
    }
}

/// The other systems' defect: what was copied in part counts as moved, and the source goes.
#[tokio::test]
async fn a_move_whose_copies_fail_half_way_is_no_move() {
    let site = Site::start().await;
    tree(&site).await;
    // The last to be copied, and the only one that is longer than a file may get.
    site.write("d3.qcow2", "qcow2", "write -P 5 0 4M");
    let length = |disk: &str| {
        let file = site.path(&format!("disks/{disk}.qcow2"));
        std::fs::metadata(file).unwrap().len()
    };
    let most = length("d3") - 1;
    assert!(length("d1") < most && length("d2") < most);
    let shows = || ["d1", "d2", "d3"].map(|id| site.content(&format!("{id}.qcow2"), "qcow2"));
    let shown = shows();
    let params = json!({ "disk": "d1", "pool": "other", "tree": true });
    let envelope = json!({ "id": "j", "task": "move_disk", "params": params });
    let error = site.is_cramped(envelope.clone(), most).await;
    assert_eq!(code(&error), Code::PoolNoSpace, "{error:?}");
    assert_eq!(elsewhere(&site), Vec::<String>::new());
    assert_eq!(shows(), shown);
    for disk in ["d1", "d2", "d3"] {
        let record = site.record(disk).await;
        let seen = (record.state, record.pool.as_str());
        assert_eq!(seen, (DiskState::Ready, "default"), "{disk}");
    }
    let done = site.run(&site.claimed(envelope, 2)).await.unwrap();
    assert_eq!(done["moved"], json!(["d1", "d2", "d3"]));
    assert_eq!(elsewhere(&site), ["d1.qcow2", "d2.qcow2", "d3.qcow2"]);
}

#[tokio::test]
async fn a_disk_that_is_too_large_for_the_other_pool_stays() {
    let site = Site::start().await;
    tree(&site).await;
    let record = json!({ "pool": "other", "size_max": "2MiB" });
    site.register(record).await;
    let params = json!({ "disk": "d1", "pool": "other", "tree": true });
    let refused = site.refused("j1", "move_disk", params.clone()).await;
    assert_eq!(code(&refused), Code::ImageTooLarge);
    assert_eq!(refused.detail["disk"], "d1");
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
    site.register(json!({ "pool": "other" })).await;
    site.done("j2", "move_disk", params).await;
}
