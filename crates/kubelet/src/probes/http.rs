//! HTTP probes and hooks. Certificates of HTTPS targets are not verified, as upstream has it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Pod};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{address, go_error, port, tcp};
use crate::pod;

/// Where to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    https: bool,
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
}

/// An answer; its body is of no interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
}

impl Target {
    /// The target of a probe or hook of `container`, whose pod has the address `ip`.
    ///
    /// # Errors
    /// When the port's name is not known.
    pub fn of(
        pod: &Pod,
        container: &Container,
        get: &HTTPGetAction,
        ip: &str,
    ) -> Result<Target, String> {
        let given = get.host.as_deref().filter(|h| !h.is_empty());
        let host = match given {
            Some(host) => host.to_owned(),
            None if ip.is_empty() && pod::host_network(pod) => "127.0.0.1".to_owned(),
            None => ip.to_owned(),
        };
        let path = get.path.as_deref().unwrap_or("/");
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        Ok(Target {
            https: get.scheme.as_deref() == Some("HTTPS"),
            host,
            port: port(container, &get.port)?,
            path,
            headers: get
                .http_headers
                .iter()
                .flatten()
                .map(|h| (h.name.clone(), h.value.clone()))
                .collect(),
        })
    }

    fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", address(&self.host, self.port), self.path)
    }
}

/// Asks once, for `timeout` at most. Redirects are not followed.
///
/// # Errors
/// Upstream's text.
pub async fn get(target: &Target, timeout: Duration) -> Result<Answer, String> {
    let url = target.url();
    let failed = |error: String| format!("Get \"{url}\": {error}");
    match tokio::time::timeout(timeout, exchange(target, timeout)).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(failed(
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into(),
        )),
    }
}

async fn exchange(target: &Target, timeout: Duration) -> Result<Answer, String> {
    let stream = tcp::connect(&target.host, target.port, timeout).await?;
    if target.https {
        send(target, wrap(target, stream).await?).await
    } else {
        send(target, stream).await
    }
}

async fn wrap(
    target: &Target,
    stream: TcpStream,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, String> {
    static CONFIG: OnceLock<Result<Arc<rustls::ClientConfig>, String>> = OnceLock::new();
    let config = CONFIG.get_or_init(client_config).clone()?;
    let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
    tokio_rustls::TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|e| e.to_string())
}

async fn send<S>(target: &Target, stream: S) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| cause(&e))?;
    let connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let answer = sender
        .send_request(request(target)?)
        .await
        .map_err(|e| cause(&e))?;
    drop(connection);
    Ok(Answer {
        status: answer.status().as_u16(),
    })
}

fn request(target: &Target) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(&target.path)
        .header("host", address(&target.host, target.port))
        .header("user-agent", "kube-probe/1.37")
        .header("accept", "*/*")
        .header("connection", "close")
        .body(Empty::new())
        .map_err(|e| e.to_string())?;
    for (name, value) in &target.headers {
        let name = HeaderName::try_from(name).map_err(|e| e.to_string())?;
        let value = HeaderValue::try_from(value).map_err(|e| e.to_string())?;
        // Host may be given once only; the others may repeat.
        if matches!(name.as_str(), "host" | "user-agent" | "accept") {
            request.headers_mut().insert(name, value);
        } else {
            request.headers_mut().append(name, value);
        }
    }
    Ok(request)
}

fn cause(error: &hyper::Error) -> String {
    if error.is_incomplete_message() {
        return "EOF".into();
    }
    let io = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    io.map_or_else(|| error.to_string(), go_error)
}

fn client_config() -> Result<Arc<rustls::ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Takes every certificate: a probe asks whether something answers, not who.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn target(port: u16) -> Target {
        Target {
            https: false,
            host: "127.0.0.1".into(),
            port,
            path: "/healthz".into(),
            headers: vec![("X-A".into(), "b".into())],
        }
    }

    async fn serve(answer: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let size = stream.read(&mut request).await.unwrap();
            let text = String::from_utf8_lossy(&request[..size]).into_owned();
            assert!(
                text.starts_with("GET /healthz HTTP/1.1\r\n") && text.contains("x-a: b"),
                "{text}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer.is_empty() {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn answers_and_errors() {
        let second = Duration::from_secs(1);
        let port = serve("HTTP/1.1 503 Nope\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(get(&target(port), second).await, Ok(Answer { status: 503 }));

        let port = serve("").await;
        let late = get(&target(port), Duration::from_millis(100))
            .await
            .unwrap_err();
        assert_eq!(
            late,
            format!(
                "Get \"http://127.0.0.1:{port}/healthz\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            )
        );

        let refused = get(&target(1), second).await.unwrap_err();
        assert_eq!(
            refused,
            "Get \"http://127.0.0.1:1/healthz\": dial tcp 127.0.0.1:1: connect: connection refused"
        );
    }
}
