//! A worker that dies at any moment from its first lock on a file to its last word, and what comes
//! after it: another claim that goes on, or the end of the job.
//!
//! A moment is one of those in which the worker waits: for the server, or for a file. It dies when
//! what it waited for has come, and does nothing more. Each case runs again and again, and dies
//! one moment later each time, until it gets through.
//!
//! What only goes from one place to another is compared byte by byte. Of what a tool changed in
//! place, what a guest would see is: one that does its work once more may take other clusters.

use super::{
    moment_cases::{Case, cases, changes},
    moment_runs::{Runs, WHOLE},
    site::Site,
};
use serde_json::{Value, json};
use virtbus_wire::Code;
use virtbus_worker::{Assignment, Perform, Stop};

/// More moments than any case has.
const MOMENTS_MAX: usize = 500;
impl Case {
    pub(super) fn envelope(&self, p: &str) -> Value {
        let params = (self.params)(p);
        json!({ "id": format!("{p}j"), "task": self.task, "params": params })
    }

    pub(super) fn job(&self, site: &Site, p: &str, claim: u64) -> Assignment {
        site.claimed(self.envelope(p), claim)
    }

    /// The claim goes on to its end, after the one that died.
    async fn goes_on(&self, site: &Site, p: &str, moment: usize) -> Value {
        let job = self.job(site, p, 2);
        let done = until_free(async || site.run(&job).await).await;
        let done = done.unwrap_or_else(|stop| panic!("{} {moment}: {stop:?}", self.task));
        // A later claim that finds all done says the same.
        let again = site.store.recover(&self.job(site, p, 3)).await.unwrap();
        if let Some(again) = again {
            assert_eq!(again, done, "{} {moment}", self.task);
        }
        Value::Object(done)
    }

    /// The job ends without its effect, after the claim that died: it's found, or put back.
    async fn is_given_up(&self, site: &Site, p: &str, moment: usize) -> bool {
        let next = self.job(site, p, 2);
        let found = until_free(async || site.give_up(&next).await).await;
        let found = found.unwrap_or_else(|error| panic!("{} {moment}: {error:?}", self.task));
        found.is_some()
    }
}

/// Tries again while a disk's lock is held: a program that a test beside this one starts has all
/// that's open for the moment before it becomes that program.
async fn until_free<T>(act: impl AsyncFn() -> Result<T, Stop>) -> Result<T, Stop> {
    loop {
        match act().await {
            Err(Stop::Failed(error)) if error.code == Code::DiskBusy => {}
            done => return done,
        }
        tokio::task::yield_now().await;
    }
}

/// What a job says, but for what files take on their disk: that's not the same for another file.
pub(super) fn said(done: &Value, p: &str) -> Value {
    let mut said: Value = serde_json::from_str(&done.to_string().replace(p, "")).unwrap();
    let fields = said.as_object_mut().unwrap();
    for field in ["freed", "bytes", "actual_size", "archived_size"] {
        fields.remove(field);
    }
    said
}

async fn survives(case: Case) {
    let site = Site::start().await;
    let runs = Runs::new(&site, case).await;
    let before = runs.picture(WHOLE).await;
    let expected = site.run(&case.job(&site, WHOLE, 1)).await.unwrap();
    let expected = said(&Value::Object(expected), WHOLE);
    let after = runs.picture(WHOLE).await;
    for moment in 0..MOMENTS_MAX {
        let (p, q) = (format!("a{moment:03}-"), format!("b{moment:03}-"));
        runs.begin(&p).await;
        let is_through = site.dies_at(&case.job(&site, &p, 1), moment).await;
        let done = case.goes_on(&site, &p, moment).await;
        assert_eq!(said(&done, &p), expected, "{} {moment}", case.task);
        assert_eq!(runs.picture(&p).await, after, "{} {moment}", case.task);
        runs.begin(&q).await;
        site.dies_at(&case.job(&site, &q, 1), moment).await;
        let is_found = case.is_given_up(&site, &q, moment).await;
        let found = runs.picture(&q).await;
        // The job's record says `succeeded` then, else `cancelled`.
        let wanted = if is_found { &after } else { &before };
        assert_eq!(&found, wanted, "{} {moment}: {is_found}", case.task);
        if is_through {
            assert!(moment > 0);
            return;
        }
    }
    panic!("{}: no end", case.task);
}

macro_rules! cut {
    ($cases:ident: $($name:ident = $number:literal,)+) => {
        $(#[tokio::test]
        async fn $name() {
            survives($cases()[$number]).await;
        })+
    };
}

cut!(
    cases:
    a_tree_that_goes_to_the_trash_goes_once = 0,
    a_tree_that_is_unlinked_goes_once = 1,
    a_medium_that_goes_to_the_trash_goes_once = 2,
    a_medium_that_is_unlinked_goes_once = 3,
    an_overlay_is_adopted_once = 4,
    a_medium_is_adopted_once = 5,
    a_tree_is_moved_once = 6,
    a_disk_is_archived_once = 7,
    a_disk_comes_back_from_the_archive_once = 8,
    an_archived_disk_goes_once = 9,
    a_disk_comes_back_from_the_trash_once = 10,
);

cut!(
    changes:
    a_disk_becomes_an_overlay_of_its_base_once = 0,
    an_overlay_is_committed_once = 1,
    an_overlay_is_committed_and_goes_once = 2,
    an_overlay_is_made_flat_once = 3,
    a_disk_grows_once = 4,
    a_snapshot_is_made_once = 5,
    a_snapshot_is_reverted_to_once = 6,
    a_snapshot_is_removed_once = 7,
    a_disk_is_repaired_once = 8,
    a_disk_is_converted_once = 9,
    an_overlay_is_made_once = 10,
);
