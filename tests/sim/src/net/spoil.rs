//! What a defect of the server does to what is sent to it.

use super::World;
use crate::{
    broker::{In, Out, stream::Ms},
    run::Defect,
};

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
                    .any(|(name, _)| name == "Virtbus-Generation");
                if let Some(reply) = message.reply.clone().filter(|_| is_ours) {
                    let answer = r#"{"stream":"STORAGE","seq":1}"#;
                    self.carry(vec![Out::message(reply, answer.to_owned())], now);
                    return false;
                }
            }
            Defect::NoFence => {}
        }
        true
    }
}
