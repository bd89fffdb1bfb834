//! When the cluster is ready: the node says so, and cluster DNS answers at its service address,
//! which proves API server, controllers, proxy and DNS together.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::TryStreamExt;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::runtime::watcher;
use tokio::net::UdpSocket;

use super::control_plane::ControlPlane;
use crate::commands::is_ready;
use crate::config::{CLUSTER_DOMAIN, Cluster};
use crate::control::Journal;

/// How long the node and DNS may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one DNS answer is waited for before the question is asked again.
const DNS_TRY: Duration = Duration::from_millis(25);
/// Largest DNS answer over UDP that is read, in bytes.
const DNS_ANSWER_BYTES: usize = 512;

/// Waits until the cluster is ready.
///
/// # Errors
/// When it is not after a minute, saying what is missing.
pub async fn wait(
    cluster: &Cluster,
    control_plane: &ControlPlane,
    journal: &Journal,
) -> anyhow::Result<()> {
    let log = cluster.path("logs/server.log");
    let client = control_plane.client("system:admin", &[apiserver::auth::MASTERS]);
    let name = &cluster.choices.node_name;
    tokio::time::timeout(PATIENCE, node_ready(client, name))
        .await
        .unwrap_or_else(|_| bail!("the node does not become Ready; see {}", log.display()))?;
    journal.step("node");
    tokio::time::timeout(PATIENCE, dns_answers(cluster))
        .await
        .unwrap_or_else(|_| bail!("cluster DNS does not answer; see {}", log.display()))?;
    journal.step("DNS");
    Ok(())
}

async fn node_ready(client: client::Client, name: &str) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client);
    let mut watch = std::pin::pin!(watcher::watch_object(nodes, name));
    while let Some(node) = watch.try_next().await? {
        if node.is_some_and(|node| is_ready(&node)) {
            return Ok(());
        }
    }
    bail!("the watch of the node ended")
}

async fn dns_answers(cluster: &Cluster) -> anyhow::Result<()> {
    let server = SocketAddr::from((cluster.dns_ip(), 53));
    let name = Name::from_ascii(format!("kubernetes.default.svc.{CLUSTER_DOMAIN}."))?;
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.add_query(Query::query(name, RecordType::A));
    let question = question.to_vec().context("encoding a DNS question")?;
    loop {
        if ask(server, &question).await == Some(ResponseCode::NoError) {
            return Ok(());
        }
        // Only while starting: the rules for the service address are about to appear.
        tokio::time::sleep(DNS_TRY / 5).await;
    }
}

/// A new socket each time: connection tracking would keep an earlier one on its old way.
async fn ask(server: SocketAddr, question: &[u8]) -> Option<ResponseCode> {
    let socket = UdpSocket::bind("0.0.0.0:0").await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(question).await.ok()?;
    let mut answer = [0; DNS_ANSWER_BYTES];
    let length = tokio::time::timeout(DNS_TRY, socket.recv(&mut answer))
        .await
        .ok()?
        .ok()?;
    let message = Message::from_vec(answer.get(..length)?).ok()?;
    (!message.answers.is_empty()).then_some(message.metadata.response_code)
}
