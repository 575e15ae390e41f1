//! A browser's websocket, and the jobs it holds.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use virtbus_wire::frame::decode_server;

/// Longest wait for a frame.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the server sent.
#[derive(Debug)]
pub enum Received {
    /// A frame.
    Frame(Value),
    /// It closed, with this code.
    Closed(u16),
}

/// One connection.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The rows held, by subscription and job.
    pub rows: BTreeMap<(u64, String), Value>,
    /// Every frame so far.
    pub frames: Vec<Value>,
}

impl Socket {
    /// Connects, without a word.
    pub async fn connect(http: &str) -> Self {
        let address = format!("{}/v1/ws", http.replacen("http", "ws", 1));
        let mut request = address.into_client_request().unwrap();
        let protocol = "jobs.v1".parse().unwrap();
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol);
        let (stream, answer) = connect_async(request).await.unwrap();
        assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "jobs.v1");
        Self {
            stream,
            rows: BTreeMap::new(),
            frames: Vec::new(),
        }
    }

    /// Connects and says who it is; returns the welcome too.
    pub async fn open(http: &str, token: &str) -> (Self, Value) {
        Self::open_at(http, json!({"t": "hello", "v": 1, "token": token})).await
    }

    /// The same, going on where an earlier connection was.
    pub async fn resume(http: &str, token: &str, epoch: &Value, seq: &Value) -> (Self, Value) {
        let resume = json!({"epoch": epoch, "seq": seq});
        let hello = json!({"t": "hello", "v": 1, "token": token, "resume": resume});
        Self::open_at(http, hello).await
    }

    async fn open_at(http: &str, hello: Value) -> (Self, Value) {
        let mut socket = Self::connect(http).await;
        socket.send(&hello).await;
        let welcome = socket
            .until("welcome", |frame| frame["t"] == "welcome")
            .await;
        (socket, welcome)
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: &Value) {
        let text = frame.to_string();
        self.stream.send(Message::text(text)).await.unwrap();
    }

    /// The next that comes.
    pub async fn receive(&mut self) -> Received {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.stream.next()).await;
            let next = next.unwrap_or_else(|_| panic!("nothing more; frames: {:#?}", self.frames));
            match next.expect("no end without a close").unwrap() {
                Message::Text(text) => {
                    decode_server(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    self.keep(&frame);
                    return Received::Frame(frame);
                }
                Message::Close(close) => return Received::Closed(close.unwrap().code.into()),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// The first frame from now on that fits.
    pub async fn until(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            match self.receive().await {
                Received::Frame(frame) if fits(&frame) => return frame,
                Received::Frame(_) => {}
                Received::Closed(code) => panic!("closed with {code} before: {what}"),
            }
        }
    }

    /// Reads on until a job's row in a subscription is in this state.
    pub async fn until_job(&mut self, sub: u64, job: &str, state: &str) -> Value {
        let key = (sub, job.to_owned());
        loop {
            if let Some(row) = self.rows.get(&key).filter(|row| row["state"] == state) {
                return row.clone();
            }
            if let Received::Closed(code) = self.receive().await {
                panic!("closed with {code} before {job} was {state}");
            }
        }
    }

    /// The code it's closed with.
    pub async fn until_closed(&mut self) -> u16 {
        loop {
            if let Received::Closed(code) = self.receive().await {
                return code;
            }
        }
    }

    /// A row takes the place of the one held if its `seq` is larger; what left is dropped.
    fn keep(&mut self, frame: &Value) {
        self.frames.push(frame.clone());
        if frame["t"] != "jobs" {
            return;
        }
        let sub = frame["sub"].as_u64().unwrap();
        for row in frame["jobs"].as_array().unwrap() {
            let key = (sub, row["id"].as_str().unwrap().to_owned());
            let held = self.rows.get(&key).and_then(|held| held["seq"].as_u64());
            if held < row["seq"].as_u64() {
                self.rows.insert(key, row.clone());
            }
        }
        for id in frame["left"].as_array().into_iter().flatten() {
            self.rows.remove(&(sub, id.as_str().unwrap().to_owned()));
        }
    }
}
