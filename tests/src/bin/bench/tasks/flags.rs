//! Which flags of the copying tool are best on this file system.

use super::Bench;
use crate::{error::Failure, report::Table, stats::Samples, tools::Line};
use std::slice;

/// The flags, and who uses them.
const FLAGS: [(&str, &str); 6] = [
    ("", "as the tool comes"),
    ("-m 2 -W", "a pool with `cache = \"writeback\"`"),
    ("-m 16 -W -t none", ""),
    (
        "-m 2 -W -t none",
        "a pool as it comes, `cache = \"writearound\"`: O_DIRECT for what is written",
    ),
    ("-T none -t none", ""),
    (
        "-m 16 -W -T none -t none",
        "a pool with `cache = \"none\"`: O_DIRECT for both",
    ),
];

impl Bench<'_> {
    pub(super) async fn flags(&self) -> Result<Table, Failure> {
        let (source, made) = (self.file("full"), self.hand.join("made.qcow2"));
        let mut samples = FLAGS.map(|_| Samples::default());
        for repeat in 0..self.scale.repeats as usize {
            for turn in 0..FLAGS.len() {
                // Another one is first each time.
                let at = (repeat + turn) % FLAGS.len();
                let words = format!("qemu-img convert {} -f qcow2 -O qcow2", FLAGS[at].0);
                let line = Line::new(&words, &[&source, &made]);
                samples[at].push(self.by_hand(slice::from_ref(&line), &made).await?);
            }
        }
        let mut table = Table::new(&["`qemu-img convert`, qcow2 → qcow2", "", "ms"]);
        for ((flags, who), samples) in FLAGS.iter().zip(&samples) {
            let flags = match *flags {
                "" => "no flags".to_owned(),
                flags => format!("`{flags}`"),
            };
            table.row(vec![flags, (*who).to_owned(), samples.spread(0)]);
        }
        Ok(table)
    }
}
