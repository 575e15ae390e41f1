//! What the catalogue says of disks, and what happened to them.

use super::{History, Version, Versions, number, text, version_at, versions};

pub(super) fn check(history: &History, jobs: &Versions) -> Vec<String> {
    let disks = versions(history, "$KV.disks.");
    let mut wrong = Vec::new();
    for (disk, versions) in &disks {
        wrong.extend(versions.windows(2).filter_map(|pair| change(disk, pair)));
    }
    wrong.extend(intents(history, &disks));
    wrong.extend(results(jobs, &disks));
    wrong.extend(at_the_end(history, &disks));
    wrong
}

fn is_intent(version: &Version) -> bool {
    matches!(text(&version.value, "state"), "creating" | "changing")
}

/// The epoch is one more with each intent, and only an intent changes whose the disk is.
fn change(disk: &str, pair: &[Version]) -> Option<String> {
    let (before, after) = (&pair[0], &pair[1]);
    // Made anew, or removed again.
    if before.value.is_null() || after.value.is_null() {
        let is_legal = is_intent(before) || is_intent(after);
        return (!is_legal).then(|| format!("{disk}: {before:?} becomes {after:?}"));
    }
    let epochs = [before, after].map(|version| number(&version.value, "epoch"));
    let is_same = before.value["owner_job"] == after.value["owner_job"];
    let is_legal = if is_intent(after) {
        epochs[1] == epochs[0] + 1
    } else {
        is_same && epochs[0] == epochs[1] && is_intent(before)
    };
    (!is_legal).then(|| format!("{disk}: {before:?} becomes {after:?}"))
}

/// Every effect was announced, by its own job.
fn intents(history: &History, disks: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    for effect in &history.effects {
        let said = disks
            .get(&effect.disk)
            .and_then(|all| version_at(all, effect.at));
        let is_announced =
            said.is_some_and(|said| is_intent(said) && said.value["owner_job"] == *effect.job);
        if !is_announced {
            wrong.push(format!("{effect:?} while the catalogue says {said:?}"));
        }
    }
    wrong
}

/// Whoever reads that a job succeeded finds the catalogue done.
fn results(jobs: &Versions, disks: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    for (job, versions) in jobs {
        let mut over = versions
            .iter()
            .filter(|version| text(&version.value, "state") == "succeeded");
        let (Some(over), Some(disk)) = (over.next(), versions[0].value["params"]["disk"].as_str())
        else {
            continue;
        };
        let said = disks.get(disk).into_iter().flatten();
        let mut said = said.filter(|said| said.at <= over.at && said.value["owner_job"] == *job);
        if !said.any(|said| !is_intent(said)) {
            wrong.push(format!(
                "{job} succeeded and the catalogue doesn't say so of {disk}"
            ));
        }
    }
    wrong
}

/// In the end every file is what the catalogue says.
fn at_the_end(history: &History, disks: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    let ids = disks.keys().chain(history.disks.keys());
    for disk in ids {
        let last = disks.get(disk).and_then(|versions| versions.last());
        let is_there = history.disks.get(disk).copied();
        let is_so = match last.map(|last| text(&last.value, "state")) {
            Some("ready") => last.and_then(|last| last.value["virtual_size"].as_u64()) == is_there,
            Some("deleted" | "") => is_there.is_none(),
            // It's told as left.
            Some(_) => true,
            // As it was from the beginning.
            None => is_there == Some(1),
        };
        if !is_so {
            wrong.push(format!(
                "{disk} is {is_there:?}, and the catalogue says {last:?}"
            ));
        }
    }
    wrong
}
