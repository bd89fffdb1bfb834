//! The API as a function call: a tower service for clients in this process, without socket or TLS.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;

use super::body::{self, BoxError, Response};
use super::handler::Peer;
use crate::ApiServer;
use crate::auth::UserInfo;

/// A client's transport that acts as one user. Cloning is cheap.
#[derive(Clone)]
pub struct InProcess {
    server: Arc<ApiServer>,
    user: Arc<UserInfo>,
}

impl ApiServer {
    /// A transport whose requests come from `user`, with that user's permissions.
    pub fn in_process(self: &Arc<Self>, user: UserInfo) -> InProcess {
        InProcess {
            server: self.clone(),
            user: Arc::new(user),
        }
    }
}

impl<B> tower::Service<http::Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (server, user) = (self.server.clone(), self.user.clone());
        let request = request.map(body::boxed);
        Box::pin(async move { Ok(server.handle(request, Peer::Internal(user)).await) })
    }
}
