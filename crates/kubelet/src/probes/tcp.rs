//! TCP probes: a connection is enough.

use std::time::Duration;

use tokio::net::TcpStream;

use super::{address, go_error};

/// Connects within `timeout`.
///
/// # Errors
/// Upstream's text.
pub async fn check(host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    connect(host, port, timeout).await.map(|_| ())
}

pub(super) async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let address = address(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("dial tcp {address}: {}", go_error(&error))),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn open_and_closed_ports() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(
            check("127.0.0.1", port, Duration::from_secs(1)).await,
            Ok(())
        );
        drop(listener);
        let error = check("127.0.0.1", port, Duration::from_secs(1))
            .await
            .unwrap_err();
        assert_eq!(
            error,
            format!("dial tcp 127.0.0.1:{port}: connect: connection refused")
        );
    }
}
