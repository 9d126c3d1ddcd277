//! Answers requests on the control socket. Nothing that a client sends, or does not send or read, holds up the daemon:
//! requests are short and in time or refused, clients are few, and only a reload and a rotation reach the main loop.

pub mod protocol;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::timeout;
use tracing::warn;

use self::protocol::{Answer, Body, Command, End, ErrorAnswer, ReloadAnswer, Request, RotateAnswer, VERSION};
use super::board::Board;
use super::door::Door;
use super::socket::Socket;
use super::state::clock;
use crate::fault;
use crate::sink::live::LiveFlow;

/// What only the main loop can do.
#[derive(Debug)]
pub(super) enum Ask {
    Reload(oneshot::Sender<Result<ReloadAnswer, ErrorAnswer>>),
    Rotate(oneshot::Sender<Result<RotateAnswer, ErrorAnswer>>),
}

/// Clients at once.
const CLIENTS: usize = 16;
/// Of them with a long answer at once, whose lines are copied for it.
const LISTS: usize = 2;
/// Octets of a request, its line feed among them.
const REQUEST: u64 = 4096;
/// A request comes, and a piece of an answer is read, within this.
const IDLE: Duration = Duration::from_secs(10);
/// A reload, or a rotation, takes no longer.
const WORK: Duration = Duration::from_mins(1);
/// An answer of several lines is written in pieces of about so many octets.
const PIECE: usize = 64 << 10;

/// Exit codes of `linewarden ctl`.
const FAILED: u8 = 1;
const USAGE: u8 = 64;

/// Runs until it is dropped, its clients with it.
pub(super) async fn serve(socket: Socket, board: Arc<Board>, asks: mpsc::Sender<Ask>) {
    let listener = match socket.listener() {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "the control socket accepts nobody");
            return;
        }
    };
    let (lists, mut clients) = (Arc::new(Semaphore::new(LISTS)), JoinSet::new());
    let mut door = Door::new("the control socket");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
        };
        fault::point("ctl");
        let Some((stream, _)) = door.pass(accepted).await else { continue };
        if clients.len() < CLIENTS {
            let client = Client { board: Arc::clone(&board), asks: asks.clone(), lists: Arc::clone(&lists) };
            clients.spawn(client.serve(stream));
        } else {
            let busy = error(FAILED, format!("{CLIENTS} clients ask at once, which is all there may be: try again"));
            // It fits the socket's own memory, or is dropped.
            let _ = stream.try_write(&line(busy));
        }
    }
}

struct Client {
    board: Arc<Board>,
    asks: mpsc::Sender<Ask>,
    lists: Arc<Semaphore>,
}

impl Client {
    async fn serve(self, stream: UnixStream) {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::with_capacity(REQUEST as usize, reader);
        let mut request = Vec::new();
        loop {
            request.clear();
            let read = timeout(IDLE, (&mut reader).take(REQUEST).read_until(b'\n', &mut request)).await;
            match read {
                Ok(Ok(1..)) if request.ends_with(b"\n") => {}
                Ok(Ok(length)) if length as u64 >= REQUEST => {
                    let long = error(USAGE, format!("a request has {REQUEST} octets at most"));
                    let _ = write(&mut writer, &line(long)).await;
                    return;
                }
                // Gone, or silent for too long.
                _ => return,
            }
            let answered = match Request::parse(&request) {
                Ok(request) => self.answer(&request, &mut writer).await,
                Err(wrong) => write(&mut writer, &line(error(USAGE, wrong))).await,
            };
            if answered.is_none() {
                return;
            }
        }
    }

    /// `None`: the client reads no more.
    async fn answer(&self, request: &Request, writer: &mut OwnedWriteHalf) -> Option<()> {
        let body = match request.command {
            // The disk is asked for the log's size.
            Command::Status => Body::Status(Box::new(block_in_place(|| self.board.status()))),
            Command::Stats => match serde_json::to_value(self.board.summary()) {
                Ok(summary) => Body::Stats(summary),
                Err(wrong) => error(FAILED, wrong),
            },
            Command::Reload => self.ask(Ask::Reload).await.map_or_else(Body::Error, Body::Reload),
            Command::Rotate => self.ask(Ask::Rotate).await.map_or_else(Body::Error, Body::Rotate),
            Command::Flows => return self.flows(request, writer).await,
            Command::Approvals => return self.approvals(writer).await,
        };
        write(writer, &line(body)).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T, ErrorAnswer>>) -> Ask) -> Result<T, ErrorAnswer> {
        let failed = |message: &str| Err(ErrorAnswer { code: FAILED, message: message.to_owned() });
        let (sender, answer) = oneshot::channel();
        let work = async {
            match self.asks.send(ask(sender)).await {
                Ok(()) => answer.await.unwrap_or_else(|_| failed("the daemon ends")),
                Err(_) => failed("the daemon ends"),
            }
        };
        timeout(WORK, work).await.unwrap_or_else(|_| failed("it is not done after 60 s: see the daemon's log"))
    }

    async fn flows(&self, request: &Request, writer: &mut OwnedWriteHalf) -> Option<()> {
        let Ok(_one) = self.lists.acquire().await else { return None };
        let is_wanted = |flow: &LiveFlow| {
            request.label.is_none_or(|label| label == flow.verdict)
                && request.peer.is_none_or(|peer| peer.contains(&flow.src_ip) || peer.contains(&flow.dst_ip))
        };
        let flows: Vec<_> = self.board.live.flows().into_iter().filter(is_wanted).collect();
        let (all, limit) = (flows.len(), request.limit.unwrap_or(usize::MAX));
        let mut lines = Lines::new(writer);
        for flow in flows.into_iter().take(limit) {
            lines.add(Body::Flow(flow)).await?;
        }
        let end =
            End { count: all.min(limit), left_out: all.saturating_sub(limit), unseen: self.board.live.left_out() };
        lines.end(Body::End(end)).await
    }

    async fn approvals(&self, writer: &mut OwnedWriteHalf) -> Option<()> {
        let (policy, now) = (self.board.policy(), clock());
        let mut lines = Lines::new(writer);
        for approval in policy.approvals() {
            lines.add(Body::Approval(self.board.approval(approval, now))).await?;
        }
        lines.end(Body::End(End { count: policy.approvals().len(), left_out: 0, unseen: 0 })).await
    }
}

