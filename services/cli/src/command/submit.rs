//! `virtbus submit`: a plain publish to the job's queue, checked before, awaited after.

use crate::{
    context::Context,
    exit::{Exit, Failure},
    inputs::{self, Param},
    output::Output,
    place::{self, Wish},
    publish::{self, Publication},
    screen::{self, Screen},
    watch::{self, Followed, Limits},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::{path::PathBuf, time::Duration};
use virtbus_bus::Bus;
use virtbus_wire::{Class, Envelope, JobId, Label, Priority, Queue, Task, Tenant, Timestamp, User};

/// Submit a job
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtbus submit create_disk -p disk=web1 -p size=10GiB
  virtbus submit convert -p disk=web1 -p to=web2 -p format=qcow2 --priority low --watch
  virtbus submit --queue storage.default.high --file job.json")]
pub(crate) struct Args {
    /// What to do, such as create_disk
    #[arg(required_unless_present = "file")]
    task: Option<String>,
    /// A parameter; the value is JSON where it reads as JSON, else text
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = inputs::param)]
    params: Vec<Param>,
    /// The whole job as JSON, `-` for standard input; what else is said goes before it
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Where to: the subject of a queue
    #[arg(long, value_name = "SUBJECT", conflicts_with_all = ["pool", "hypervisor", "priority"])]
    queue: Option<String>,
    /// Where to: a pool
    #[arg(long, conflicts_with = "hypervisor")]
    pool: Option<Label>,
    /// Where to: a hypervisor
    #[arg(long)]
    hypervisor: Option<Label>,
    /// high, default or low; the task's own when left out
    #[arg(long, value_parser = priority)]
    priority: Option<Priority>,
    /// The job's id; a new one when left out
    #[arg(long)]
    id: Option<String>,
    /// On whose behalf
    #[arg(long)]
    user: Option<User>,
    /// The user's tenant
    #[arg(long)]
    tenant: Option<Tenant>,
    /// Anything to find the job by
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = inputs::pair)]
    labels: Vec<(String, String)>,
    /// A job that must end first: ID, or ID:failed,cancelled
    #[arg(long, value_name = "ID[:STATES]", value_parser = inputs::dependency)]
    after: Vec<Value>,
    /// A lock of one's own, held alone: x.NAME
    #[arg(long = "lock", value_name = "x.NAME")]
    locks: Vec<String>,
    /// A lock of one's own, shared
    #[arg(long, value_name = "x.NAME")]
    shared_lock: Vec<String>,
    /// Wait while a domain or a download uses what the job needs, instead of failing
    #[arg(long)]
    wait_if_in_use: bool,
    /// Why, for people
    #[arg(long)]
    reason: Option<String>,
    /// How long an attempt may take
    #[arg(long, value_name = "TIME", value_parser = inputs::duration)]
    timeout: Option<Duration>,
    /// Don't start before this: a time, or a length of time from now
    #[arg(long, value_name = "TIME", value_parser = inputs::moment)]
    not_before: Option<Timestamp>,
    /// Don't start after this
    #[arg(long, value_name = "TIME", value_parser = inputs::moment)]
    expires: Option<Timestamp>,
    /// How often to try
    #[arg(long, value_name = "N")]
    attempts: Option<u32>,
    /// Publish it whatever it says
    #[arg(long)]
    no_check: bool,
    /// Wait until it's over; the exit code says how it ended
    #[arg(long)]
    wait: bool,
    /// Follow it until it's over
    #[arg(long, conflicts_with = "wait")]
    watch: bool,
    /// Stop waiting after so long (exit code 7); the job goes on
    #[arg(long, value_name = "TIME", value_parser = inputs::duration)]
    wait_timeout: Option<Duration>,
}

fn priority(text: &str) -> Result<Priority, String> {
    let known = text.parse();
    known.map_err(|_| "must be high, default or low".to_owned())
}

pub(crate) async fn run(
    args: &Args,
    context: &Context,
    bus: &Bus,
    output: Output,
) -> Result<Exit, Failure> {
    let job = args.job()?;
    let ready = args.ready(job, context, bus).await?;
    let ack = publish::publish(bus, &ready).await?;
    let told = json!({
        "id": ready.id, "queue": ready.subject, "stream": ack.stream, "seq": ack.sequence,
        "duplicate": ack.duplicate,
    });
    let stays = args.wait || args.watch;
    match (output.json, stays) {
        (true, false) => output.value(&told)?,
        // With --wait the one value is the record at its end.
        (true, true) if args.watch => {
            output.json_line(&json!({"event": "submitted", "job": told}))?
        }
        (true, true) => {}
        (false, _) => output.text(ready.id.as_str())?,
    }
    if stays {
        args.stay(bus, &ready.id, output).await
    } else {
        Ok(Exit::Done)
    }
}

