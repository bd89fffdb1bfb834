//! Pulling from the registry server everybody runs, Debian's `docker-registry`, filled by `skopeo`.
//!
//! `cargo xtask test` installs both; without them the test says so and does nothing.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Fixture, Tar, docker_archive, read, registry};
use crate::images::{Auth, ImageError, PullOptions};

const REGISTRY: &str = "/usr/bin/docker-registry";
const SKOPEO: &str = "/usr/bin/skopeo";
const HTPASSWD: &str = "/usr/bin/htpasswd";
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The server, killed when dropped.
struct Server {
    child: Child,
    address: std::net::SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts it in `dir` with TLS and passwords as wanted. Returns the authority's certificate too.
    fn start(dir: &Path, tls: bool, password: bool) -> (Self, Option<Vec<u8>>) {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let config = dir.join("config.yml");
        std::fs::write(
            &config,
            "version: 0.1\nstorage: {filesystem: {}}\nhttp: {}\n",
        )
        .unwrap();
        let mut command = Command::new(REGISTRY);
        command
            .arg("serve")
            .arg(&config)
            .env("REGISTRY_HTTP_ADDR", address.to_string())
            .env(
                "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY",
                dir.join("data"),
            )
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let ca = tls.then(|| {
            let (certificate, key, ca) = registry::certificates();
            std::fs::write(dir.join("tls.crt"), certificate).unwrap();
            std::fs::write(dir.join("tls.key"), key).unwrap();
            command
                .env("REGISTRY_HTTP_TLS_CERTIFICATE", dir.join("tls.crt"))
                .env("REGISTRY_HTTP_TLS_KEY", dir.join("tls.key"));
            ca.into_bytes()
        });
        if password {
            let output = Command::new(HTPASSWD)
                .args(["-nbB", "user", "secret"])
                .output()
                .unwrap();
            std::fs::write(dir.join("htpasswd"), output.stdout).unwrap();
            command
                .env("REGISTRY_AUTH_HTPASSWD_REALM", "test")
                .env("REGISTRY_AUTH_HTPASSWD_PATH", dir.join("htpasswd"));
        }
        let child = command.spawn().unwrap();
        let server = Self { child, address };
        let start = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            assert!(
                start.elapsed() < START_TIMEOUT,
                "docker-registry does not listen"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        (server, ca)
    }

    fn push(&self, archive: &Path, image: &str, dir: &Path, password: bool) {
        let mut command = Command::new(SKOPEO);
        command.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ]);
        if password {
            command.args(["--dest-creds", "user:secret"]);
        }
        let output = command
            .arg(format!("docker-archive:{}", archive.display()))
            .arg(format!("docker://{image}"))
            .env("TMPDIR", dir)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_from_a_real_registry() {
    if [REGISTRY, SKOPEO, HTPASSWD]
        .iter()
        .any(|program| !Path::new(program).exists())
    {
        eprintln!(
            "left out: docker-registry, skopeo or htpasswd is missing; `cargo xtask test` installs them"
        );
        return;
    }
    for (tls, password) in [(false, false), (false, true), (true, false), (true, true)] {
        let fixture = Fixture::new();
        let dir = fixture.dir.path();
        let (server, ca) = Server::start(dir, tls, password);
        let layers = [
            Tar::new()
                .file("a", b"lower")
                .file("b", &[7; 400_000])
                .finish(),
            Tar::new().file("a", b"upper").finish(),
        ];
        let archive = fixture.write("image.tar", &docker_archive(&["app:1"], &layers));
        let image = format!("{}/team/app:1.0", server.address);
        server.push(&archive, &image, dir, password);

        let options = PullOptions {
            certificates: ca.into_iter().collect(),
            ..PullOptions::default()
        };
        let pull = |auth| {
            let (store, image, options) = (fixture.store.clone(), image.clone(), options.clone());
            async move { store.pull(&image, &auth, &options, Arc::new(())).await }
        };
        if password {
            let refused = pull(Auth::Anonymous).await;
            assert!(
                matches!(refused, Err(ImageError::Denied { .. })),
                "{refused:?}"
            );
        }
        let auth = Auth::Basic {
            username: "user".into(),
            password: "secret".into(),
        };
        let pulled = pull(auth).await.unwrap();
        assert_eq!(pulled.repo_tags, std::slice::from_ref(&image));
        assert_eq!(pulled.repo_digests.len(), 1);
        let mount = fixture.store.snapshot(&image, "c").unwrap();
        assert_eq!(read(mount.lowerdirs[0].join("a")), "upper");
        assert_eq!(mount.lowerdirs.len(), 2);
    }
}
