//! As much of an HTTP client as the tests need.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    /// The body; text.
    pub body: String,
}

/// Gets a path of a server such as `http://127.0.0.1:80`.
///
/// # Errors
/// When it can't be reached or answers with something else than HTTP.
pub async fn get(server: &str, path: &str) -> Result<Answer, String> {
    request(server, "GET", path, "").await
}

/// Makes a request with more header lines, each ended by `\r\n`.
///
/// # Errors
/// When the server can't be reached or answers with something else than HTTP.
pub async fn request(
    server: &str,
    method: &str,
    path: &str,
    headers: &str,
) -> Result<Answer, String> {
    let host = server.strip_prefix("http://").ok_or("no http address")?;
    let host = host.trim_end_matches('/');
    let exchange = async {
        let mut stream = TcpStream::connect(host).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        // Not every server closes, asked or not.
        while !is_whole(&answer) && stream.read_buf(&mut answer).await? > 0 {}
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(LIMIT, exchange).await;
    let answer = answer.map_err(|_| "no answer in time".to_owned())?;
    let answer = answer.map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("half an answer")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer {
        status: status.ok_or("no status")?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// Whether head and body are there, as far as the head says how long the body is.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, _)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = lengths
        .next()
        .and_then(|(_, text)| text.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= head.len() + 4 + length)
}
