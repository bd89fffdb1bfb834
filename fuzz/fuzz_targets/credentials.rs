//! What says who a client is, or asks for it: bearer tokens, certificates, certificate requests in DER and PEM.
#![no_main]

use std::sync::Arc;

use apiserver::auth::UserInfo;
use apiserver::auth::authenticate::certificate_user;
use apiserver::http::handler::Peer;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fuzz::server::{admin, server};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = fuzz::split(data) else {
        return;
    };
    match choice % 4 {
        0 => {
            let request = http::Request::get("/api").header("authorization", rest);
            let Ok(request) = request.body(Vec::new()) else {
                return;
            };
            let code = server().send(request, socket(None));
            assert!(
                code == 401 || code == 403 || !rest.starts_with(b"Bearer "),
                "{code}"
            );
        }
        1 => {
            let request = http::Request::get("/api").body(Vec::new()).unwrap();
            server().send(request, socket(certificate_user(rest)));
        }
        format => {
            let pem = match format {
                2 => rest.to_vec(),
                _ => format!(
                    "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
                    STANDARD.encode(rest)
                )
                .into_bytes(),
            };
            let body = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
                "metadata": {"generateName": "x"}, "spec": {"request": STANDARD.encode(pem),
                "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}});
            let uri = "/apis/certificates.k8s.io/v1/certificatesigningrequests?dryRun=All";
            let request = http::Request::post(uri).header("content-type", "application/json");
            server().send(
                request.body(body.to_string().into_bytes()).unwrap(),
                admin(),
            );
        }
    }
});

fn socket(user: Option<UserInfo>) -> Peer {
    Peer::Socket {
        user: user.map(Arc::new),
        address: ([127, 0, 0, 1], 1).into(),
    }
}