impl Args {
    /// The job as JSON: the file, and over it what the command line says.
    fn job(&self) -> Result<Map<String, Value>, Failure> {
        let mut job = match &self.file {
            Some(path) => inputs::job(path)?,
            None => Map::new(),
        };
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                job.insert(name.to_owned(), value);
            }
        };
        set("task", self.task.as_deref().map(Value::from));
        set("id", self.id.as_deref().map(Value::from));
        set("user", self.user.as_ref().map(|user| json!(user)));
        set("tenant", self.tenant.as_ref().map(|tenant| json!(tenant)));
        set("reason", self.reason.as_deref().map(Value::from));
        set("not_before", self.not_before.map(|time| json!(time)));
        set("expires_at", self.expires.map(|time| json!(time)));
        set(
            "timeout_s",
            self.timeout.map(|limit| json!(limit.as_secs())),
        );
        set("if_in_use", self.wait_if_in_use.then(|| json!("wait")));
        set(
            "retry",
            self.attempts.map(|most| json!({"max_attempts": most})),
        );
        set("after", (!self.after.is_empty()).then(|| json!(self.after)));
        if !self.locks.is_empty() || !self.shared_lock.is_empty() {
            let locks = json!({"exclusive": self.locks, "shared": self.shared_lock});
            set("locks", Some(locks));
        }
        if !self.labels.is_empty() {
            let labels = self.labels.iter().cloned();
            let labels: Map<String, Value> = labels.map(|(n, v)| (n, Value::from(v))).collect();
            inputs::merge(&mut job, "labels", labels)?;
        }
        let mut params = Map::new();
        inputs::insert_params(&mut params, &self.params).map_err(Failure::usage)?;
        if !params.is_empty() {
            inputs::merge(&mut job, "params", params)?;
        }
        job.entry("id").or_insert_with(|| json!(JobId::new()));
        Ok(job)
    }

    /// Checks the job as its worker would, and finds its queue.
    async fn ready(
        &self,
        job: Map<String, Value>,
        context: &Context,
        bus: &Bus,
    ) -> Result<Publication, Failure> {
        let payload = Bytes::from(Value::Object(job.clone()).to_string());
        let id = job.get("id").and_then(Value::as_str).unwrap_or_default();
        let id: JobId = id
            .parse()
            .map_err(|error| Failure::usage(format!("id: {error}")))?;
        let named: Option<Queue> = match &self.queue {
            None => None,
            Some(subject) if self.no_check => {
                let subject = subject.clone();
                return Ok(Publication {
                    subject,
                    id,
                    payload,
                });
            }
            Some(subject) => Some(parse_queue(subject)?),
        };
        let (class, task) = self.check(&job, &payload, &id, named.as_ref())?;
        let queue = match (named, task) {
            (Some(queue), _) => queue,
            (None, Some(task)) => place::queue(bus, &task, &self.wish(context)?).await?,
            (None, None) => self.unchecked_queue(class, context)?,
        };
        let subject = queue.subject();
        Ok(Publication {
            subject,
            id,
            payload,
        })
    }

    /// What a worker would check before anything else. Nothing with `--no-check`.
    fn check(
        &self,
        job: &Map<String, Value>,
        payload: &[u8],
        id: &JobId,
        queue: Option<&Queue>,
    ) -> Result<(Class, Option<Task>), Failure> {
        let empty = Map::new();
        let name = job.get("task").and_then(Value::as_str).unwrap_or_default();
        let params = job.get("params").unwrap_or(&Value::Null);
        let fields = params.as_object().unwrap_or(&empty);
        let class = match queue {
            Some(queue) => queue.class(),
            None => place::class(name, fields, self.hypervisor.is_some())?,
        };
        if self.no_check {
            return Ok((class, None));
        }
        if !id.is_publishable() {
            return Err(Failure::usage(format!(
                "id: {id} is of the system's own kind"
            )));
        }
        Envelope::decode(payload)?.check()?;
        let task = Task::decode(class, name, params)
            .map_err(|error| Failure::from(error).hint("--no-check publishes it all the same"))?;
        Ok((class, Some(task)))
    }

    fn wish(&self, context: &Context) -> Result<Wish, Failure> {
        let usual = context.ready.as_ref().map(|ready| ready.pool.parse());
        let usual_pool = usual.transpose();
        let usual_pool =
            usual_pool.map_err(|error| Failure::failed(format!("the context's pool {error}")))?;
        Ok(Wish {
            pool: self.pool.clone(),
            hypervisor: self.hypervisor.clone(),
            priority: self.priority,
            usual_pool,
        })
    }

    /// Without a checked task only what was said can tell the queue.
    fn unchecked_queue(&self, class: Class, context: &Context) -> Result<Queue, Failure> {
        let wish = self.wish(context)?;
        let priority = wish.priority.unwrap_or(Priority::Default);
        let name = wish.hypervisor.or(wish.pool).or(wish.usual_pool);
        let name = name.ok_or_else(|| Failure::usage("--no-check needs --queue, or --pool"));
        match class {
            Class::Core => Ok(Queue::Core),
            Class::Storage => Ok(Queue::Storage(virtbus_wire::Place::Pool(name?), priority)),
            Class::Hypervisor => Ok(Queue::Hypervisor(name?, priority)),
        }
    }

    async fn stay(&self, bus: &Bus, id: &JobId, output: Output) -> Result<Exit, Failure> {
        let limits = Limits {
            appears_in: None,
            over_in: self.wait_timeout,
        };
        let mut screen = if self.watch {
            Screen::new(output)
        } else {
            Screen::silent(output)
        };
        let followed = watch::follow(bus, std::slice::from_ref(id), limits, &mut screen).await?;
        let records = match followed {
            Followed::Over(records) => records,
            Followed::Detached => return Ok(Exit::Interrupted),
        };
        if self.wait {
            for record in &records {
                if output.json {
                    output.value(record)?;
                } else {
                    output.text(&screen::describe(record))?;
                }
            }
        }
        Ok(watch::exit_of(&records))
    }
}

