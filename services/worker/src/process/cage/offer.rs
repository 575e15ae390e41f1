//! What of a cage the kernel offers.

use super::{Calls, calls, land};
use std::{fmt, thread};

/// What of a cage the kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The version of Landlock; none if there is none, or it's switched off.
    pub landlock: Option<u32>,
    /// Whether system calls can be filtered.
    pub filter: bool,
}

impl Offer {
    /// True if a tool can be held.
    #[must_use]
    pub fn holds(self) -> bool {
        self.landlock.is_some() && self.filter
    }
}

/// For people: `landlock 7, filter`.
impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.landlock {
            Some(version) => write!(f, "landlock {version}")?,
            None => f.write_str("no landlock")?,
        }
        f.write_str(if self.filter {
            ", filter"
        } else {
            ", no filter"
        })
    }
}

/// Tries it, in a thread of its own that ends with that. Takes less than a millisecond.
#[must_use]
pub fn offer() -> Offer {
    let nothing = Offer {
        landlock: None,
        filter: false,
    };
    let tried = thread::Builder::new()
        .name("cage-probe".to_owned())
        .spawn(|| Offer {
            landlock: land::version(),
            filter: calls::forbid(Calls::Files).is_ok(),
        });
    // A thread that can't be had couldn't start a tool either.
    tried.map_or(nothing, |thread| thread.join().unwrap_or(nothing))
}
