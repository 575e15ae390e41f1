//! Each task, cut at any of its steps: by a worker that is killed, by a cancel, by a worker that
//! freezes. What disks show a guest is compared, and all that the catalogue says of them.

use super::{
    claims::together,
    killed::At,
    site::{STEPS, Site},
};
use crate::task::Step;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use virtbus_wire::{Code, catalog::DiskState};
use virtbus_worker::{Assignment, Done, Stop, process};

/// A job, on disks of one world. Ids in braces get the world's prefix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    task: &'static str,
    params: &'static str,
    /// Jobs that are done before.
    before: &'static [(&'static str, &'static str)],
    /// What the result says that another claim measures anew.
    measured: &'static [&'static str],
}

pub(super) const fn case(task: &'static str, params: &'static str) -> Case {
    Case {
        task,
        params,
        before: &[],
        measured: &[],
    }
}

impl Case {
    /// The same, where another claim, or one on another file, measures this anew.
    pub(super) const fn measures(self, measured: &'static [&'static str]) -> Self {
        Self { measured, ..self }
    }

    /// Whether it has no effect in the pool: two at once then do no harm.
    fn only_looks(&self) -> bool {
        self.task == "check_disk" && !self.params.contains("repair")
    }

    /// Whether the job or one before it names this.
    fn names(&self, id: &str) -> bool {
        let word = format!("{{{id}}}");
        let mut texts = self.before.iter().map(|(_, params)| *params);
        self.params.contains(&word) || texts.any(|params| params.contains(&word))
    }
}

/// What the job needs, on a site shared with other worlds, told apart by the prefix of their ids:
/// the disk `a` holds something and has the snapshot `s` of something else; `b` is below `c`; `e`
/// is like `b` but not the same; `m` is a medium; the files `x`, an overlay of `b`, and `y` lie
/// there to be adopted. `n` and `p` are new.
pub(super) struct World<'a> {
    pub(super) site: &'a Site,
    prefix: String,
}

/// All that can be seen of a world: of each disk the record and the content, and the files.
pub(super) type Sight = BTreeMap<String, Value>;

