//! The acting side of a session: one task per websocket that reads, asks the view, and writes.
//!
//! It never waits without a bound: a write that takes too long ends the connection, and so does
//! silence. Loads are sent frame by frame, in between the client is listened to.

use crate::{
    app::App,
    command,
    session::{Act, Fill, MESSAGE_BYTES_MAX, Now, Session, frames},
    view::{Ended, Mailbox, Membership},
};
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite;
use tokio_util::sync::CancellationToken;
use virtbus_wire::{
    Code, JobError, Timestamp,
    frame::{Close, Reply},
};

/// A write that takes longer ends the connection.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// How often the peer is pinged.
const PING_EVERY: Duration = Duration::from_secs(20);
/// After so long without a word the peer is gone.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// How long a peer may take to read why it's told to go.
const FAREWELL_WITHIN: Duration = Duration::from_secs(2);
/// Commands of one session that are being carried out.
const COMMANDS_MAX: usize = 8;
/// When to come back after the service went away, in milliseconds.
const RETRY_AFTER_MS: u64 = 1000;
/// Bytes of a close frame's reason.
const REASON_BYTES_MAX: usize = 120;
/// The service goes away; the client comes back.
const GOING_AWAY: u16 = 1001;
/// The service begins anew; the client comes back.
const RESTART: u16 = 1012;

/// Why a connection ends.
enum End {
    /// The peer is gone, or doesn't read.
    Lost,
    /// It was told why; it closes its side.
    Told,
    /// It sent a message that is too large, and is perhaps still sending it.
    TooLarge,
}

struct Connection {
    socket: WebSocket,
    app: Arc<App>,
    session: Session,
    mailbox: Arc<Mailbox>,
    member: Membership,
    commands: JoinSet<Utf8Bytes>,
    since: Instant,
    heard_at: Instant,
    ping_at: Instant,
}

/// The view's answer. It may take a while when the service has just been started. It's on the
/// heap since it's rare: an idle connection holds room for everything it awaits in place.
async fn answered<A>(
    answer: Pin<Box<impl Future<Output = Result<A, Ended>>>>,
    stop: &CancellationToken,
) -> Result<A, End> {
    tokio::select! {
        answer = answer => answer.map_err(|Ended| End::Lost),
        () = stop.cancelled() => Err(End::Lost),
    }
}

/// Serves one websocket until it ends.
pub(crate) async fn serve(socket: WebSocket, app: Arc<App>) {
    let now = Instant::now();
    let mut connection = Connection {
        socket,
        session: Session::new(),
        mailbox: Arc::default(),
        member: app.view.membership(),
        commands: JoinSet::new(),
        app,
        since: now,
        heard_at: now,
        ping_at: now + PING_EVERY,
    };
    let end = loop {
        if let Err(end) = connection.step().await {
            break end;
        }
    };
    match end {
        End::Lost => {}
        End::Told => connection.listen_out().await,
        End::TooLarge => {
            let reason = format!("at most {MESSAGE_BYTES_MAX} bytes");
            if connection
                .close(Close::TooLarge.code(), &reason)
                .await
                .is_ok()
            {
                // What it's still sending can't be read any more: ending now would reset the
                // connection, and the reason could be lost.
                sleep(FAREWELL_WITHIN).await;
            }
        }
    }
}

impl Connection {
    async fn step(&mut self) -> Result<(), End> {
        let fill = self.session.fill();
        let next_of_load = match fill {
            Fill::Going => self.session.next_of_load(),
            Fill::Done => None,
        };
        if let Some(frame) = next_of_load {
            return self.send(Message::Text(frame)).await;
        }
        let wake_at = self.wake_at();
        let stop = self.app.stop.clone();
        tokio::select! {
            message = self.socket.recv() => self.heard(message).await,
            () = self.mailbox.filled(), if fill == Fill::Done => self.empty_mailbox().await,
            Some(reply) = self.commands.join_next() => match reply {
                Ok(reply) => self.send(Message::Text(reply)).await,
                // The command has panicked, which is logged; the client's own time limit ends it.
                Err(_) => Ok(()),
            },
            () = sleep_until(wake_at) => self.tick().await,
            () = stop.cancelled() => self.say_goodbye("drain", GOING_AWAY).await,
        }
    }

    fn now(&self) -> Now {
        Now {
            at: self.since.elapsed(),
            time: Timestamp::now(),
        }
    }

    fn wake_at(&self) -> Instant {
        let due = self.since + self.session.deadline(self.now());
        due.min(self.ping_at).min(self.heard_at + SILENCE_MAX)
    }

