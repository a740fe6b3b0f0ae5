//! The share that each worker should have, for its bar.
//!
//! The planner keeps a band for each class of appliances that the same workers can run. This is the band of all of them together, as if
//! every worker could run each: with one class it is the planner's, and with several a measure to compare workers by.

use std::collections::BTreeMap;

use proto::admin::v1;

/// The limits of the number of appliances of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkerBand {
    pub(crate) floor: u64,
    pub(crate) ceiling: u64,
}

impl WorkerBand {
    /// What to say of a worker with this many appliances.
    pub(crate) fn verdict(self, appliances: u64) -> &'static str {
        match appliances {
            n if n < self.floor => "under",
            n if n > self.ceiling => "over",
            _ => "",
        }
    }
}

/// The error of the divisions before, relative, as in the planner.
const TOLERANCE: f64 = 1e-12;

/// The bands of the workers that take a share; none where the ring alone decides.
pub(crate) fn bands<'a>(
    ring: &v1::Ring,
    workers: impl Iterator<Item = &'a v1::Worker> + Clone,
    unowned: u64,
) -> BTreeMap<String, WorkerBand> {
    if ring.strategy != "bounded" {
        return BTreeMap::new();
    }
    let weight_of = |worker: &v1::Worker| {
        let member = ring.members.iter().find(|member| member.id == worker.id);
        u64::from(member.map_or(worker.weight, |member| member.weight))
    };
    let takers = workers.filter(|worker| worker.member && !worker.draining && !worker.drained && !worker.cordoned);
    let weights: u64 = takers.clone().map(weight_of).sum();
    let total = takers.clone().map(|worker| worker.appliances).sum::<u64>() + unowned;
    if weights == 0 {
        return BTreeMap::new();
    }
    let band = ring.band.max(1.0);
    let band_of = |worker: &v1::Worker| {
        let fair = total as f64 * weight_of(worker) as f64 / weights as f64;
        let floor = (fair / band * (1.0 + TOLERANCE)).floor() as u64;
        let ceiling = (fair * band * (1.0 - TOLERANCE)).ceil() as u64;
        (worker.id.clone(), WorkerBand { floor, ceiling })
    };
    takers.map(band_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(id: &str, weight: u32, appliances: u64) -> v1::Worker {
        v1::Worker { id: id.into(), weight, appliances, member: true, ..v1::Worker::default() }
    }

    #[test]
    fn shares_follow_the_weights_of_those_that_take_one() {
        let leaving = v1::Worker { draining: true, ..worker("w3", 1, 4) };
        let workers = [worker("w1", 1, 10), worker("w2", 2, 20), leaving];
        let ring = v1::Ring { strategy: "bounded".into(), band: 1.25, ..v1::Ring::default() };
        let found = bands(&ring, workers.iter(), 0);
        assert_eq!(found["w1"], WorkerBand { floor: 8, ceiling: 13 });
        assert_eq!(found["w2"], WorkerBand { floor: 16, ceiling: 25 });
        assert_eq!(found.len(), 2);
        assert_eq!([found["w1"].verdict(7), found["w1"].verdict(10), found["w1"].verdict(14)], ["under", "", "over"]);
        let plain = v1::Ring { strategy: "ring".into(), ..ring };
        assert!(bands(&plain, workers.iter(), 0).is_empty());
    }
}
