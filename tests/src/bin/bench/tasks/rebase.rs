//! A disk onto nothing, and onto another backing.

use super::{Bench, TURNS, row::Row};
use crate::{error::Failure, tools::Line};
use serde_json::json;
use std::fs;

impl Bench<'_> {
    pub(super) async fn flatten(&mut self) -> Result<Row, Failure> {
        let mut row = Row::new("rebase onto nothing");
        let (by_hand, flat) = (self.overlay().await?, self.hand.join("flat.qcow2"));
        let file = self.file(&by_hand);
        let line = |flags: &str| {
            let words = format!("qemu-img convert {flags} -f qcow2 -O qcow2");
            [Line::new(&words, &[&file, &flat])]
        };
        let (best, plain) = (line("-m 2 -W -t none"), line(""));
        // From here on what they read is in memory.
        self.by_hand(&best, &flat).await?;
        for repeat in 0..self.scale.repeats {
            let disk = self.overlay().await?;
            for turn in 0..TURNS {
                match (repeat + turn) % TURNS {
                    0 => row.bare.push(self.by_hand(&best, &flat).await?),
                    1 => row.plain.push(self.by_hand(&plain, &flat).await?),
                    _ => {
                        let params = json!({ "disk": disk, "backing": null });
                        row.bus.push(self.job("rebase", params).await?);
                    }
                }
            }
            self.drop_disk(&disk).await?;
        }
        self.drop_disk(&by_hand).await?;
        Ok(row)
    }

    /// Onto a disk with the same content, all of which is compared. By hand as the task does it:
    /// on a copy, since an interrupted rebase is neither the one disk nor the other.
    pub(super) async fn rebased(&mut self) -> Result<Row, Failure> {
        let mut row = Row::new("rebase onto another");
        let params = json!({ "disk": "full", "to": "twin", "format": "qcow2" });
        self.job("convert", params).await?;
        for backing in ["full", "twin"] {
            let name = format!("{backing}.qcow2");
            fs::copy(self.file(backing), self.hand.join(name))?;
        }
        let (top, copy) = (self.hand.join("top.qcow2"), self.hand.join("copy.qcow2"));
        let disk = self.overlay().await?;
        fs::copy(self.file(&disk), &top)?;
        self.drop_disk(&disk).await?;
        let best = [
            Line::new("cp --reflink=auto --sparse=auto", &[&top, &copy]),
            Line::new("qemu-img rebase -f qcow2 -F qcow2 -b twin.qcow2", &[&copy]),
        ];
        self.by_hand(&best, &copy).await?;
        for repeat in 0..self.scale.repeats {
            let disk = self.overlay().await?;
            for turn in 0..2 {
                if (repeat + turn) % 2 == 0 {
                    row.bare.push(self.by_hand(&best, &copy).await?);
                } else {
                    let params = json!({ "disk": disk, "backing": "twin" });
                    row.bus.push(self.job("rebase", params).await?);
                }
            }
            self.drop_disk(&disk).await?;
        }
        for name in ["full.qcow2", "twin.qcow2", "top.qcow2"] {
            fs::remove_file(self.hand.join(name))?;
        }
        self.drop_disk("twin").await?;
        Ok(row)
    }
}
