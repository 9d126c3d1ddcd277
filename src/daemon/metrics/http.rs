//! Serves the metrics over HTTP, on a Unix socket or a loopback port: `GET /metrics` and nothing else.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{AbortHandle, JoinSet, block_in_place};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::super::board::Board;
use super::super::door::Door;
use super::super::socket::{Socket, SocketError};
use crate::config::{Listen, Owners};
use crate::fault;

/// Where metrics are read; made before there is a runtime.
pub(in crate::daemon) enum Listener {
    Unix(Socket),
    Loopback(std::net::TcpListener),
}

/// The same, in the runtime.
enum Open {
    Unix(UnixListener),
    Loopback(TcpListener),
}

/// Why they are not.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No port.
    #[error("{address}: cannot listen there: {source}; name another port, or \"unix:PATH\"")]
    Port {
        /// Which.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Connections at once.
const CLIENTS: usize = 16;
/// A connection's headers come within this.
const HEADERS: Duration = Duration::from_secs(2);
/// A connection, which is for one request, is over after this.
const CONNECTION: Duration = Duration::from_secs(15);
/// Octets of a request's head.
const HEAD: usize = 8 << 10;

impl Listener {
    pub(in crate::daemon) fn bind(listen: &Listen, owners: &Owners) -> Result<Self, ListenError> {
        match listen {
            Listen::Unix(path) => Ok(Self::Unix(Socket::bind(path, owners)?)),
            Listen::Loopback(address) => {
                let listener = std::net::TcpListener::bind(address)
                    .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
                listener.map(Self::Loopback).map_err(|source| ListenError::Port { address: *address, source })
            }
        }
    }

    /// Runs until it is dropped, its connections with it.
    pub(in crate::daemon) async fn serve(self, board: Arc<Board>) {
        let open = match &self {
            Self::Unix(socket) => socket.listener().map(Open::Unix),
            Self::Loopback(listener) => listener.try_clone().and_then(TcpListener::from_std).map(Open::Loopback),
        };
        let open = match open {
            Ok(open) => open,
            Err(error) => {
                warn!(%error, "metrics.listen accepts nobody");
                return;
            }
        };
        let (mut clients, mut oldest, mut door) = (JoinSet::new(), VecDeque::new(), Door::new("metrics.listen"));
        loop {
            tokio::select! {
                Some(_) = clients.join_next() => oldest.retain(|client: &AbortHandle| !client.is_finished()),
                accepted = open.accept() => {
                    fault::point("metrics");
                    let Some(stream) = door.pass(accepted).await else { continue };
                    // An answer takes no time: who is still there is slow, and does not keep others out.
                    if oldest.len() >= CLIENTS
                        && let Some(client) = oldest.pop_front()
                    {
                        client.abort();
                    }
                    oldest.push_back(clients.spawn(connection(stream, Arc::clone(&board))));
                }
            }
        }
    }
}

impl Open {
    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
            Self::Loopback(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connection(stream: Box<dyn Stream>, board: Arc<Board>) {
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &board))));
    let mut http = http1::Builder::new();
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(HEAD);
    if let Ok(Err(error)) = timeout(CONNECTION, http.serve_connection(TokioIo::new(stream), service)).await {
        debug!(%error, "a reader of metrics");
    }
}

fn answer(request: &Request<Incoming>, board: &Arc<Board>) -> Response<String> {
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => match block_in_place(|| super::encode(board)) {
            Ok(text) => (StatusCode::OK, HeaderValue::from_static(super::CONTENT_TYPE), text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, plain, format!("no metrics: {error}\n")),
        },
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, plain, "metrics are at /metrics\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, plain, "metrics are read with GET\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
