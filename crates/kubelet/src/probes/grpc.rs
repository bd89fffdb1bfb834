//! gRPC probes: `grpc.health.v1.Health/Check` over plain HTTP/2. The two messages have one field
//! each, so they are written and read by hand.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{address, tcp};

/// Status SERVING of the health protocol.
const SERVING: u8 = 1;
/// Longest service name, in bytes.
const MAX_SERVICE: usize = 127;

/// Asks once, for `timeout` at most.
///
/// # Errors
/// Upstream's text.
pub async fn check(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let late = format!(
        "timeout: failed to connect service \"{}\" within {}s",
        address(host, port),
        timeout.as_secs()
    );
    match tokio::time::timeout(timeout, exchange(host, port, service, timeout)).await {
        Ok(result) => result,
        Err(_) => Err(late),
    }
}

async fn exchange(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let target = address(host, port);
    let stream = tcp::connect(host, port, timeout).await.map_err(|e| {
        format!(
            "timeout: failed to connect service \"{target}\" within {}s: {e}",
            timeout.as_secs()
        )
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
    let _connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .body(Full::new(frame(service)))
        .map_err(|e| e.to_string())?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|e| format!("error: health rpc failed: {e}"))?;
    let headers = answer.headers().clone();
    let body = answer
        .into_body()
        .collect()
        .await
        .map_err(|e| format!("error: health rpc failed: {e}"))?;
    let status = body
        .trailers()
        .and_then(|t| t.get("grpc-status"))
        .or_else(|| headers.get("grpc-status"));
    let code = status
        .and_then(|s| s.to_str().ok())
        .unwrap_or("0")
        .to_owned();
    match code.as_str() {
        "0" => {}
        "12" => return Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".into()),
        code => return Err(format!("error: health rpc failed with code {code}")),
    }
    match serving(&body.to_bytes()) {
        SERVING => Ok(()),
        other => Err(format!(
            "service unhealthy (responded with \"{}\")",
            status_name(other)
        )),
    }
}

/// A HealthCheckRequest in a gRPC frame.
fn frame(service: &str) -> Bytes {
    let service = &service.as_bytes()[..service.len().min(MAX_SERVICE)];
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([0x0a, u8::try_from(service.len()).unwrap_or(0)]);
        message.extend_from_slice(service);
    }
    let length = u8::try_from(message.len()).unwrap_or(0);
    let mut out = vec![0, 0, 0, 0, length];
    out.extend(message);
    Bytes::from(out)
}

/// The status of a HealthCheckResponse in a gRPC frame; 0 if it has none.
fn serving(frame: &[u8]) -> u8 {
    match frame.get(5..) {
        Some([0x08, status, ..]) => *status,
        _ => 0,
    }
}

fn status_name(status: u8) -> &'static str {
    match status {
        1 => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(&frame("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&frame("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 0x08, 1]), SERVING);
        assert_eq!(serving(&[0, 0, 0, 0, 0]), 0);
    }
}
