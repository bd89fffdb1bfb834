//! Stock kubectl of every version found, by both transports where it has both.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::server;

const FOLDER: &str = "/usr/lib/google-cloud-sdk/bin";
const LIMIT: Duration = Duration::from_secs(60);

/// The clients on this machine: binary, and whether it is told to use WebSocket.
fn clients() -> Vec<(PathBuf, bool)> {
    let versions = 27..=33;
    let paths = versions.map(|minor| PathBuf::from(format!("{FOLDER}/kubectl.1.{minor}")));
    let found: Vec<PathBuf> = paths.filter(|path| path.exists()).collect();
    if found.is_empty() {
        eprintln!("skipped: no kubectl in {FOLDER}");
    }
    let both = found
        .into_iter()
        .flat_map(|path| [(path.clone(), false), (path, true)]);
    both.collect()
}

struct Kubectl {
    server: SocketAddr,
    home: TempDir,
}

impl Kubectl {
    async fn new() -> Self {
        Self {
            server: server::start().await,
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self, client: &(PathBuf, bool), args: &[&str]) -> Command {
        let mut command = Command::new(&client.0);
        let websocket = client.1.to_string();
        command
            .arg(format!("--server=http://{}", self.server))
            .args(args)
            .env("HOME", self.home.path())
            .env_remove("KUBECONFIG")
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", &websocket)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", &websocket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, client: &(PathBuf, bool), args: &[&str], input: Vec<u8>) -> Output {
        let mut child = self.command(client, args).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feeding = tokio::spawn(async move {
            // A command that does not read its input ends before it is all written.
            let _ = stdin.write_all(&input).await;
        });
        let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
        feeding.abort();
        output
            .unwrap_or_else(|_| panic!("{client:?} {args:?} hangs"))
            .unwrap()
    }

    /// Forwards a free port of this machine to `target`; gives it too.
    async fn forward(&self, client: &(PathBuf, bool), target: u16) -> (Child, u16) {
        let ports = format!(":{target}");
        let args = ["port-forward", "pod/web", "--address=127.0.0.1", &ports];
        let mut child = self.command(client, &args).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(LIMIT, lines.next_line())
            .await
            .unwrap()
            .unwrap();
        // Forwarding from 127.0.0.1:40001 -> 80
        let line = line.unwrap_or_else(|| panic!("{client:?} said nothing"));
        let port = line
            .split([':', ' '])
            .find_map(|word| word.parse::<u16>().ok())
            .unwrap();
        // Whoever writes to a pipe that nobody reads is killed.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        (child, port)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_output_and_exit_code() {
    let kubectl = Kubectl::new().await;
    for client in clients() {
        let script = "echo out; echo err >&2; exit 3";
        let args = ["exec", "web", "--", "sh", "-c", script];
        let output = kubectl.run(&client, &args, vec![]).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{client:?}: {stderr}");
        assert_eq!(output.stdout, b"out\n", "{client:?}");
        assert!(stderr.starts_with("err\n"), "{client:?}: {stderr}");
        assert!(stderr.contains("exit code 3"), "{client:?}: {stderr}");

        let output = kubectl
            .run(&client, &["exec", "web", "--", "/no/such"], vec![])
            .await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{client:?}: {stderr}");
        assert!(
            stderr.contains("error executing command in container"),
            "{client:?}: {stderr}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_carries_much_both_ways_and_the_end_of_input() {
    let kubectl = Kubectl::new().await;
    let input: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    for client in clients() {
        let args = ["exec", "-i", "web", "--", "cat"];
        let output = kubectl.run(&client, &args, input.clone()).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{client:?}: {stderr}");
        assert!(
            output.stdout == input,
            "{client:?}: {}",
            output.stdout.len()
        );
        // A command that ends without reading its input does not wait for it.
        let args = ["exec", "-i", "web", "--", "true"];
        let output = kubectl.run(&client, &args, input.clone()).await;
        assert!(output.status.success(), "{client:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_tells_its_size() {
    let kubectl = Kubectl::new().await;
    let script = PathBuf::from("/usr/bin/script");
    if !script.exists() {
        eprintln!("skipped: no {}", script.display());
        return;
    }
    for client in clients() {
        let server = format!("--server=http://{}", kubectl.server);
        let line = format!(
            "stty cols 91 rows 17; {} {server} exec -it web -- sh",
            client.0.display()
        );
        let mut command = kubectl.command(&(script.clone(), client.1), &[]);
        command = {
            let mut fresh = Command::new(&script);
            fresh
                .args(["-qec", &line, "/dev/null"])
                .envs(
                    command
                        .as_std()
                        .get_envs()
                        .filter_map(|(k, v)| Some((k, v?))),
                )
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true);
            fresh
        };
        let child = command.spawn().unwrap();
        let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
        let output = output.unwrap().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains("size 91x17"), "{client:?}: {stdout}");
    }
}

/// Answers each connection with what it got, turned around, once the client is finished.
pub(crate) async fn reverser() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                io.read_to_end(&mut bytes).await.unwrap();
                bytes.reverse();
                let _ = io.write_all(&bytes).await;
            });
        }
    });
    port
}

/// Sends, closes its side, and gives everything that comes back.
async fn talk(port: u16, bytes: Vec<u8>) -> Vec<u8> {
    let talking = async {
        let mut io = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut from, mut to) = io.split();
        let mut answer = Vec::new();
        let send = async {
            to.write_all(&bytes).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(send, from.read_to_end(&mut answer));
        read.unwrap();
        answer
    };
    tokio::time::timeout(LIMIT, talking)
        .await
        .expect("the forwarded connection hangs")
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_carries_connections_side_by_side() {
    let kubectl = Kubectl::new().await;
    let target = reverser().await;
    for client in clients() {
        let (mut child, port) = kubectl.forward(&client, target).await;
        let talks = (1..=8_usize).map(|n| {
            tokio::spawn(async move {
                let bytes: Vec<u8> = (0..n * 100_000).map(|at| (at % 251) as u8).collect();
                let mut answer = talk(port, bytes.clone()).await;
                answer.reverse();
                assert!(answer == bytes, "{} of {}", answer.len(), bytes.len());
            })
        });
        for talk in talks.collect::<Vec<_>>() {
            talk.await.unwrap();
        }
        child.kill().await.unwrap();
    }
}

/// Greets each connection, closes it, and never waits for what the client has to say.
async fn greeter() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let _ = io.write_all(b"hello").await;
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_ends_a_connection_that_the_port_closes_first() {
    let kubectl = Kubectl::new().await;
    let target = greeter().await;
    for client in clients() {
        let (mut child, port) = kubectl.forward(&client, target).await;
        for _ in 0..3 {
            let listening = async {
                let mut io = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let mut said = Vec::new();
                io.read_to_end(&mut said).await.unwrap();
                assert_eq!(said, b"hello", "{client:?}");
            };
            tokio::time::timeout(LIMIT, listening)
                .await
                .unwrap_or_else(|_| panic!("{client:?} keeps the connection open"));
        }
        child.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_says_why_it_fails() {
    let kubectl = Kubectl::new().await;
    for client in clients() {
        // Nobody listens on port 1.
        let (mut child, port) = kubectl.forward(&client, 1).await;
        assert!(talk(port, vec![]).await.is_empty());
        let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
        let told = async {
            while let Ok(Some(line)) = errors.next_line().await {
                if line.contains("no way: ") {
                    return true;
                }
            }
            false
        };
        let told = tokio::time::timeout(LIMIT, told).await;
        assert_eq!(told, Ok(true), "{client:?}");
        let _ = child.kill().await;
    }
}