/// An answer of many lines.
struct Lines<'a> {
    writer: &'a mut OwnedWriteHalf,
    piece: Vec<u8>,
}

impl<'a> Lines<'a> {
    fn new(writer: &'a mut OwnedWriteHalf) -> Self {
        Self { writer, piece: Vec::new() }
    }

    async fn add(&mut self, body: Body) -> Option<()> {
        self.piece.extend(line(body));
        if self.piece.len() < PIECE {
            return Some(());
        }
        let piece = std::mem::take(&mut self.piece);
        write(self.writer, &piece).await
    }

    async fn end(mut self, body: Body) -> Option<()> {
        self.piece.extend(line(body));
        write(self.writer, &self.piece).await
    }
}

fn error(code: u8, message: impl std::fmt::Display) -> Body {
    Body::Error(ErrorAnswer { code, message: message.to_string() })
}

fn line(body: Body) -> Vec<u8> {
    // No answer has a key that is no text.
    let mut line = serde_json::to_vec(&Answer { version: VERSION, body }).unwrap_or_default();
    line.push(b'\n');
    line
}

async fn write(writer: &mut OwnedWriteHalf, octets: &[u8]) -> Option<()> {
    timeout(IDLE, writer.write_all(octets)).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_what_is_wrong_with_them() {
        let good = br#"{"version":1,"command":"flows","label":"unapproved_vpn_tunnel","peer":"198.51.100.0/24"}"#;
        assert_eq!(Request::parse(good).unwrap().peer, Some("198.51.100.0/24".parse().unwrap()));
        let good = br#"{"version":1,"command":"flows","peer":"198.51.100.1"}"#;
        assert_eq!(Request::parse(good).unwrap().peer, Some("198.51.100.1/32".parse().unwrap()));
        let cases: [(&str, &str); 12] = [
            ("", "a request is a JSON object"),
            ("status", "a request is a JSON object"),
            ("[]", "version is missing"),
            ("{\"command\":\"status\"}", "version is missing: write \"version\":1"),
            ("{\"version\":2,\"command\":\"status\"}", "this daemon speaks version 1 of the protocol, not 2"),
            ("{\"version\":1.0,\"command\":\"status\"}", "version 1 of the protocol, not 1.0"),
            (
                "{\"version\":1,\"command\":\"flows\",\"peer\":\"here\"}",
                "peer is \"here\": write an address or a network",
            ),
            ("{\"version\":1}", "missing field `command`"),
            ("{\"version\":1,\"command\":\"stop\"}", "unknown variant `stop`, expected one of `status`"),
            ("{\"version\":1,\"command\":\"status\",\"x\":1}", "unknown field `x`"),
            ("{\"version\":1,\"command\":\"status\",\"limit\":1}", "go with the command `flows`"),
            ("{\"version\":1,\"command\":\"flows\",\"label\":\"other\"}", "in the log alone"),
        ];
        for (request, expected) in cases {
            let wrong = Request::parse(request.as_bytes()).unwrap_err();
            assert!(wrong.contains(expected), "{request}: {wrong}");
        }
        assert!(Request::parse(&[b'['; REQUEST as usize]).is_err(), "deep nesting");
    }

    #[test]
    fn an_answer_is_one_line_with_its_version() {
        let text = String::from_utf8(line(error(78, "a\nb"))).unwrap();
        assert_eq!(text, "{\"version\":1,\"error\":{\"code\":78,\"message\":\"a\\nb\"}}\n");
        let answer: Answer = serde_json::from_str(&text).unwrap();
        assert!(matches!(answer.body, Body::Error(ErrorAnswer { code: 78, .. })));
    }
}