    async fn heard(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<(), End> {
        self.heard_at = Instant::now();
        let text = match message {
            None | Some(Ok(Message::Close(_))) => return Err(End::Lost),
            Some(Err(error)) => return self.unreadable(error).await,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(()),
            Some(Ok(Message::Binary(_))) => {
                let reason = "frames are JSON text".to_owned();
                return self.act(vec![Act::Close(Close::BadMessage, reason)]).await;
            }
            Some(Ok(Message::Text(text))) => text,
        };
        let now = self.now();
        let verifier = &self.app.verifier;
        let acts = self
            .session
            .text(now, &text, |token| verifier.verify(token));
        self.act(acts).await
    }

    async fn unreadable(&mut self, error: axum::Error) -> Result<(), End> {
        let error = error.into_inner().downcast::<tungstenite::Error>();
        match error.as_deref() {
            Ok(tungstenite::Error::Capacity(_)) => Err(End::TooLarge),
            Ok(tungstenite::Error::Utf8(_) | tungstenite::Error::Protocol(_)) => {
                let reason = "not a websocket message of text".to_owned();
                self.act(vec![Act::Close(Close::BadMessage, reason)]).await
            }
            Ok(_) | Err(_) => Err(End::Lost),
        }
    }

    async fn empty_mailbox(&mut self) -> Result<(), End> {
        // Read before: what the view told until then is in the mailbox.
        let last = self.app.view.last();
        let waiting = self.mailbox.take();
        if waiting.is_over {
            return self.say_goodbye("epoch", RESTART).await;
        }
        let now = self.now();
        let acts = self.session.waiting(now, waiting, last);
        self.act(acts).await
    }

    async fn tick(&mut self) -> Result<(), End> {
        if self.heard_at.elapsed() >= SILENCE_MAX {
            return Err(End::Lost);
        }
        if Instant::now() >= self.ping_at {
            self.ping_at = Instant::now() + PING_EVERY;
            self.send(Message::Ping(Vec::new().into())).await?;
        }
        if self.session.fill() == Fill::Done {
            self.empty_mailbox().await?;
        }
        let acts = self.session.tick(self.now());
        self.act(acts).await
    }

    /// Does what the session decided, and what it decides on the answers.
    async fn act(&mut self, acts: Vec<Act>) -> Result<(), End> {
        let mut waiting = std::collections::VecDeque::from(acts);
        while let Some(act) = waiting.pop_front() {
            match act {
                Act::Send(frame) => self.send(Message::Text(frame)).await?,
                Act::Join(claims, resume) => {
                    let joined = self
                        .app
                        .view
                        .join(&self.member, claims, &self.mailbox, resume);
                    let place = answered(Box::pin(joined), &self.app.stop).await?;
                    waiting.extend(self.session.joined(self.now(), place));
                }
                Act::Load(sub, sight, filter, from) => {
                    let load = self.app.view.load(sight, filter, from);
                    let load = answered(Box::pin(load), &self.app.stop).await?;
                    waiting.extend(self.session.loaded(sub, load));
                }
                Act::Command(reference, command, claims) => {
                    if let Some(refusal) = self.carry_out(reference, *command, claims) {
                        self.send(Message::Text(refusal)).await?;
                    }
                }
                Act::Close(code, reason) => {
                    self.close(code.code(), &reason).await?;
                    return Err(End::Told);
                }
            }
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        reference: String,
        command: virtbus_wire::frame::Command,
        claims: virtbus_wire::auth::Claims,
    ) -> Option<Utf8Bytes> {
        if self.commands.len() >= COMMANDS_MAX {
            let error = JobError::new(Code::QueueFull, "too many commands at once");
            return Some(frames::reply(Reply::new(reference, Err(error))));
        }
        let app = self.app.clone();
        self.commands.spawn(async move {
            let answer = command::carry_out(&app, command, &claims).await;
            frames::reply(Reply::new(reference, answer))
        });
        None
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        let sent = timeout(WRITE_WITHIN, self.socket.send(message)).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Lost),
        }
    }

    async fn say_goodbye(&mut self, reason: &str, code: u16) -> Result<(), End> {
        self.send(Message::Text(frames::bye(reason, RETRY_AFTER_MS)))
            .await?;
        self.close(code, reason).await?;
        Err(End::Told)
    }

    async fn close(&mut self, code: u16, reason: &str) -> Result<(), End> {
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = reason[..end].into();
        self.send(Message::Close(Some(CloseFrame { code, reason })))
            .await
    }

    /// Waits for the peer to close its side, so that it reads ours.
    async fn listen_out(&mut self) {
        let closed = async { while let Some(Ok(_)) = self.socket.recv().await {} };
        // Whoever doesn't close in time is closed.
        timeout(FAREWELL_WITHIN, closed).await.ok();
    }
}
