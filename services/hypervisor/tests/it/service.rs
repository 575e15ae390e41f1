//! The service as a process beside a site.

use crate::process::Site;
use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use virtbus_testbed::until;

/// The service's process; it ends with the test, and its log is shown if the test fails.
pub(crate) struct Service {
    child: Child,
    folder: TempDir,
}

impl Service {
    pub(crate) fn start(site: &Site, settings: &[(&str, &str)]) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_virtbus-hypervisor"));
        Self::start_as(program, site, settings)
    }

    /// Starts it as this program.
    pub(crate) fn start_as(mut command: Command, site: &Site, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        command
            .env("VIRTBUS__NATS__URL", site.url())
            .env("VIRTBUS__WORKER__ID", "hv-worker")
            .env("VIRTBUS__STATE_DIR", folder.path())
            .env("VIRTBUS__LIBVIRT__LOCK_DIR", folder.path())
            .env("VIRTBUS__HYPERVISOR", "hv-test");
        for (key, value) in settings {
            command.env(format!("VIRTBUS__{key}"), value);
        }
        let command = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().unwrap();
        Self { child, folder }
    }

    fn log(&self) -> String {
        let path: PathBuf = self.folder.path().join("log");
        fs::read_to_string(path).unwrap_or_default()
    }

    /// `/readyz`: an error with its body when it isn't 200.
    pub(crate) async fn ready(&mut self) -> Result<(), String> {
        let log = self.log();
        let at = log
            .split("\"address\":\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let at = at.ok_or("no address yet")?;
        let said = get(at).await.map_err(|error| error.to_string())?;
        if said.starts_with("HTTP/1.1 200") {
            Ok(())
        } else {
            Err(said)
        }
    }

    /// SIGTERM, and the exit code.
    pub(crate) async fn stop(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        self.ended().await
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How it ended, if it has.
    pub(crate) fn exit(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let child = &mut self.child;
        until("the end of the service", async || {
            let status = child.try_wait().unwrap();
            status.map(|status| status.code()).ok_or("it runs")
        })
        .await
    }
}

async fn get(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = "GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the service's log:\n{}", self.log());
        }
        // Neither can fail in a way that matters to a test that is over.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