fn parse_queue(subject: &str) -> Result<Queue, Failure> {
    subject.parse().map_err(|error| {
        let mut failure = Failure::usage(format!("{subject:?} {error}"));
        failure.code = "queue.unknown".to_owned();
        failure
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Args {
        let words = std::iter::once("submit").chain(line.split_whitespace());
        Line::try_parse_from(words)
            .map(|line| line.args)
            .expect(line)
    }

    fn checked(line: &str) -> Result<Option<Task>, Failure> {
        let args = args(line);
        let job = args.job()?;
        let payload = Value::Object(job.clone()).to_string();
        let id: JobId = job["id"].as_str().unwrap_or_default().parse().unwrap();
        let checked = args.check(&job, payload.as_bytes(), &id, None);
        checked.map(|(_, task)| task)
    }

    #[test]
    fn a_job_holds_what_was_said_and_nothing_else() {
        let job = args(
            "resize -p disk=d7 -p size=20GiB --id j1 --label a=b --after x:failed \
                        --lock x.b --timeout 2m --user alice",
        )
        .job()
        .unwrap();
        assert_eq!(
            Value::Object(job),
            json!({"id": "j1", "task": "resize", "params": {"disk": "d7", "size": "20GiB"},
                   "user": "alice", "labels": {"a": "b"}, "timeout_s": 120,
                   "after": [{"job": "x", "on": ["failed"]}],
                   "locks": {"exclusive": ["x.b"], "shared": []}})
        );
    }

    #[test]
    fn a_file_gives_the_job_and_the_command_line_goes_before_it() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(
            &mut file,
            br#"{"task":"resize","params":{"disk":"d1","size":1},"reason":"old"}"#,
        )
        .unwrap();
        let line = format!("--file {} -p size=2 --reason new", file.path().display());
        let job = args(&line).job().unwrap();
        assert_eq!(job["params"], json!({"disk": "d1", "size": 2}));
        assert_eq!(
            (&job["task"], &job["reason"]),
            (&json!("resize"), &json!("new"))
        );
    }

    #[test]
    fn a_wrong_job_is_refused_before_it_is_published_and_its_field_is_named() {
        for (line, field) in [
            ("resize -p disk=d1", "size"),
            ("resize -p disk=../x -p size=1GiB", "disk"),
            ("resize -p disk=d1 -p size=1G", "size"),
            ("resize -p disk=d1 -p size=1GiB -p shrunk=true", "shrunk"),
            ("ping --id storage-1", "id"),
            ("ping --lock disk.d1", "locks"),
        ] {
            let failure = checked(line).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage, "{line}: {failure}");
            assert!(failure.message.starts_with(field), "{line}: {failure}");
        }
        assert!(checked("resize -p disk=d1 --no-check").unwrap().is_none());
        let task = checked("resize -p disk=d1 -p size=1GiB").unwrap().unwrap();
        assert_eq!((task.name(), task.class()), ("resize", Class::Storage));
    }
}
