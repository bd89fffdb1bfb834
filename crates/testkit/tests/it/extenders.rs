//! Schedulers of others that ours asks over HTTP, served by the test.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use base64::Engine;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use scheduler::Configuration;
use serde_json::{Value, json};
use testkit::{Cluster, Parts};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use crate::apps::rig::{Rig, text};

/// What is answered to a verb and its arguments; `None`: that something went wrong.
type Answer = Arc<dyn Fn(&str, &Value) -> Option<Value> + Send + Sync>;

/// An extender that notes what it is asked.
struct Extender {
    port: u16,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    server: JoinHandle<()>,
}

impl Drop for Extender {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Extender {
    async fn start(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let asked = Arc::<Mutex<Vec<_>>>::default();
        let (notes, answer): (_, Answer) = (Arc::clone(&asked), Arc::new(answer));
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (notes, answer, tls) = (Arc::clone(&notes), Arc::clone(&answer), tls.clone());
                tokio::spawn(async move {
                    let _ = match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &notes, &answer).await,
                            Err(error) => Err(error.into()),
                        },
                        None => serve(stream, &notes, &answer).await,
                    };
                });
            }
        });
        Ok(Self {
            port,
            asked,
            server,
        })
    }

    fn asked(&self, verb: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let same = asked.iter().filter(|(v, _)| v == verb);
        same.map(|(_, args)| args.clone()).collect()
    }

    /// A configuration that has it asked; `extra` are lines of its own.
    fn configuration(&self, scheme: &str, extra: &str) -> anyhow::Result<Configuration> {
        let text = format!(
            "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nextenders:\n- urlPrefix: \"{scheme}://127.0.0.1:{}/ask\"\n{extra}",
            self.port
        );
        Ok(Configuration::parse(&text)?)
    }
}

/// One request, one answer.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    notes: &Mutex<Vec<(String, Value)>>,
    answer: &Answer,
) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let path = line.split(' ').nth(1).unwrap_or_default();
    let verb = path.trim_start_matches("/ask/").to_owned();
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let header = line.trim().to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if header.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let args: Value = serde_json::from_slice(&body)?;
    let answered = answer(&verb, &args);
    {
        let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push((verb, args));
    }
    let (status, body) = match answered {
        Some(body) => ("200 OK", body.to_string()),
        None => ("500 Internal Server Error", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

/// An acceptor for loopback, and the authority to be trusted, in base64.
fn tls() -> anyhow::Result<(TlsAcceptor, String)> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key)?;
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    let authority = base64::engine::general_purpose::STANDARD.encode(ca.pem());
    Ok((TlsAcceptor::from(Arc::new(config)), authority))
}

async fn rig(configuration: Configuration, nodes: &[&str]) -> anyhow::Result<Rig> {
    let cluster = Cluster::with(Parts {
        controllers: true,
        scheduler: false,
    })
    .await?;
    cluster.schedule(configuration);
    Rig::on(cluster, nodes).await
}

fn pod(name: &str, extra: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i"}]}});
    for (pointer, value) in extra.as_object().into_iter().flatten() {
        let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
        if let Some(parent) = pod.pointer_mut(parent) {
            parent[key] = value.clone();
        }
    }
    pod
}

async fn node_of(rig: &Rig, pod: &str) -> anyhow::Result<String> {
    let bound = |p: &Value| p["spec"]["nodeName"].is_string();
    let pod = rig.until("v1/pods", pod, "to have a node", bound).await?;
    Ok(text(&pod, "/spec/nodeName").to_owned())
}

