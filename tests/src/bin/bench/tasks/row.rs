//! One task's figures, and how large a run is.

use crate::{scale::Size, stats::Samples};

const MIB: u64 = 1 << 20;

/// How large, and how often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    /// The disks' virtual size, of which every second stripe is data, in bytes.
    pub(super) size: u64,
    pub(super) repeats: u32,
    /// Small jobs of each kind.
    pub(super) small: u32,
    /// The same for the tool that starts a machine each time.
    pub(super) machines: u32,
}

impl From<Size> for Scale {
    fn from(size: Size) -> Self {
        match size {
            Size::Full => Self {
                size: 1024 * MIB,
                repeats: 5,
                small: 100,
                machines: 2,
            },
            Size::Quick => Self {
                size: 256 * MIB,
                repeats: 1,
                small: 10,
                machines: 1,
            },
        }
    }
}

/// One task, measured.
pub(super) struct Row {
    name: &'static str,
    pub(super) bare: Samples,
    pub(super) plain: Samples,
    pub(super) bus: Samples,
}

impl Row {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            bare: Samples::default(),
            plain: Samples::default(),
            bus: Samples::default(),
        }
    }

    pub(super) fn cells(&self) -> Vec<String> {
        let plain = if self.plain.len() == 0 {
            ["–".to_owned(), "–".to_owned()]
        } else {
            let ratio = self.plain.over(&self.bus);
            [self.plain.spread(0), ratio.spread(2)]
        };
        let [plain, plain_ratio] = plain;
        vec![
            self.name.to_owned(),
            self.bare.spread(0),
            self.bus.spread(0),
            self.bus.over(&self.bare).spread(2),
            plain,
            plain_ratio,
        ]
    }
}
