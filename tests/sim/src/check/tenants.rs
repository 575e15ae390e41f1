//! Caps of tenants.

use super::{History, Versions, text};
use std::collections::BTreeMap;

/// At no time more jobs of one tenant are at their work than may be.
pub(super) fn check(history: &History, jobs: &Versions) -> Vec<String> {
    let cap = usize::try_from(history.plan.cap).unwrap_or(usize::MAX);
    if cap == 0 {
        return Vec::new();
    }
    let all = jobs.iter().flat_map(|(job, versions)| {
        let versions = versions.iter();
        versions.map(move |version| (version.revision, job, &version.value))
    });
    let mut all: Vec<_> = all.collect();
    all.sort_unstable_by_key(|(revision, ..)| *revision);
    let mut at_work: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (revision, job, record) in all {
        let tenant = text(record, "tenant");
        if tenant.is_empty() {
            continue;
        }
        let at_work = at_work.entry(tenant).or_default();
        at_work.retain(|other| other != job);
        let has_it = matches!(text(record, "state"), "running" | "cancelling");
        if has_it && matches!(text(record, "phase"), "work" | "commit") {
            at_work.push(job);
        }
        if at_work.len() > cap {
            wrong.push(format!(
                "revision {revision}: {tenant} has {at_work:?} at work"
            ));
        }
    }
    wrong
}
