//! `./dev chaos`: the real thing under faults, for as long as one likes, then an audit.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use virtbus_tests::chaos::faults::Target;
use virtbus_tests::chaos::{Options, run};
use virtbus_tests::random::Random;

const USAGE: &str = "usage: chaos [--minutes N] [--seconds N] [--seed S] [--cluster] [--keep] \
                     [--only storage,core,feedback,nats,wires]";
/// Messaging servers of a cluster.
const CLUSTER: usize = 3;
/// Without a wish.
const MINUTES: u64 = 5;

fn options(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options {
        seed: 0,
        faults: Duration::from_secs(60 * MINUTES),
        nodes: 1,
        targets: Target::ALL.to_vec(),
        keep: false,
    };
    let mut seed = None;
    while let Some(name) = arguments.next() {
        let mut number = || arguments.next()?.parse::<u64>().ok();
        match name.as_str() {
            "--minutes" => options.faults = Duration::from_secs(60 * number()?),
            "--seconds" => options.faults = Duration::from_secs(number()?),
            "--seed" => seed = Some(number()?),
            "--cluster" => options.nodes = CLUSTER,
            "--keep" => options.keep = true,
            "--only" => {
                let named = arguments.next()?;
                let find = |name| Target::ALL.into_iter().find(|t| t.name() == name);
                options.targets = named.split(',').map(find).collect::<Option<_>>()?;
            }
            _ => return None,
        }
    }
    options.seed = seed.unwrap_or_else(|| Random::seeded().below(1_000_000));
    Some(options)
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(options) = options(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    println!("seed {}: {:?} of faults", options.seed, options.faults);
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let outcome = run(options, &parent).await;
    println!("{}", outcome.summary);
    if let Some(folder) = &outcome.folder {
        println!("journal, logs and report: {}", folder.display());
    }
    if outcome.violations.is_empty() {
        println!("nothing lost, nothing twice");
        return ExitCode::SUCCESS;
    }
    for violation in &outcome.violations {
        println!("VIOLATION {violation}\n");
    }
    println!("{} violations", outcome.violations.len());
    ExitCode::FAILURE
}