impl<'a> World<'a> {
    pub(super) async fn new(site: &'a Site, number: usize, case: Case) -> Self {
        let prefix = format!("w{number}-");
        let world = Self { site, prefix };
        let has_pair = case.names("b") || case.names("c");
        for (disk, is_needed) in [
            ("a", case.names("a")),
            ("b", has_pair),
            ("e", case.names("e")),
        ] {
            if is_needed {
                site.filled_disk(&world.id(disk)).await;
            }
        }
        if case.names("a") {
            let snapshot = r#"{"disk": "{a}", "snapshot": "s"}"#;
            world.done("create_snapshot", snapshot).await;
            world.write("a", "write -P 3 0 1M");
        }
        if case.names("e") {
            world.write("e", "write -P 4 3M 512k");
        }
        if has_pair {
            let overlay = r#"{"disk": "{c}", "backing": "{b}"}"#;
            world.done("create_disk", overlay).await;
            world.write("c", "write -P 9 2M 1M");
        }
        if case.names("x") {
            site.foreign_overlay(&world.id("x"), &world.id("b"));
        }
        if case.names("y") {
            std::fs::create_dir_all(site.path("adopt")).unwrap();
            std::fs::write(site.path("adopt").join(world.id("y")), [5; 4096]).unwrap();
        }
        if case.names("m") {
            site.filled_medium(&world.id("m")).await;
        }
        for (task, params) in case.before {
            world.done(task, params).await;
        }
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

    pub(super) async fn done(&self, task: &str, params: &str) {
        let id = format!("{}{task}", self.prefix);
        self.site.done(&id, task, self.params(params)).await;
    }

    pub(super) fn envelope(&self, case: Case) -> Value {
        let (id, params) = (format!("{}j", self.prefix), self.params(case.params));
        json!({ "id": id, "task": case.task, "params": params })
    }

    pub(super) fn claim(&self, case: Case, claim: u64) -> Assignment {
        self.site.claimed(self.envelope(case), claim)
    }

    /// The world's files in a folder, below the folder of all pools.
    fn files(&self, folder: &str) -> Vec<String> {
        let files = self.site.files(&format!("../{folder}"));
        let own = |name: &String| name.contains(&self.prefix);
        files.into_iter().filter(own).collect()
    }

    /// What the ids, the files and their contents are now, without the prefix.
    pub(super) async fn sight(&self) -> Sight {
        let mut sight = Sight::new();
        for pool in ["pool", "other", "archive"] {
            for folder in ["disks", "media", "adopt"].map(|name| format!("{pool}/{name}")) {
                sight.insert(folder.clone(), json!(self.files(&folder)));
            }
            let trash = self.files(&format!("{pool}/trash"));
            sight.insert(format!("{pool}/trash"), json!(trash.len()));
        }
        for folder in ["pool/disks", "other/disks"] {
            for file in self.files(folder) {
                if let Some((id, format)) = file.split_once('.') {
                    let path = format!("../../{folder}/{file}");
                    let content = self.site.content(&path, format);
                    sight.insert(format!("content of {id}"), json!(content));
                }
            }
        }
        for id in ["a", "b", "c", "e", "n"] {
            let Some(disk) = self.site.disk(&self.id(id)).await else {
                continue;
            };
            let record = &disk.record;
            let told = json!([
                record.state,
                record.pool,
                record.virtual_size,
                record.format,
                record.backing,
                record.children,
                record.snapshots
            ]);
            sight.insert(format!("record of {id}"), told);
        }
        for id in ["m", "p"] {
            if let Some(medium) = self.site.medium(&self.id(id)).await {
                let record = &medium.record;
                let told = json!([record.state, record.pool, record.format]);
                sight.insert(format!("record of {id}"), told);
            }
        }
        let text = serde_json::to_string(&sight).unwrap();
        serde_json::from_str(&text.replace(&self.prefix, "")).unwrap()
    }
}

pub(super) fn told(case: Case, done: Result<Done, Stop>, when: &str) -> Value {
    let mut done = done.unwrap_or_else(|stop| panic!("{case:?} {when}: {stop:?}"));
    done.retain(|field, _| !case.measured.contains(&field.as_str()));
    let text = serde_json::to_string(&done).unwrap();
    // The prefix of any world.
    let mut parts = text.split("\"w");
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-'));
    json!(rest.fold(first, |text, part| text + "\"" + part))
}

/// Cuts a job at each of its steps, in each way.
pub(super) async fn cut_at(site: &Site, case: Case) {
    let whole = World::new(site, 0, case).await;
    let before = whole.sight().await;
    let (done, moments) = whole_run(&whole, case).await;
    let result = told(case, done, "whole");
    let after = whole.sight().await;
    is_restored(case, &whole, (&result, &after)).await;
    let mut number = 10;
    let mut world = async || {
        number += 1;
        World::new(site, number, case).await
    };
    for at in &moments {
        dies(case, &world().await, *at, (&result, &after)).await;
        is_cancelled(case, &world().await, *at, (&before, &after)).await;
        // Before the intent nobody could tell that there was anything.
        if !matches!(at, At::Within(0 | 1) | At::After(0 | 1)) {
            dies_and_is_cancelled(case, &world().await, *at, (&before, &after)).await;
        }
    }
    let mut worlds = Vec::new();
    for step in STEPS {
        worlds.push((step, world().await));
    }
    let seen = (&result, &after);
    together(&worlds, async |one| freezes(case, one, seen).await);
}

/// The jobs' records are put back as they were before, so that the job is claimed for the first
/// time once more: what it did is found, and not done again.
async fn is_restored(case: Case, world: &World<'_>, (result, after): (&Value, &Sight)) {
    let again = world.site.run(&world.claim(case, 1)).await;
    assert_eq!(told(case, again, "restored"), *result, "{case:?} restored");
    assert_eq!(world.sight().await, *after, "{case:?} restored");
}

/// A run that nothing disturbs: the result, and when it could have been cut.
async fn whole_run(world: &World<'_>, case: Case) -> (Result<Done, Stop>, Vec<At>) {
    let job = world.claim(case, 1);
    let (done, told) = world.site.run_noting(&job).await;
    let is_there = |at: &At| match at {
        At::After(_) => true,
        At::Within(step) => told.contains(step),
    };
    (done, At::all().filter(is_there).collect())
}

/// The worker is killed, the next claim runs.
async fn dies(case: Case, world: &World<'_>, at: At, (result, after): (&Value, &Sight)) {
    let when = format!("{case:?} killed {at:?}");
    assert!(
        world.site.is_killed(world.envelope(case), at).await,
        "{when}"
    );
    let done = world.site.run_after(&world.claim(case, 2)).await;
    assert_eq!(told(case, done, &when), *result, "{when}");
    assert_eq!(world.sight().await, *after, "{when}");
}

/// The job is told to stop while its worker lives: it ends as before, or done, and before its
/// fence always as before.
async fn is_cancelled(case: Case, world: &World<'_>, at: At, (before, after): (&Sight, &Sight)) {
    let when = format!("{case:?} stopped {at:?}");
    let stop = process::Stop::new();
    let ended = world
        .site
        .stopped_at(&world.claim(case, 1), at, &stop)
        .await;
    let is_late = match at {
        At::After(step) | At::Within(step) => STEPS[step..].len() <= 3,
    };
    assert_eq!(ended.is_ok(), is_late, "{when}: {ended:?}");
    let expected = if is_late { after } else { before };
    assert_eq!(world.sight().await, *expected, "{when}");
}

/// The worker is killed, and the next claim finds the job cancelled: the effect that was begun is
/// finished, one that wasn't never comes.
async fn dies_and_is_cancelled(
    case: Case,
    world: &World<'_>,
    at: At,
    (before, after): (&Sight, &Sight),
) {
    let when = format!("{case:?} cancelled, killed {at:?}");
    assert!(
        world.site.is_killed(world.envelope(case), at).await,
        "{when}"
    );
    let found = world.site.give_up(&world.claim(case, 2)).await;
    let found = found.unwrap_or_else(|stop| panic!("{when}: {stop:?}"));
    if matches!(at, At::After(..4)) {
        assert_eq!(found, None, "{when}");
    }
    let expected = if found.is_some() { after } else { before };
    assert_eq!(world.sight().await, *expected, "{when}");
}

/// The worker freezes after a step, and wakes up after the next claim came.
async fn freezes(case: Case, (step, world): &(Step, World<'_>), (result, after): (&Value, &Sight)) {
    let when = format!("{case:?} frozen after {step:?}");
    let (first, next) = (world.claim(case, 1), world.claim(case, 2));
    let (woken, second) = world.site.frozen(&first, *step, &next).await;
    match step {
        Step::Check | Step::Work | Step::Intend => assert!(woken.is_err(), "{when}: {woken:?}"),
        Step::Commit => assert!(
            woken.is_err() || second.is_err() || case.only_looks(),
            "{when}: two effects"
        ),
        // The next one only finds it.
        Step::Effect | Step::Publish => {}
    }
    // The lock on the file is what keeps the second out as long as the first is there.
    if let Err(Stop::Failed(error)) = &second {
        assert_eq!(error.code, Code::DiskBusy, "{when}");
    }
    for done in [&woken, &second].into_iter().flatten() {
        assert_eq!(told(case, Ok(done.clone()), &when), *result, "{when}");
    }
    // The first held what the second needed, or found gone what the second's clean-up took:
    // nothing was begun.
    if woken.is_err() && second.is_err() {
        let done = world.site.run(&world.claim(case, 3)).await;
        assert_eq!(told(case, done, &when), *result, "{when}");
    }
    assert_eq!(world.sight().await, *after, "{when}");
}

macro_rules! cuts {
    ($($name:ident: $case:expr,)+) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            cut_at(&Site::start().await, $case).await;
        })+
    };
}

