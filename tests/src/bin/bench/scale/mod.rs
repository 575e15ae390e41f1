//! What many waiting jobs cost the others, and how soon a dead worker's job goes on.

mod backlog;
mod lock;
mod punctual;
mod take_over;
mod urgent;

use crate::{
    error::Failure,
    events::{Job, LOW, Probe},
    report::Report,
    site::Site,
};

/// Jobs that one storage service runs at once here.
const SLOTS: u32 = 8;

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// What is recorded.
    Full,
    /// Enough to see that it works.
    Quick,
}

impl Size {
    pub(crate) fn of<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

pub(crate) async fn run(site: &mut Site, size: Size) -> Result<Report, Failure> {
    let mut report = Report::default();
    for service in ["feedback", "hypervisor"] {
        site.stop(service).await?;
    }
    take_over::measure(site, size, &mut report).await?;
    site.start_again("feedback", &[])?;
    lock::measure(site, size, &mut report).await?;
    urgent::measure(site, size, &mut report).await?;
    // Last, since most of its jobs stay where they are.
    backlog::measure(site, size, &mut report).await?;
    Ok(report)
}

/// The settings of the storage service here.
fn settings() -> [(&'static str, String); 3] {
    [
        ("VIRTBUS__WORK__SLOTS", SLOTS.to_string()),
        ("VIRTBUS__WORK__RESERVED_HIGH", "1".to_owned()),
        ("VIRTBUS__WORK__LONG_MAX", "1".to_owned()),
    ]
}

/// Publishes pings to `low`, and waits until each has a record.
async fn wait_in_line(site: &Site, name: &str, count: u32) -> Result<(), Failure> {
    let mut probe = Probe::new(site.jetstream(), LOW).await?;
    let (done, is_done) = tokio::sync::oneshot::channel::<()>();
    let jetstream = site.jetstream();
    let publisher = Probe::new(jetstream, LOW).await?;
    let name = name.to_owned();
    let jobs = (0..count).map(move |number| Job::ping(&format!("{name}-{number}")));
    // Beside the reading, or the events of a million records would have to be kept.
    let published = async {
        let published = publisher.publish_all(jobs).await;
        drop(done);
        published
    };
    let registered = probe.skip(count as usize);
    let (published, registered) = tokio::join!(published, registered);
    drop(is_done);
    published?;
    registered
}
