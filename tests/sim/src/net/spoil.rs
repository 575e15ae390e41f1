//! What a defect of the server does to what is sent to it.

use super::World;
use crate::{
    broker::{In, Out, stream::Ms},
    run::Defect,
};
use serde_json::Value;
use virtbus_wire::protocol::delivery::{GENERATION_HEADER, JOB_HEADER};

impl World {
    /// Does to a message what a defect does to it; false when it's gone by that.
    pub(super) fn spoil(&mut self, defect: Defect, message: &mut In, now: Ms) -> bool {
        let expected = "Nats-Expected-Last-Subject-Sequence";
        let mut blind = |prefix: &str| {
            if message.subject.starts_with(prefix) {
                message.headers.retain(|(name, _)| name != expected);
            }
        };
        match defect {
            Defect::LocksWithoutCompare => blind("$KV.locks."),
            Defect::JobsWithoutCompare => blind("$KV.jobs."),
            Defect::WakeUpsDropped => {
                let is_ours = message
                    .headers
                    .iter()
                    .any(|(name, _)| name == GENERATION_HEADER);
                if let Some(reply) = message.reply.clone().filter(|_| is_ours) {
                    let answer = r#"{"stream":"STORAGE","seq":1}"#;
                    self.carry(vec![Out::message(reply, answer.to_owned())], now);
                    return false;
                }
            }
            Defect::NoFence | Defect::OldMessagesClaimed => {}
        }
        true
    }

    /// Does to what the server sends what a defect does to it.
    pub(super) fn garble(&self, defect: Defect, out: &mut Out) {
        match defect {
            Defect::OldMessagesClaimed if out.subject.starts_with("storage.") => {
                self.renew(out);
            }
            Defect::OldMessagesClaimed
            | Defect::LocksWithoutCompare
            | Defect::JobsWithoutCompare
            | Defect::WakeUpsDropped
            | Defect::NoFence => {}
        }
    }

    /// Makes a delivery look as if it were the job's newest publication.
    fn renew(&self, out: &mut Out) {
        let job: Value = serde_json::from_slice(&out.payload).unwrap_or_default();
        let id = job["id"].as_str().unwrap_or_default();
        let stored = self.broker.stream("KV_jobs");
        let stored = stored.and_then(|stream| stream.last_of(&format!("$KV.jobs.{id}")));
        let record = stored.map(|stored| serde_json::from_slice(&stored.payload));
        let Some(Ok(record)) = record else { return };
        let record: Value = record;
        if let Some(queue) = record["queue"].as_str() {
            queue.clone_into(&mut out.subject);
        }
        let ours = [JOB_HEADER, GENERATION_HEADER];
        out.headers
            .retain(|(name, _)| !ours.contains(&name.as_str()));
        let generation = record["generation"].to_string();
        let said = ours.map(str::to_owned).into_iter();
        out.headers.extend(said.zip([id.to_owned(), generation]));
    }
}
