//! Each task that changes chains and snapshots, cut after any of its steps: by a worker that dies,
//! by a cancel, by a worker that freezes. What disks show a guest is compared, and all that the
//! catalogue says of them.

use super::site::{STEPS, Site};
use crate::task::Step;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use virtbus_wire::{Code, catalog::DiskState};
use virtbus_worker::{Assignment, Done, Perform, Stop, process};

/// A job, on disks of one world. Ids in braces get the world's prefix.
#[derive(Debug, Clone, Copy)]
struct Case {
    task: &'static str,
    params: &'static str,
    /// What the result says that another claim measures anew.
    measured: &'static [&'static str],
}

const fn case(task: &'static str, params: &'static str) -> Case {
    Case {
        task,
        params,
        measured: &[],
    }
}

/// Disks of their own on a site shared with other worlds, told apart by the prefix of their ids:
/// `a` holds something and has the snapshot `s` of something else; `b` is below `c`; `e` is like
/// `b` but not the same.
struct World<'a> {
    site: &'a Site,
    prefix: String,
}

/// All that can be seen of a world: of each disk the record and the content, and the files.
type Sight = BTreeMap<String, Value>;

impl<'a> World<'a> {
    async fn new(site: &'a Site, number: usize) -> Self {
        let world = Self {
            site,
            prefix: format!("w{number}-"),
        };
        for disk in ["a", "b", "e"] {
            site.filled_disk(&world.id(disk)).await;
        }
        let snapshot = r#"{"disk": "{a}", "snapshot": "s"}"#;
        world.done("create_snapshot", snapshot).await;
        world.write("a", "write -P 3 0 1M");
        world.write("e", "write -P 4 3M 512k");
        world
            .done("create_disk", r#"{"disk": "{c}", "backing": "{b}"}"#)
            .await;
        world.write("c", "write -P 9 2M 1M");
        world
    }

    fn id(&self, disk: &str) -> String {
        format!("{}{disk}", self.prefix)
    }

    fn params(&self, text: &str) -> Value {
        let text = text.replace(": \"{", &format!(": \"{}", self.prefix));
        serde_json::from_str(&text.replace("}\"", "\"")).unwrap()
    }

    fn write(&self, disk: &str, command: &str) {
        let file = format!("{}.qcow2", self.id(disk));
        self.site.write(&file, "qcow2", command);
    }

    async fn done(&self, task: &str, params: &str) {
        let id = format!("{}{task}", self.prefix);
        self.site.done(&id, task, self.params(params)).await;
    }

    fn claim(&self, case: Case, claim: u64) -> Assignment {
        let id = format!("{}j", self.prefix);
        let params = self.params(case.params);
        let envelope = json!({ "id": id, "task": case.task, "params": params });
        self.site.claimed(envelope, claim)
    }

    /// What the ids, the files and their contents are now, without the prefix.
    async fn sight(&self) -> Sight {
        let mut sight = Sight::new();
        let own = |name: &String| name.contains(&self.prefix);
        let files: Vec<String> = self.site.files("disks").into_iter().filter(own).collect();
        let trash = self
            .site
            .files("trash")
            .iter()
            .filter(|name| own(name))
            .count();
        for file in &files {
            if let Some((id, format)) = file.split_once('.') {
                let content = self.site.content(file, format);
                sight.insert(format!("content of {id}"), json!(content));
            }
        }
        for disk in ["a", "b", "c", "e", "n"] {
            let Some(disk) = self.site.disk(&self.id(disk)).await else {
                continue;
            };
            let record = &disk.record;
            let told = json!([
                record.state,
                record.virtual_size,
                record.format,
                record.backing,
                record.children,
                record.snapshots
            ]);
            sight.insert(format!("record of {}", disk.id), told);
        }
        sight.insert("files".to_owned(), json!([files, trash]));
        let text = serde_json::to_string(&sight).unwrap();
        serde_json::from_str(&text.replace(&self.prefix, "")).unwrap()
    }
}

fn told(case: Case, done: Result<Done, Stop>, when: &str) -> Value {
    let mut done = done.unwrap_or_else(|stop| panic!("{case:?} {when}: {stop:?}"));
    done.retain(|field, _| !case.measured.contains(&field.as_str()));
    let text = serde_json::to_string(&done).unwrap();
    // The prefix of any world.
    let mut parts = text.split("\"w");
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-'));
    json!(rest.fold(first, |text, part| text + "\"" + part))
}

/// Cuts a job after each of its steps, in each way.
async fn cut(case: Case) {
    let site = Site::start().await;
    let whole = World::new(&site, 0).await;
    let before = whole.sight().await;
    let result = told(case, site.run(&whole.claim(case, 1)).await, "whole");
    let after = whole.sight().await;
    for (number, step) in STEPS.into_iter().enumerate() {
        let world = World::new(&site, 10 + number).await;
        dies(case, &world, step, (&result, &after)).await;
    }
    for (number, step) in STEPS[..4].iter().enumerate() {
        let world = World::new(&site, 20 + number).await;
        is_cancelled(case, &world, *step, (&before, &after)).await;
    }
    for (number, step) in STEPS[2..].iter().enumerate() {
        let world = World::new(&site, 30 + number).await;
        dies_and_is_cancelled(case, &world, *step, (&before, &after)).await;
    }
    let world = World::new(&site, 40).await;
    freezes(case, &world, (&result, &after)).await;
}

/// The worker dies, the next claim runs.
async fn dies(case: Case, world: &World<'_>, step: Step, (result, after): (&Value, &Sight)) {
    let when = format!("{case:?} after {step:?}");
    world.site.die(&world.claim(case, 1), step).await;
    let done = world.site.run(&world.claim(case, 2)).await;
    assert_eq!(told(case, done, &when), *result, "{when}");
    assert_eq!(world.sight().await, *after, "{when}");
}

/// The job is told to stop while its worker lives.
async fn is_cancelled(
    case: Case,
    world: &World<'_>,
    step: Step,
    (before, after): (&Sight, &Sight),
) {
    let stop = process::Stop::new();
    let job = world.claim(case, 1);
    let ended = world.site.stopped_after(&job, step, &stop).await;
    let is_late = !matches!(step, Step::Check | Step::Work | Step::Intend);
    let expected = if is_late { after } else { before };
    assert_eq!(ended.is_ok(), is_late, "{case:?} {step:?}: {ended:?}");
    assert_eq!(
        world.sight().await,
        *expected,
        "{case:?} stopped after {step:?}"
    );
}

/// The worker dies, and the next claim finds the job cancelled: the effect that was begun is
/// finished, one that wasn't never comes.
async fn dies_and_is_cancelled(
    case: Case,
    world: &World<'_>,
    step: Step,
    (before, after): (&Sight, &Sight),
) {
    let when = format!("{case:?} cancelled, dead after {step:?}");
    world.site.die(&world.claim(case, 1), step).await;
    let next = world.claim(case, 2);
    let store = &world.site.store;
    store.clean(&next).await.unwrap();
    let found = store.recover(&next).await.unwrap();
    if found.is_none() {
        for _ in 0..2 {
            store.abandon(&next).await.unwrap();
        }
    }
    let has_effect = matches!(step, Step::Effect | Step::Publish);
    assert_eq!(found.is_some(), has_effect, "{when}");
    let expected = if has_effect { after } else { before };
    assert_eq!(world.sight().await, *expected, "{when}");
}

/// The worker freezes at its fence, and wakes up after the next claim came.
async fn freezes(case: Case, world: &World<'_>, (result, after): (&Value, &Sight)) {
    let when = format!("{case:?} frozen");
    let (first, next) = (world.claim(case, 1), world.claim(case, 2));
    let (woken, second) = world.site.frozen(&first, Step::Commit, &next).await;
    assert!(woken.is_err() || second.is_err(), "{when}: two effects");
    // The lock on the file is what keeps the second out as long as the first is there.
    if let Err(Stop::Failed(error)) = &second {
        assert_eq!(error.code, Code::DiskBusy, "{when}");
    }
    match (woken, second) {
        (Ok(done), _) | (_, Ok(done)) => assert_eq!(told(case, Ok(done), &when), *result),
        // The first found gone what the second's clean-up took: nothing was begun.
        (Err(_), Err(_)) => {
            let done = world.site.run(&world.claim(case, 3)).await;
            assert_eq!(told(case, done, &when), *result, "{when}");
        }
    }
    assert_eq!(world.sight().await, *after, "{when}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_made() {
    cut(case(
        "create_snapshot",
        r#"{"disk": "{a}", "snapshot": "t"}"#,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_reverted_to() {
    cut(case(
        "revert_snapshot",
        r#"{"disk": "{a}", "snapshot": "s"}"#,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_removed() {
    cut(case(
        "delete_snapshot",
        r#"{"disk": "{a}", "snapshot": "s"}"#,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_that_is_made() {
    cut(case(
        "create_snapshot",
        r#"{"disk": "{c}", "overlay": "{n}"}"#,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_of_a_disk_that_stands_alone() {
    cut(case("create_snapshot", r#"{"disk": "{a}", "base": "{n}"}"#)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_of_an_overlay() {
    cut(case("create_snapshot", r#"{"disk": "{c}", "base": "{n}"}"#)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_leaves_the_disk() {
    cut(case("commit", r#"{"disk": "{c}"}"#)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_takes_the_disk_along() {
    cut(case("commit", r#"{"disk": "{c}", "delete": true}"#)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebase_onto_another_backing() {
    cut(case("rebase", r#"{"disk": "{c}", "backing": "{e}"}"#)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebase_onto_nothing() {
    cut(case("rebase", r#"{"disk": "{c}", "backing": null}"#)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair() {
    cut(Case {
        // What a file takes on its disk is the file system's business, and may change by itself.
        measured: &["actual_size"],
        ..case("check_disk", r#"{"disk": "{a}", "repair": "all"}"#)
    })
    .await;
}

/// So that the world is what it's said to be.
#[tokio::test]
async fn the_world_holds_what_it_should() {
    let site = Site::start().await;
    let world = World::new(&site, 1).await;
    let record = site.record(&world.id("a")).await;
    assert_eq!(record.state, DiskState::Ready);
    assert_eq!(record.snapshots, ["s".parse().unwrap()]);
    let sight = world.sight().await;
    assert_ne!(sight["content of b"], sight["content of c"]);
    assert_ne!(sight["content of b"], sight["content of e"]);
    assert_eq!(
        sight["files"][0],
        json!(["a.qcow2", "b.qcow2", "c.qcow2", "e.qcow2"])
    );
}