fn names(args: &Value) -> Vec<String> {
    let names = args["NodeNames"].as_array().into_iter().flatten();
    let mut names: Vec<String> = names.filter_map(|n| Some(n.as_str()?.to_owned())).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_filters_scores_and_binds_over_tls() -> anyhow::Result<()> {
    let (acceptor, authority) = tls()?;
    let slot = Arc::<Mutex<Option<client::Client>>>::default();
    let api = Arc::clone(&slot);
    let extender = Extender::start(Some(acceptor), move |verb, args| match verb {
        "filter" => Some(json!({
            "NodeNames": names(args).into_iter().filter(|n| n != "n1").collect::<Vec<_>>(),
            "FailedNodes": {"n1": "not this one"},
        })),
        "prioritize" => Some(json!([{"Host": "n2", "Score": 1}, {"Host": "n3", "Score": 10}])),
        _ => {
            let api = api.lock().ok()?.clone()?;
            let (pod, node) = (args["PodName"].clone(), args["Node"].clone());
            tokio::spawn(async move {
                let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod},
                    "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
                let path = format!(
                    "/api/v1/namespaces/default/pods/{}/binding",
                    pod.as_str().unwrap_or_default()
                );
                let request = http::Request::post(path)
                    .header("content-type", "application/json")
                    .body(body.to_string().into_bytes());
                if let Ok(request) = request {
                    let _ = api.request::<Value>(request).await;
                }
            });
            Some(json!({}))
        }
    })
    .await?;
    let lines = format!(
        "  filterVerb: filter\n  prioritizeVerb: prioritize\n  weight: 100\n  bindVerb: bind\n  nodeCacheCapable: true\n  tlsConfig:\n    caData: {authority}\n"
    );
    let configuration = extender.configuration("https", &lines)?;
    let rig = rig(configuration, &["n1", "n2", "n3"]).await?;
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(rig.client.clone());
    // Nodes that have just come are not ready at first.
    for node in ["n2", "n3"] {
        let there = json!({"/spec/nodeSelector": {"kubernetes.io/hostname": node}});
        rig.create("v1/pods", pod(node, there)).await?;
        node_of(&rig, node).await?;
    }
    rig.create("v1/pods", pod("p", json!({}))).await?;
    assert_eq!(node_of(&rig, "p").await?, "n3");
    let of_p = |args: &&Value| text(args, "/Pod/metadata/name") == "p";
    let (filtered, scored) = (extender.asked("filter"), extender.asked("prioritize"));
    let filtered = filtered.iter().find(of_p).context("it was not asked")?;
    let scored = scored.iter().find(of_p).context("it was not asked")?;
    assert!(filtered["Nodes"].is_null(), "it knows the nodes");
    let mut left = names(filtered);
    left.retain(|n| n != "n1");
    assert_eq!(names(scored), left);
    let bound = extender.asked("bind");
    let bound = bound.iter().find(|b| b["PodName"] == "p");
    let bound = bound.context("it was not asked")?;
    assert_eq!(text(bound, "/Node"), "n3");
    assert_eq!(text(bound, "/PodNamespace"), "default");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_shown_to_those_who_do_not_know_them() -> anyhow::Result<()> {
    let extender = Extender::start(None, |_, args| {
        let nodes = args["Nodes"]["items"].as_array()?.clone();
        let good = nodes.into_iter().filter(|n| n["metadata"]["name"] == "n2");
        Some(json!({"Nodes": {"items": good.collect::<Vec<_>>()},
            "FailedAndUnresolvableNodes": {"n1": "never"}}))
    })
    .await?;
    let configuration = extender.configuration("http", "  filterVerb: filter\n")?;
    let rig = rig(configuration, &["n1", "n2"]).await?;
    rig.create("v1/pods", pod("p", json!({}))).await?;
    assert_eq!(node_of(&rig, "p").await?, "n2");
    let full = json!({"/spec/containers/0/resources": {"requests": {"cpu": "3"}}});
    rig.create("v1/pods", pod("q", full.clone())).await?;
    assert_eq!(node_of(&rig, "q").await?, "n2");
    rig.create("v1/pods", pod("r", full)).await?;
    let why = "0/2 nodes are available: 1 Insufficient cpu, 1 never.";
    let refused = |p: &Value| text(p, "/status/conditions/0/message").starts_with(why);
    rig.until("v1/pods", "r", "to be refused", refused).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_stops_pods_unless_it_may_be_ignored() -> anyhow::Result<()> {
    let extender = Extender::start(None, |_, _| None).await?;
    let lines = "  filterVerb: filter\n  prioritizeVerb: prioritize\n  weight: 1\n";
    let ignored = format!("{lines}  ignorable: true\n");
    let lenient = rig(extender.configuration("http", &ignored)?, &["n1"]).await?;
    lenient.create("v1/pods", pod("p", json!({}))).await?;
    assert_eq!(node_of(&lenient, "p").await?, "n1");
    let strict = rig(extender.configuration("http", lines)?, &["n1"]).await?;
    strict.create("v1/pods", pod("p", json!({}))).await?;
    strict
        .until_all("v1/events", "", "to tell what went wrong", |all| {
            let told = |e: &Value| {
                e["reason"] == "FailedScheduling"
                    && text(e, "/message").contains("500 Internal Server Error")
            };
            all.iter().any(told)
        })
        .await?;
    let waits = strict.get("v1/pods", "p").await?;
    assert!(waits["spec"]["nodeName"].is_null());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_asked_about_the_resources_it_manages() -> anyhow::Result<()> {
    let extender = Extender::start(None, |_, args| Some(json!({"NodeNames": names(args)}))).await?;
    let lines = "  filterVerb: filter\n  nodeCacheCapable: true\n  managedResources:\n  - name: example.com/foo\n    ignoredByScheduler: true\n";
    let rig = rig(extender.configuration("http", lines)?, &["n1"]).await?;
    rig.create("v1/pods", pod("plain", json!({}))).await?;
    assert_eq!(node_of(&rig, "plain").await?, "n1");
    assert!(extender.asked("filter").is_empty());
    let amount = json!({"example.com/foo": "1"});
    let foo = json!({"/spec/containers/0/resources": {"requests": amount, "limits": amount}});
    rig.create("v1/pods", pod("foo", foo)).await?;
    assert_eq!(
        node_of(&rig, "foo").await?,
        "n1",
        "no node has any, nor needs to"
    );
    assert_eq!(extender.asked("filter").len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_has_a_say_about_who_is_evicted() -> anyhow::Result<()> {
    let extender = Extender::start(None, |_, args| {
        let victims = args["NodeNameToVictims"]["n2"]["Pods"].as_array()?;
        let uids = victims.iter().map(|v| json!({"UID": v["metadata"]["uid"]}));
        Some(json!({"NodeNameToMetaVictims": {"n2": {"Pods": uids.collect::<Vec<_>>()}}}))
    })
    .await?;
    let configuration = extender.configuration("http", "  preemptVerb: preempt\n")?;
    let rig = rig(configuration, &["n1", "n2"]).await?;
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": "high"}, "value": 1000});
    let path = "/apis/scheduling.k8s.io/v1/priorityclasses";
    rig.raw(http::Method::POST, path, class).await?;
    let full = || json!({"/spec/containers/0/resources": {"requests": {"cpu": "3"}}});
    for name in ["a", "b"] {
        rig.create("v1/pods", pod(name, full())).await?;
        node_of(&rig, name).await?;
    }
    let mut high = pod("high", full());
    high["spec"]["priorityClassName"] = json!("high");
    rig.create("v1/pods", high).await?;
    assert_eq!(node_of(&rig, "high").await?, "n2");
    let asked = &extender.asked("preempt")[0]["NodeNameToVictims"];
    assert_eq!(asked.as_object().map_or(0, serde_json::Map::len), 2);
    Ok(())
}
