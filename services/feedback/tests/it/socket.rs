//! A websocket client that remembers what it's told, as a browser would.

use crate::service::Service;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};
use virtbus_testbed::watch::soon;

pub(crate) struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// What is held: the newest row of each job.
    pub(crate) rows: BTreeMap<String, Value>,
}

/// What ended a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) code: u16,
    pub(crate) reason: String,
}

impl Socket {
    pub(crate) async fn connect(service: &Service) -> Self {
        let stream = TcpStream::connect(&service.address).await.unwrap();
        Self::over(stream, service).await
    }

    /// A subscriber whose host takes little that it hasn't read, as one far away would.
    pub(crate) async fn with_small_window(service: &Service, token: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        let stream = socket.connect(service.address.parse().unwrap()).await;
        let mut socket = Self::over(stream.unwrap(), service).await;
        socket.greet(token, None).await;
        socket.send(json!({"t": "sub", "id": 1})).await;
        socket.until("a snapshot", is_last_of_load).await;
        socket
    }

    async fn over(stream: TcpStream, service: &Service) -> Self {
        let url = format!("ws://{}/v1/ws", service.address);
        let mut request = url.into_client_request().unwrap();
        let protocol = "jobs.v1".parse().unwrap();
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol);
        let (stream, answer) = client_async(request, stream).await.unwrap();
        assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "jobs.v1");
        Self {
            stream,
            rows: BTreeMap::new(),
        }
    }

    /// Connects, says hello, and returns the welcome, too.
    pub(crate) async fn hello(
        service: &Service,
        token: &str,
        resume: Option<Value>,
    ) -> (Self, Value) {
        let mut socket = Self::connect(service).await;
        let welcome = socket.greet(token, resume).await;
        (socket, welcome)
    }

    async fn greet(&mut self, token: &str, resume: Option<Value>) -> Value {
        let hello = json!({"t": "hello", "v": 1, "token": token, "resume": resume});
        self.send(hello).await;
        let welcome = self.next().await.unwrap();
        assert_eq!(welcome["t"], "welcome", "{welcome}");
        welcome
    }

    /// As [`Socket::hello`], with a subscription to everything.
    pub(crate) async fn subscribed(service: &Service, token: &str) -> Self {
        let (mut socket, _) = Self::hello(service, token, None).await;
        socket.send(json!({"t": "sub", "id": 1})).await;
        socket.until("a snapshot", is_last_of_load).await;
        socket
    }

    pub(crate) async fn send(&mut self, frame: Value) {
        self.send_text(frame.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: String) {
        // A server that has closed may not take it any more.
        self.stream.send(Message::text(text)).await.ok();
    }

    /// The next frame, or why there is none.
    pub(crate) async fn next(&mut self) -> Result<Value, Closed> {
        loop {
            let message = soon("a frame", self.stream.next()).await;
            match message {
                Some(Ok(Message::Text(text))) => {
                    let frame = serde_json::from_str(&text).unwrap();
                    self.keep(&frame);
                    return Ok(frame);
                }
                Some(Ok(Message::Close(Some(close)))) => {
                    return Err(Closed {
                        code: close.code.into(),
                        reason: close.reason.to_string(),
                    });
                }
                Some(Ok(_)) => {}
                None | Some(Err(_)) => {
                    return Err(Closed {
                        code: 0,
                        reason: "lost".to_owned(),
                    });
                }
            }
        }
    }

    /// Reads until a frame fits, and returns it.
    pub(crate) async fn until(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let read = async {
            loop {
                let frame = self
                    .next()
                    .await
                    .unwrap_or_else(|end| panic!("{what}: {end:?}"));
                if fits(&frame) {
                    return frame;
                }
            }
        };
        soon(what, read).await
    }

    /// Reads until it's closed.
    pub(crate) async fn closed(&mut self) -> Closed {
        let read = async {
            loop {
                if let Err(closed) = self.next().await {
                    return closed;
                }
            }
        };
        soon("the close", read).await
    }

    /// Whether nothing is told for so long. That the service lives is said now and then.
    pub(crate) async fn is_quiet_for(&mut self, time: Duration) -> bool {
        let told = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Text(text))) if text.contains(r#""t":"hb""#) => {}
                    Some(_) | None => return,
                }
            }
        };
        tokio::time::timeout(time, told).await.is_err()
    }

    /// A larger `seq` takes the place of a smaller one; what is in `left` is dropped.
    fn keep(&mut self, frame: &Value) {
        if frame["t"] == "reset" {
            self.rows.clear();
        }
        for row in frame["jobs"].as_array().into_iter().flatten() {
            let id = row["id"].as_str().unwrap();
            let held = self
                .rows
                .get(id)
                .map_or(0, |row| row["seq"].as_u64().unwrap());
            if row["seq"].as_u64().unwrap() > held {
                self.rows.insert(id.to_owned(), row.clone());
            }
        }
        for id in frame["left"].as_array().into_iter().flatten() {
            self.rows.remove(id.as_str().unwrap());
        }
    }
}

pub(crate) fn is_last_of_load(frame: &Value) -> bool {
    frame["t"] == "jobs" && frame["more"] != true
}

pub(crate) fn tells_of(frame: &Value, id: &str) -> bool {
    let jobs = frame["jobs"].as_array();
    jobs.is_some_and(|jobs| jobs.iter().any(|row| row["id"] == id))
}
