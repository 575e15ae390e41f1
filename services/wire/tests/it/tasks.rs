//! Tasks: names, places, and what is no task.

use serde_json::{Value, json};
use virtbus_wire::{Class, Code, JobError, Priority, Task, task::Home};

fn decode(class: Class, name: &str, params: Value) -> Result<Task, JobError> {
    Task::decode(class, name, &params)
}

fn task(class: Class, name: &str, params: Value) -> Task {
    decode(class, name, params).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn a_name_of_no_task_or_of_another_class_is_unknown() {
    for (class, name) in [
        (Class::Storage, "explode"),
        (Class::Storage, "start_domain"),
        (Class::Storage, "Resize"),
        (Class::Storage, ""),
        (Class::Hypervisor, "convert"),
        (Class::Core, "resize"),
    ] {
        // Whatever its parameters are: nobody could say what they should be.
        for params in [json!({}), json!([1]), json!({ "x": "y".repeat(20_000) })] {
            let error = decode(class, name, params).unwrap_err();
            assert_eq!(error.code, Code::JobUnknownTask, "{name}");
        }
    }
}

#[test]
fn only_the_system_makes_the_job_that_ends_an_upload() {
    let params = json!({ "upload": "j1", "target": { "disk": "d7" }, "format": "raw" });
    let error = decode(Class::Storage, "finish_upload", params.clone()).unwrap_err();
    assert_eq!(error.code, Code::JobUnknownTask);
    let task = Task::restore(Class::Storage, "finish_upload", &params).unwrap();
    assert!(task.is_system());
    assert_eq!(task.objects()[0].to_string(), "disk.d7");
}

#[test]
fn the_same_name_is_another_task_in_another_class() {
    let params = json!({ "disk": "d7", "size": "1GiB" });
    task(Class::Storage, "resize", params.clone());
    let error = decode(Class::Hypervisor, "resize", params).unwrap_err();
    assert_eq!(error.detail["field"], "domain");
}

#[test]
fn parameters_left_out_or_null_are_empty() {
    let ping = task(Class::Core, "ping", Value::Null);
    assert_eq!(ping.params(), json!({ "fail": false }));
    let error = decode(Class::Storage, "resize", Value::Null).unwrap_err();
    assert_eq!(
        (error.code, &error.detail["field"]),
        (Code::JobInvalidParams, &json!("disk"))
    );
}

#[test]
fn a_refusal_names_the_field_however_deep_it_is() {
    let template = |disk: Value| json!({ "domain": "w", "template": { "memory": "1GiB", "vcpus": 1, "disks": ["a", disk] } });
    for (class, name, params, field) in [
        (
            Class::Storage,
            "resize",
            json!({ "disk": "d", "size": 512, "x": 1 }),
            "x",
        ),
        (
            Class::Storage,
            "resize",
            json!({ "disk": "d", "size": "1G " }),
            "size",
        ),
        (
            Class::Storage,
            "create_disk",
            json!({ "disk": "d", "size": 512, "qcow2": { "cluster_size": 3 } }),
            "qcow2.cluster_size",
        ),
        (
            Class::Storage,
            "create_disk",
            json!({ "disk": "d", "size": 512, "qcow2": { "clusters": 3 } }),
            "qcow2.clusters",
        ),
        (
            Class::Hypervisor,
            "start_domain",
            template(json!("../b")),
            "template.disks[1]",
        ),
        (
            Class::Hypervisor,
            "start_domain",
            template(json!({ "disk": "b", "bus": "ide" })),
            "template.disks[1].bus",
        ),
        (
            Class::Hypervisor,
            "start_domain",
            template(json!({ "bus": "sata" })),
            "template.disks[1].disk",
        ),
        (
            Class::Core,
            "feedback",
            json!({ "to": { "all": false }, "topic": "t" }),
            "to.all",
        ),
    ] {
        let error = decode(class, name, params.clone()).expect_err(name);
        assert_eq!(error.code, Code::JobInvalidParams, "{params}");
        assert_eq!(error.detail["field"], field, "{params}: {error}");
    }
}

#[test]
fn every_task_is_at_home_where_the_contract_says() {
    let disk = || json!({ "disk": "d7" });
    let domain = || json!({ "domain": "web1" });
    for (class, name, params, home, priority) in [
        (
            Class::Storage,
            "upload",
            json!({ "disk": "d", "format": "raw" }),
            Home::Pool,
            Priority::High,
        ),
        (
            Class::Storage,
            "download",
            disk(),
            Home::Pool,
            Priority::Default,
        ),
        (
            Class::Storage,
            "unarchive_disk",
            disk(),
            Home::Pool,
            Priority::Default,
        ),
        (
            Class::Storage,
            "archive_disk",
            disk(),
            Home::Pool,
            Priority::Low,
        ),
        (
            Class::Storage,
            "move_disk",
            json!({ "disk": "d", "pool": "p" }),
            Home::Pair,
            Priority::Low,
        ),
        (
            Class::Storage,
            "ping",
            json!({}),
            Home::Pool,
            Priority::Default,
        ),
        (
            Class::Hypervisor,
            "start_domain",
            domain(),
            Home::Pool,
            Priority::Default,
        ),
        (
            Class::Hypervisor,
            "delete_domain",
            domain(),
            Home::Pool,
            Priority::Low,
        ),
        (
            Class::Hypervisor,
            "stop_domain",
            domain(),
            Home::Host,
            Priority::Default,
        ),
        (
            Class::Hypervisor,
            "stop_domain",
            json!({ "domain": "w", "mode": "destroy" }),
            Home::Host,
            Priority::High,
        ),
        (
            Class::Hypervisor,
            "reset_domain",
            domain(),
            Home::Host,
            Priority::High,
        ),
        (
            Class::Hypervisor,
            "create_snapshot",
            json!({ "domain": "w", "snapshot": "s" }),
            Home::Host,
            Priority::Low,
        ),
        (
            Class::Core,
            "feedback",
            json!({ "to": { "all": true }, "topic": "t", "payload": 1 }),
            Home::Core,
            Priority::Default,
        ),
    ] {
        let task = task(class, name, params);
        assert_eq!(
            (task.home(), task.home_priority()),
            (home, priority),
            "{name}"
        );
    }
}

#[test]
fn objects_are_named_with_the_target_first() {
    let named = |class, name, params| -> Vec<String> {
        task(class, name, params)
            .objects()
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let convert = json!({ "disk": "d7", "to": "d9", "format": "raw" });
    assert_eq!(
        named(Class::Storage, "convert", convert),
        ["disk.d7", "disk.d9"]
    );
    let start = json!({ "domain": "web1",
        "template": { "memory": "1GiB", "vcpus": 1, "disks": ["d7"], "media": ["m1"] } });
    let objects = ["domain.web1", "disk.d7", "media.m1"];
    assert_eq!(named(Class::Hypervisor, "start_domain", start), objects);
    assert_eq!(named(Class::Storage, "ping", json!({})), [""; 0]);
}

#[test]
fn long_tasks_are_those_of_the_contract() {
    let long = [
        (
            "convert",
            json!({ "disk": "a", "to": "b", "format": "raw" }),
        ),
        ("commit", json!({ "disk": "a" })),
        ("rebase", json!({ "disk": "a", "backing": null })),
        ("sparsify", json!({ "disk": "a" })),
        ("archive_disk", json!({ "disk": "a" })),
        ("unarchive_disk", json!({ "disk": "a" })),
        ("move_disk", json!({ "disk": "a", "pool": "p" })),
        (
            "import_url",
            json!({ "disk": "a", "format": "raw", "url": "https://a" }),
        ),
    ];
    for (name, params) in long {
        assert!(task(Class::Storage, name, params).is_long(), "{name}");
    }
    for name in ["delete_disk", "check_disk", "restore_disk", "download"] {
        assert!(
            !task(Class::Storage, name, json!({ "disk": "a" })).is_long(),
            "{name}"
        );
    }
}
