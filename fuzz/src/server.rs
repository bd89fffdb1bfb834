//! One API server over a store in memory for all inputs of a process.

use std::sync::{Arc, OnceLock};

use apiserver::auth::{MASTERS, TokenIssuer, UserInfo};
use apiserver::http::body;
use apiserver::http::handler::Peer;
use apiserver::{ApiServer, Config};
use http_body_util::BodyExt;
use tokio::runtime::Runtime;

/// Longest part of an answer that is read: a watch has no end.
const MAX_FRAMES: usize = 64;

/// The server and what runs it.
pub struct Server {
    runtime: Runtime,
    /// The server.
    pub api: Arc<ApiServer>,
}

/// The server of this process.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let tokens =
            TokenIssuer::new("https://kubernetes.default.svc.cluster.local", &key).unwrap();
        let store = store::Embedded::in_memory();
        let api = runtime
            .block_on(ApiServer::new(Config::new(tokens), store))
            .unwrap();
        Server { runtime, api }
    })
}

/// Who may do everything.
pub fn admin() -> Peer {
    Peer::Internal(Arc::new(UserInfo::new("admin", &[MASTERS])))
}

impl Server {
    /// The code of the answer to one request; the body is read as far as it comes at once.
    pub fn send(&self, request: http::Request<Vec<u8>>, peer: Peer) -> u16 {
        self.runtime.block_on(async {
            let request = request.map(body::full);
            let response = self.api.handle(request, peer).await;
            let (parts, mut body) = response.into_parts();
            for _ in 0..MAX_FRAMES {
                let ready = tokio::select! {
                    biased;
                    frame = body.frame() => frame,
                    () = tokio::task::yield_now() => None,
                };
                if !matches!(ready, Some(Ok(_))) {
                    break;
                }
            }
            parts.status.as_u16()
        })
    }
}
