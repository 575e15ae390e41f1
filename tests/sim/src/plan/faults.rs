//! What goes wrong.

use super::{Fault, time};
use crate::{broker::stream::Ms, chance::Chance, net::Weather};

pub(super) fn weather(chance: &mut Chance) -> Weather {
    let rates: [u64; 4] = match chance.range(0, 4) {
        0 => [0; 4],
        1 => [5, 5, 50, 0],
        2 => [20, 20, 100, 10],
        _ => [100, 100, 300, 50],
    };
    let [lost_requests, lost_answers, slow, late] = rates;
    let stale = *chance.pick(&[0, 0, 500, 5_000]);
    let repeated = *chance.pick(&[0, 0, 100, 1_000]);
    Weather {
        lost_requests,
        lost_answers,
        slow,
        late,
        stale,
        repeated,
    }
}

/// Workers that stand still, most for longer than their leases last.
pub(super) fn freezes(chance: &mut Chance, workers: usize, span: Ms) -> Vec<(Ms, usize, Fault)> {
    let freezes = (0..chance.range(1, 4)).map(|_| {
        let at = 200 + time(chance, span + 6_000);
        let worker = usize::try_from(chance.range(0, workers as u64)).unwrap_or(0);
        (at, worker, Fault::Freeze(12_000 + time(chance, 28_000)))
    });
    freezes.collect()
}

pub(super) fn faults(chance: &mut Chance, processes: usize, span: Ms) -> Vec<(Ms, usize, Fault)> {
    let count = chance.range(0, 5);
    let mut faults = Vec::new();
    for _ in 0..count {
        let at = 200 + time(chance, span + 10_000);
        let process = usize::try_from(chance.range(0, processes as u64)).unwrap_or(0);
        let long = 1 + *chance.pick(&[200, 3_000, 12_000, 25_000]) + time(chance, 3_000);
        let fault = match chance.range(0, 7) {
            0..2 => Fault::Crash {
                down: long,
                unnoticed: chance.permille(300),
            },
            2..4 => Fault::Freeze(long),
            4..6 => Fault::Cut(long),
            _ => Fault::Stop(long),
        };
        faults.push((at, process, fault));
    }
    faults
}