cuts!(
    a_disk_that_is_made: case("create_disk", r#"{"disk": "{n}", "size": "4MiB"}"#),
    an_overlay_that_is_made_of_a_backing: case("create_disk", r#"{"disk": "{n}", "backing": "{b}"}"#),
    a_copy_in_another_format: case("convert", r#"{"disk": "{c}", "to": "{n}", "format": "raw"}"#),
    a_resize: case("resize", r#"{"disk": "{a}", "size": "9MiB"}"#),
    a_snapshot_that_is_made: case("create_snapshot", r#"{"disk": "{a}", "snapshot": "t"}"#),
    a_snapshot_that_is_reverted_to: case("revert_snapshot", r#"{"disk": "{a}", "snapshot": "s"}"#),
    a_snapshot_that_is_removed: case("delete_snapshot", r#"{"disk": "{a}", "snapshot": "s"}"#),
    an_overlay_that_is_made: case("create_snapshot", r#"{"disk": "{c}", "overlay": "{n}"}"#),
    a_base_of_a_disk_that_stands_alone: case("create_snapshot", r#"{"disk": "{a}", "base": "{n}"}"#),
    a_base_of_an_overlay: case("create_snapshot", r#"{"disk": "{c}", "base": "{n}"}"#),
    a_commit_that_leaves_the_disk: case("commit", r#"{"disk": "{c}"}"#),
    a_commit_that_takes_the_disk_along: case("commit", r#"{"disk": "{c}", "delete": true}"#),
    a_rebase_onto_another_backing: case("rebase", r#"{"disk": "{c}", "backing": "{e}"}"#),
    a_rebase_onto_nothing: case("rebase", r#"{"disk": "{c}", "backing": null}"#),
    a_check: case("check_disk", r#"{"disk": "{a}"}"#).measures(&["actual_size"]),
    a_repair: case("check_disk", r#"{"disk": "{a}", "repair": "all"}"#).measures(&["actual_size"]),
    a_disk_that_goes_to_the_trash: case("delete_disk", r#"{"disk": "{a}"}"#),
    a_tree_that_is_unlinked:
        case("delete_disk", r#"{"disk": "{b}", "mode": "unlink", "tree": true}"#).measures(&["freed"]),
    a_disk_that_is_overwritten:
        case("delete_disk", r#"{"disk": "{e}", "mode": "wipe"}"#).measures(&["freed"]),
    a_disk_out_of_the_trash: Case {
        before: &[("delete_disk", r#"{"disk": "{a}"}"#)],
        measured: &["actual_size"],
        ..case("restore_disk", r#"{"disk": "{a}"}"#)
    },
    a_disk_into_the_archive: case("archive_disk", r#"{"disk": "{c}"}"#).measures(&["archived_size"]),
    a_disk_out_of_the_archive: Case {
        before: &[("archive_disk", r#"{"disk": "{c}"}"#)],
        measured: &["actual_size"],
        ..case("unarchive_disk", r#"{"disk": "{c}"}"#)
    },
    an_overlay_from_outside: case("adopt_disk", r#"{"disk": "{n}", "format": "qcow2", "backing": "{b}", "file": "{x}"}"#),
    a_medium_from_outside: case("adopt_media", r#"{"media": "{p}", "format": "raw", "file": "{y}"}"#),
    a_medium_that_goes_to_the_trash: case("delete_media", r#"{"media": "{m}"}"#),
    a_medium_that_is_unlinked:
        case("delete_media", r#"{"media": "{m}", "mode": "unlink"}"#).measures(&["freed"]),
    a_tree_that_moves: Case {
        measured: &["bytes"],
        ..case("move_disk", r#"{"disk": "{c}", "pool": "other", "tree": true}"#)
    },
);

/// So that the world is what it's said to be.
#[tokio::test]
async fn the_world_holds_what_it_should() {
    let site = Site::start().await;
    let all = case("rebase", r#"{"disk": "{c}", "backing": "{e}", "x": "{a}"}"#);
    let world = World::new(&site, 1, all).await;
    let record = site.record(&world.id("a")).await;
    assert_eq!(record.state, DiskState::Ready);
    assert_eq!(record.snapshots, ["s".parse().unwrap()]);
    let sight = world.sight().await;
    assert_ne!(sight["content of b"], sight["content of c"]);
    assert_ne!(sight["content of b"], sight["content of e"]);
    assert_eq!(
        sight["pool/disks"],
        json!(["a.qcow2", "b.qcow2", "c.qcow2", "e.qcow2"])
    );
}
