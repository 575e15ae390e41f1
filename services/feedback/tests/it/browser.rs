//! The console in a real browser, Debian's Chromium, by its own debugging protocol.

use crate::{
    bus::TestBus,
    service::{Service, token},
};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};
use virtbus_testbed::{until, watch::soon};

/// A browser with one page.
struct Browser {
    child: Child,
    folder: TempDir,
    page: WebSocketStream<MaybeTlsStream<TcpStream>>,
    asked: u64,
    session: String,
}

impl Browser {
    async fn open(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .args(["--remote-debugging-port=0", "--window-size=1300,640"])
            .arg(format!("--user-data-dir={}", folder.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium is installed: ./dev setup");
        let port_file = folder.path().join("DevToolsActivePort");
        let address = until("the browser", async || {
            let text = fs::read_to_string(&port_file).map_err(|error| error.to_string())?;
            let (port, path) = text.split_once('\n').ok_or("half a file")?;
            Ok::<_, String>(format!("ws://127.0.0.1:{port}{}", path.trim()))
        })
        .await;
        let (page, _) = connect_async(address).await.unwrap();
        let mut browser = Self {
            child,
            folder,
            page,
            asked: 0,
            session: String::new(),
        };
        let target = browser
            .ask("Target.createTarget", json!({"url": url}))
            .await;
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.ask("Target.attachToTarget", target).await;
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        let answer = self.answer(method, params).await;
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// The result, or the error.
    async fn answer(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        self.asked += 1;
        let mut question = json!({"id": self.asked, "method": method, "params": params});
        if !self.session.is_empty() {
            question["sessionId"] = self.session.as_str().into();
        }
        let question = Message::text(question.to_string());
        self.page.send(question).await.unwrap();
        loop {
            let answer = soon("the browser's answer", self.page.next()).await;
            let answer = answer.unwrap().unwrap();
            let Message::Text(text) = answer else {
                continue;
            };
            let answer: Value = serde_json::from_str(&text).unwrap();
            if answer["id"] == self.asked {
                return match answer.get("error") {
                    None => Ok(answer["result"].clone()),
                    Some(error) => Err(error.clone()),
                };
            }
        }
    }

    /// The value of an expression in the page; none while the page is still on its way, when its
    /// place is taken by another.
    async fn value(&mut self, expression: &str) -> Value {
        let wanted = json!({"expression": expression, "returnByValue": true});
        let answer = self.answer("Runtime.evaluate", wanted).await;
        answer.map_or(Value::Null, |answer| answer["result"]["value"].clone())
    }

    /// Waits until an expression is true; the page's text says why it isn't.
    async fn wait_for(&mut self, expression: &str) {
        until(expression, async || {
            if self.value(expression).await == true {
                return Ok(());
            }
            Err(self.value("document.body.innerText").await)
        })
        .await;
    }

    /// A picture of the page, for people to look at, where `$VIRTBUS_PICTURES` says.
    async fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("VIRTBUS_PICTURES") else {
            return;
        };
        let shot = self.ask("Page.captureScreenshot", json!({})).await;
        let path = PathBuf::from(folder).join(format!("{name}.png.base64"));
        fs::write(path, shot["data"].as_str().unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Neither can fail in a way that matters to a test that is over.
        drop(self.child.kill());
        drop(self.child.wait());
        let _ = &self.folder;
    }
}

fn shows(text: &str) -> String {
    format!("document.body.innerText.includes({})", json!(text))
}

#[tokio::test]
async fn the_console_shows_jobs_live_and_comes_back_after_a_restart() {
    let bus = TestBus::start().await;
    bus.put("f1", "alice", "failed").await;
    bus.put("q1", "alice", "queued").await;
    bus.put("s1", "alice", "succeeded").await;
    bus.put("r1", "alice", "running").await;
    let service = Service::start(&bus, "").await;
    let alice = token("alice", "jobs:read:own");
    let url = format!("http://{}/#token={alice}", service.address);
    let mut browser = Browser::open(&url).await;
    browser
        .wait_for("document.querySelectorAll('#rows tr').length === 4")
        .await;
    browser.wait_for("location.hash === ''").await;
    browser.wait_for(&shows("tool.failed")).await;
    browser.wait_for(&shows("alice of acme")).await;

    bus.progress("r1", 1, 41.5).await;
    browser.wait_for(&shows("41.5 % convert")).await;
    let bar = "document.querySelector('[aria-valuenow=\"42\"]') !== null";
    browser.wait_for(bar).await;
    browser.picture("light").await;
    browser
        .value("document.getElementById('theme').click()")
        .await;
    browser.picture("dark").await;

    let service = service.restart(&bus, "").await;
    bus.put("r1", "alice", "succeeded").await;
    browser
        .wait_for("document.querySelector('#link').dataset.state === 'live'")
        .await;
    browser
        .value("document.querySelector('[data-view=done]').click()")
        .await;
    browser
        .wait_for("document.querySelectorAll('#rows tr').length === 2")
        .await;

    let sign_out = "document.getElementById('leave').click()";
    browser.value(sign_out).await;
    browser
        .wait_for("document.querySelectorAll('#rows tr').length === 0")
        .await;
    browser.wait_for("sessionStorage.length === 0").await;
    drop(service);
}

#[tokio::test]
async fn a_wrong_token_is_asked_for_again_with_the_reason() {
    let bus = TestBus::start().await;
    let service = Service::start(&bus, "").await;
    let url = format!("http://{}/#token=wrong", service.address);
    let mut browser = Browser::open(&url).await;
    browser.wait_for(&shows("the token isn't valid")).await;
    browser.picture("enter").await;
}
