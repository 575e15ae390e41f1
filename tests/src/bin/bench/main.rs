//! What the bus costs: latency, throughput and bytes, each beside the same done bare, in the same
//! run on the same server.
//!
//! `./dev bench [latency|throughput|convert|tasks|domains|crowds|scale]... [--record] [--quick]`;
//! without a name all but the last. `--record` also writes the tables into BENCH.md, `--quick` makes
//! `tasks`, `crowds` and `scale` small. The programs are taken from the folder this one lies in.
//! Everything is started here, in a folder below `target/`, and is gone afterwards.

mod bare;
mod convert;
mod crowds;
mod domains;
mod error;
mod events;
mod latency;
mod machine;
mod report;
mod scale;
mod site;
mod stats;
mod tasks;
mod throughput;
mod tools;

use error::{Failure, failure};
use futures_util::FutureExt as _;
use report::Report;
use scale::Size;
use site::Site;
use std::{panic::AssertUnwindSafe, path::PathBuf, process::ExitCode, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

/// The longest a part may take: a hang ends as a failure.
const PART_LIMIT: Duration = Duration::from_secs(180);
/// The same where a tool starts a machine each time, domains are started by the dozen, or jobs are
/// published by the ten thousand.
const MACHINES_LIMIT: Duration = Duration::from_secs(900);
/// The same where a million jobs are published.
const SCALE_LIMIT: Duration = Duration::from_secs(5_400);

const USAGE: &str =
    "usage: bench [latency|throughput|convert|tasks|domains|crowds|scale]... [--record] [--quick]";

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Latency,
    Throughput,
    Convert,
    Tasks,
    Domains,
    Crowds,
    Scale,
}

impl Part {
    const ALL: [Self; 7] = [
        Self::Latency,
        Self::Throughput,
        Self::Convert,
        Self::Tasks,
        Self::Domains,
        Self::Crowds,
        Self::Scale,
    ];
    /// Those that take minutes, not an hour.
    const USUAL: [Self; 6] = [
        Self::Latency,
        Self::Throughput,
        Self::Convert,
        Self::Tasks,
        Self::Domains,
        Self::Crowds,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Throughput => "throughput",
            Self::Convert => "convert",
            Self::Tasks => "tasks",
            Self::Domains => "domains",
            Self::Crowds => "crowds",
            Self::Scale => "scale",
        }
    }

    fn limit(self) -> Duration {
        match self {
            Self::Latency | Self::Throughput | Self::Convert => PART_LIMIT,
            Self::Tasks | Self::Domains | Self::Crowds => MACHINES_LIMIT,
            Self::Scale => SCALE_LIMIT,
        }
    }

    async fn measure(self, site: &mut Site, size: Size) -> Result<Report, Failure> {
        let measured = async {
            match self {
                Self::Latency => latency::run(site).await,
                Self::Throughput => throughput::run(site).await,
                Self::Convert => convert::run(site).await,
                Self::Tasks => tasks::run(site, size).await,
                Self::Domains => domains::run(site).await,
                Self::Crowds => crowds::run(site, size).await,
                Self::Scale => scale::run(site, size).await,
            }
        };
        let limit = self.limit();
        // A wait that's over in vain panics; what was started here is stopped all the same.
        let measured = AssertUnwindSafe(measured).catch_unwind();
        tokio::time::timeout(limit, measured)
            .await
            .map_err(|_| failure(format!("not done after {limit:?}")))?
            .map_err(|_| failure("a wait was in vain"))?
    }
}

/// What was asked for.
struct Options {
    parts: Vec<Part>,
    record: bool,
    size: Size,
}

impl Options {
    fn read(arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Self {
            parts: Vec::new(),
            record: false,
            size: Size::Full,
        };
        for argument in arguments {
            let part = Part::ALL.into_iter().find(|part| part.name() == argument);
            match part {
                Some(part) => options.parts.push(part),
                None if argument == "--record" => options.record = true,
                None if argument == "--quick" => options.size = Size::Quick,
                None => return Err(failure(format!("unknown argument {argument:?}\n{USAGE}"))),
            }
        }
        if options.parts.is_empty() {
            options.parts = Part::USUAL.to_vec();
        }
        Ok(options)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Options::read(std::env::args().skip(1)) {
        Ok(options) => run(options).await,
        Err(failure) => Err(failure),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Failure> {
    let mut machine = None;
    for part in options.parts {
        eprintln!("bench: {} …", part.name());
        let (described, report) = part_on_its_own_site(part, options.size).await?;
        if machine.is_none() {
            println!("{described}\n");
            machine = Some(described);
        }
        println!("{report}\n");
        if options.record {
            report::record(&results(), part.name(), &report.to_string())?;
        }
    }
    if let (Some(machine), true) = (machine, options.record) {
        report::record(&results(), "machine", &machine.to_string())?;
    }
    Ok(())
}

/// Starts all, measures, and ends all, whether it went well, badly, or was interrupted.
async fn part_on_its_own_site(part: Part, size: Size) -> Result<(Report, Report), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut site = Site::start().await?;
    let measured = async {
        let machine = machine::describe(&site).await?;
        Ok((machine, part.measure(&mut site, size).await?))
    };
    let measured = tokio::select! {
        measured = measured => measured,
        _ = interrupt.recv() => Err(failure("interrupted")),
        _ = terminate.recv() => Err(failure("told to stop")),
    };
    let ended = site.end(measured.is_err()).await;
    let measured = measured?;
    ended?;
    Ok(measured)
}

/// The file that keeps the figures.
fn results() -> PathBuf {
    virtbus_testbed::server::nats_folder().join("../BENCH.md")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Options, Failure> {
        Options::read(arguments.iter().map(|text| (*text).to_owned()))
    }

    #[test]
    fn without_a_name_the_usual_parts_are_measured() {
        assert_eq!(read(&[]).unwrap().parts, Part::USUAL);
        let one = read(&["--record", "convert"]).unwrap();
        assert_eq!((one.parts, one.record), (vec![Part::Convert], true));
        assert!(read(&["--recrod"]).is_err());
    }
}
