//! The jobs whose workers die at each moment (`moments.rs`), and what they stand on.

use serde_json::{Value, json};

/// A job whose worker dies, on disks and media whose ids begin with the run's own prefix.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) task: &'static str,
    /// Whether a tool changes the disk's file.
    pub(super) is_in_place: bool,
    /// The parameters, and what they stand on.
    pub(super) params: fn(&str) -> Value,
    pub(super) before: fn(&str) -> Vec<(&'static str, Value)>,
}

fn deletions() -> Vec<Case> {
    let none: fn(&str) -> Vec<(&'static str, Value)> = |_| Vec::new();
    vec![
        Case {
            is_in_place: false,
            task: "delete_disk",
            params: |p| json!({ "disk": format!("{p}d1"), "tree": true }),
            before: none,
        },
        Case {
            is_in_place: false,
            task: "delete_disk",
            params: |p| json!({ "disk": format!("{p}d1"), "tree": true, "mode": "unlink" }),
            before: none,
        },
        Case {
            is_in_place: false,
            task: "delete_media",
            params: |p| json!({ "media": format!("{p}m1") }),
            before: none,
        },
        Case {
            is_in_place: false,
            task: "delete_media",
            params: |p| json!({ "media": format!("{p}m1"), "mode": "unlink" }),
            before: none,
        },
    ]
}

/// What changes where a file lies.
pub(super) fn cases() -> Vec<Case> {
    let none: fn(&str) -> Vec<(&'static str, Value)> = |_| Vec::new();
    let archived: fn(&str) -> Vec<(&'static str, Value)> =
        |p| vec![("archive_disk", json!({ "disk": format!("{p}d2") }))];
    let others = [
        Case {
            is_in_place: false,
            task: "adopt_disk",
            params: |p| {
                json!({ "disk": format!("{p}new"), "format": "qcow2", "backing": format!("{p}d1"),
                        "file": format!("{p}x") })
            },
            before: none,
        },
        Case {
            is_in_place: false,
            task: "adopt_media",
            params: |p| json!({ "media": format!("{p}m2"), "format": "raw", "file": format!("{p}y") }),
            before: none,
        },
        Case {
            is_in_place: false,
            task: "move_disk",
            params: |p| json!({ "disk": format!("{p}d2"), "pool": "other", "tree": true }),
            before: none,
        },
        Case {
            is_in_place: false,
            task: "archive_disk",
            params: |p| json!({ "disk": format!("{p}d2") }),
            before: none,
        },
        Case {
            is_in_place: false,
            task: "unarchive_disk",
            params: |p| json!({ "disk": format!("{p}d2") }),
            before: archived,
        },
        Case {
            is_in_place: false,
            task: "delete_disk",
            params: |p| json!({ "disk": format!("{p}d2"), "mode": "unlink" }),
            before: archived,
        },
        Case {
            is_in_place: false,
            task: "restore_disk",
            params: |p| json!({ "disk": format!("{p}d2") }),
            before: |p| vec![("delete_disk", json!({ "disk": format!("{p}d2") }))],
        },
    ];
    deletions().into_iter().chain(others).collect()
}

/// What changes a disk's file in place, or makes another one of it by a tool.
pub(super) fn changes() -> Vec<Case> {
    let case = |task, params| Case {
        task,
        is_in_place: true,
        params,
        before: |_| Vec::new(),
    };
    let snapshot: fn(&str) -> Vec<(&'static str, Value)> = |p| {
        let params = json!({ "disk": format!("{p}d2"), "snapshot": "s" });
        vec![("create_snapshot", params)]
    };
    vec![
        case(
            "create_snapshot",
            |p| json!({ "disk": format!("{p}d2"), "base": format!("{p}new") }),
        ),
        case("commit", |p| json!({ "disk": format!("{p}d2") })),
        case(
            "commit",
            |p| json!({ "disk": format!("{p}d2"), "delete": true }),
        ),
        case(
            "rebase",
            |p| json!({ "disk": format!("{p}d2"), "backing": null }),
        ),
        case(
            "resize",
            |p| json!({ "disk": format!("{p}d2"), "size": "9MiB" }),
        ),
        case(
            "create_snapshot",
            |p| json!({ "disk": format!("{p}d2"), "snapshot": "s" }),
        ),
        Case {
            before: snapshot,
            ..case(
                "revert_snapshot",
                |p| json!({ "disk": format!("{p}d2"), "snapshot": "s" }),
            )
        },
        Case {
            before: snapshot,
            ..case(
                "delete_snapshot",
                |p| json!({ "disk": format!("{p}d2"), "snapshot": "s" }),
            )
        },
        case(
            "check_disk",
            |p| json!({ "disk": format!("{p}d2"), "repair": "all" }),
        ),
        case(
            "convert",
            |p| json!({ "disk": format!("{p}d2"), "to": format!("{p}new"), "format": "raw" }),
        ),
        case(
            "create_disk",
            |p| json!({ "disk": format!("{p}new"), "backing": format!("{p}d2") }),
        ),
    ]
}
