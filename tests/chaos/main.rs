//! A short run of what `./dev chaos` does for as long as one likes: once with one messaging
//! server, once with a cluster of three.
//!
//! A program of its own, so that nothing else runs meanwhile. The seed is a new one each time, and
//! printed: what happens depends on the moment as well, so a fixed one would not repeat a run, only
//! keep it from ever drawing other jobs and faults.

use std::path::Path;
use std::time::Duration;
use virtbus_tests::chaos::faults::Target;
use virtbus_tests::chaos::{Options, run};
use virtbus_tests::random::Random;

/// How long there are faults.
const FAULTS: Duration = Duration::from_secs(40);

async fn all_is_well_after_faults(nodes: usize) {
    let options = Options {
        seed: Random::seeded().word(),
        faults: FAULTS,
        nodes,
        targets: Target::ALL.to_vec(),
        keep: false,
    };
    let outcome = run(options, Path::new(env!("CARGO_TARGET_TMPDIR"))).await;
    println!("{}", outcome.summary);
    let (violations, folder) = (outcome.violations.join("\n"), outcome.folder);
    assert!(violations.is_empty(), "{violations}\nlogs: {folder:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_happens_twice_while_all_fails() {
    all_is_well_after_faults(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_happens_twice_on_a_cluster_whose_nodes_fail() {
    all_is_well_after_faults(3).await;
}
