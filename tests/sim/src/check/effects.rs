//! Effects: one of what succeeded, none of what didn't.

use super::{History, Version, Versions, is_final, text};
use crate::disk::Effect;

pub(super) fn check(history: &History, jobs: &Versions) -> Vec<String> {
    let wrong = jobs
        .iter()
        .filter_map(|(job, versions)| of(history, job, versions));
    wrong.collect()
}

/// A retry by hand may give what failed its effect later.
fn of(history: &History, job: &str, versions: &[Version]) -> Option<String> {
    let last = &versions.last()?.value;
    let effects = history.effects.iter().filter(|effect| effect.job == job);
    let effects: Vec<&Effect> = effects.collect();
    let was_retried = versions
        .windows(2)
        .any(|pair| is_final(text(&pair[0].value, "state")));
    let successes = versions
        .iter()
        .filter(|version| text(&version.value, "state") == "succeeded");
    let successes = successes.count();
    // Done again by hand, it may find that others have changed the disk since.
    let expected = match text(last, "state") {
        _ if text(last, "task") == "ping" => 0..=0,
        "succeeded" => 1..=successes,
        "failed" | "cancelled" if was_retried && successes > 0 => 1..=successes,
        "failed" | "cancelled" => 0..=0,
        _ => return None,
    };
    (!expected.contains(&effects.len())).then(|| {
        let (state, count) = (text(last, "state"), effects.len());
        format!("{job} ends {state} with {count} effects: {effects:?}")
    })
}
