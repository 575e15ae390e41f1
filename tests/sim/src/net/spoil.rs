//! What a defect of the server does to what is sent to it.

use super::World;
use crate::{
    broker::{In, Out, raw, stream::Ms},
    run::Defect,
};
use serde_json::Value;
use virtbus_wire::protocol::delivery::{GENERATION_HEADER, JOB_HEADER};

/// Where locks are.
const LOCKS: &str = "$KV.locks.";
/// Where their leader is asked for one.
const LOCK_READ: &str = "$JS.API.STREAM.MSG.GET.KV_locks";
/// When nobody was woken.
const LONG_AGO: &str = "1970-01-01T00:00:00.000Z";

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
            Defect::LocksWithoutCompare => blind(LOCKS),
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
            Defect::CancelsForgotten => {
                let is_meant = |_: &Value, now: &Value| now["state"] == "cancelled";
                return !self.forget(is_meant, message, now);
            }
            Defect::MovesForgotten => {
                let is_meant = |before: &Value, now: &Value| before["queue"] != now["queue"];
                return !self.forget(is_meant, message, now);
            }
            Defect::LastOfBatchLost if message.subject == "virtbus.jobs.submit" => {
                let mut asked: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
                asked["jobs"].as_array_mut().and_then(Vec::pop);
                message.payload = asked.to_string().into();
            }
            Defect::TicketsIgnored if message.subject == LOCK_READ => {
                return !self.misread(message, now);
            }
            Defect::TicketsIgnored if message.subject.starts_with(LOCKS) => {
                self.waken(message);
            }
            Defect::LastOfBatchLost
            | Defect::NoFence
            | Defect::NoIntent
            | Defect::OldMessagesClaimed
            | Defect::LowFirst
            | Defect::OneTooMany
            | Defect::TicketsIgnored => {}
        }
        true
    }

    /// Says of a change of a job that nobody runs that it's stored, and forgets it. True if it was
    /// one that is meant.
    fn forget(&mut self, is_meant: impl Fn(&Value, &Value) -> bool, message: &In, now: Ms) -> bool {
        let read =
            |payload: &[u8]| -> Value { serde_json::from_slice(payload).unwrap_or_default() };
        let stream = self.broker.stream("KV_jobs");
        let last = stream.and_then(|stream| stream.last_of(&message.subject));
        let (Some(stream), Some(last), Some(reply)) = (stream, last, &message.reply) else {
            return false;
        };
        let (before, after) = (read(&last.payload), read(&message.payload));
        let is_at_rest = before["state"] == "queued" || before["state"] == "waiting";
        if !is_at_rest || !is_meant(&before, &after) {
            return false;
        }
        let seq = stream.last + 1;
        let answer = format!(r#"{{"stream":"KV_jobs","seq":{seq}}}"#);
        let out = Out::message(reply.clone(), answer);
        self.carry(vec![out], now);
        true
    }

    /// Does to what the server sends what a defect does to it.
    pub(super) fn garble(&self, defect: Defect, out: &mut Out) {
        match defect {
            Defect::OldMessagesClaimed if out.subject.starts_with("storage.") => {
                self.renew(out);
            }
            Defect::OldMessagesClaimed
            | Defect::TicketsIgnored
            | Defect::LocksWithoutCompare
            | Defect::JobsWithoutCompare
            | Defect::WakeUpsDropped
            | Defect::NoFence
            | Defect::NoIntent
            | Defect::LowFirst
            | Defect::OneTooMany
            | Defect::CancelsForgotten
            | Defect::MovesForgotten
            | Defect::LastOfBatchLost => {}
        }
    }

    /// Answers whoever asks for a lock that all who wait for it were woken long ago and didn't
    /// come: anybody passes those. False if there's no such lock.
    fn misread(&mut self, message: &In, now: Ms) -> bool {
        let asked: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let subject = asked["last_by_subj"].as_str().unwrap_or_default();
        let stream = self.broker.stream("KV_locks");
        let last = stream.and_then(|stream| stream.last_of(subject));
        let (Some(mut stored), Some(reply)) = (last.cloned(), &message.reply) else {
            return false;
        };
        let Ok(mut lock) = serde_json::from_slice::<Value>(&stored.payload) else {
            return false;
        };
        waiters(&mut lock).for_each(|waiter| waiter["woken_at"] = LONG_AGO.into());
        stored.payload = lock.to_string().into();
        let out = Out::message(reply.clone(), raw(&stored));
        self.carry(vec![out], now);
        true
    }

    /// Takes back what a lock that is written says of those who wait only because of the defect.
    fn waken(&self, message: &mut In) {
        let stream = self.broker.stream("KV_locks");
        let last = stream.and_then(|stream| stream.last_of(&message.subject));
        let read = |payload: &[u8]| serde_json::from_slice::<Value>(payload).ok();
        let mut before = last
            .and_then(|last| read(&last.payload))
            .unwrap_or_default();
        let Some(mut lock) = read(&message.payload) else {
            return;
        };
        for waiter in waiters(&mut lock).filter(|waiter| waiter["woken_at"] == LONG_AGO) {
            let known = waiters(&mut before).find(|known| known["job"] == waiter["job"]);
            waiter["woken_at"] = known.map_or(Value::Null, |known| known["woken_at"].clone());
        }
        message.payload = lock.to_string().into();
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

/// Those who wait for a lock.
fn waiters(lock: &mut Value) -> impl Iterator<Item = &mut Value> {
    lock["waiters"].as_array_mut().into_iter().flatten()
}
