//! Debian's Chromium without a screen, driven over its DevTools websocket.

use crate::http;
use crate::process::{self, Signal};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use virtbus_testbed::until;

/// Longest wait for an answer of the browser.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long all its processes may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// A browser with one page.
pub struct Chromium {
    page: WebSocketStream<MaybeTlsStream<TcpStream>>,
    asked: u64,
    browser: Child,
    profile: TempDir,
}

impl Chromium {
    /// Opens an address.
    pub async fn open(address: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut data = std::ffi::OsString::from("--user-data-dir=");
        data.push(profile.path());
        let browser = Command::new("chromium")
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .args(["--disable-dev-shm-usage", "--disable-background-networking"])
            .args(["--remote-debugging-port=0", "--disable-component-update"])
            .arg(data)
            .arg(address)
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("start chromium (./dev setup installs it): {error}"));
        let port = profile.path().join("DevToolsActivePort");
        let port = until("the browser's port", async || {
            let text = fs::read_to_string(&port).map_err(|error| error.to_string())?;
            let port = text
                .lines()
                .next()
                .and_then(|line| line.parse::<u16>().ok());
            port.ok_or(text)
        });
        let server = format!("http://127.0.0.1:{}", port.await);
        let page = until("the page", async || find_page(&server).await).await;
        let (page, _) = connect_async(page).await.unwrap();
        Self {
            page,
            asked: 0,
            browser,
            profile,
        }
    }

    /// The value of a JavaScript expression.
    pub async fn value(&mut self, expression: &str) -> Value {
        self.asked += 1;
        let question = json!({"id": self.asked, "method": "Runtime.evaluate",
            "params": {"expression": expression, "returnByValue": true}});
        self.page
            .send(Message::text(question.to_string()))
            .await
            .unwrap();
        loop {
            let next = tokio::time::timeout(PATIENCE, self.page.next()).await;
            let next = next
                .expect("the browser answers")
                .expect("the browser lives");
            let Message::Text(text) = next.unwrap() else {
                continue;
            };
            let answer: Value = serde_json::from_str(&text).unwrap();
            if answer["id"] == self.asked {
                return answer["result"]["result"]["value"].clone();
            }
        }
    }

    /// Waits until the page shows a text.
    pub async fn shows(&mut self, text: &str) {
        until(&format!("the page shows {text:?}"), async || {
            let shown = self.value("document.documentElement.innerText").await;
            let shown = shown.as_str().unwrap_or_default().to_owned();
            if shown.contains(text) {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        process::signal(self.browser.id(), Signal::TERM);
        let deadline = Instant::now() + END_LIMIT;
        while matches!(self.browser.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::park_timeout(PAUSE);
        }
        drop(self.browser.kill());
        drop(self.browser.wait());
        // Its helpers write into the profile until they have noticed.
        while !process::of_folder(self.profile.path()).is_empty() && Instant::now() < deadline {
            std::thread::park_timeout(PAUSE);
        }
    }
}

async fn find_page(server: &str) -> Result<String, String> {
    let answer = http::get(server, "/json/list").await?;
    let pages: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
    let pages = pages.as_array().ok_or("no list")?;
    let page = pages.iter().find(|page| page["type"] == "page");
    let address = page.and_then(|page| page["webSocketDebuggerUrl"].as_str());
    address
        .map(str::to_owned)
        .ok_or_else(|| "no page".to_owned())
}
