//! `virtbus` as a person or a script runs it.

use crate::ready;
use crate::stack::Stack;
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Longest run of a command; some wait for a job, which may wait for the machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ended {
    /// Standard output as one JSON value.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Standard output as a JSON value per line.
    pub fn json_lines(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line);
        let lines: Result<Vec<Value>, _> = self.out.lines().map(parse).collect();
        lines.unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The same, of a command that succeeded.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

/// Runs `virtbus` with these words, told about the stack by `VIRTBUS_CONTEXT`.
pub async fn virtbus(stack: &Stack, words: &[&str]) -> Ended {
    let mut command = Command::new(ready::virtbus());
    command
        .args(words)
        .env("VIRTBUS_CONTEXT", stack.ready_file());
    run(command).await
}

/// A token for the feedback service.
pub async fn token(stack: &Stack, user: &str, tenant: &str, scope: &str) -> String {
    let words = [
        "token", "--user", user, "--tenant", tenant, "--scope", scope,
    ];
    virtbus(stack, &words).await.ok().out.trim().to_owned()
}

/// Runs a command to its end, with a bound.
pub async fn run(mut command: Command) -> Ended {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await;
    let ended = ended.unwrap_or_else(|_| panic!("not over within {PATIENCE:?}: {command:?}"));
    let ended = ended.unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    Ended {
        code: ended.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&ended.stdout).into_owned(),
        err: String::from_utf8_lossy(&ended.stderr).into_owned(),
    }
}
