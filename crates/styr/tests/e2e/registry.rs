//! Pods whose images come from a registry: Debian's `docker-registry`, filled by `skopeo`.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::{Cluster, has_kubectl, image_archive, poll};

const MINUTE: Duration = Duration::from_secs(60);
const REGISTRY: &str = "/usr/bin/docker-registry";
const SKOPEO: &str = "/usr/bin/skopeo";
const HTPASSWD: &str = "/usr/bin/htpasswd";

#[test]
fn pods_run_images_of_registries_with_and_without_tls_and_passwords() {
    if !has_kubectl("pods_run_images_of_registries_with_and_without_tls_and_passwords") {
        return;
    }
    if [REGISTRY, SKOPEO, HTPASSWD]
        .iter()
        .any(|program| !Path::new(program).exists())
    {
        eprintln!("left out: no registry server; `cargo xtask test` installs it");
        return;
    }
    let cluster = Cluster::new();
    let folder = cluster.folder.path();
    let (plain, guarded) = (folder.join("plain"), folder.join("guarded"));
    let plain = Registry::start(&plain, None);
    let authority = rcgen::KeyPair::generate().expect("a key");
    let guarded = Registry::start(&guarded, Some(&authority));
    let trusted = cluster.dir().join("certs.d");
    std::fs::create_dir_all(&trusted).expect("a folder");
    let certificate = authority_parameters()
        .self_signed(&authority)
        .expect("a certificate");
    std::fs::write(trusted.join("own.crt"), certificate.pem()).expect("writing");
    cluster.styr_ok(&["up"]);

    runs(&cluster, "plain", &plain.image(), "");
    without_credentials_it_is_refused(&cluster, &guarded);
    wrong_credentials_are_told_and_right_ones_mend_it(&cluster, &guarded);
    let through_account = r#"{"imagePullSecrets": [{"name": "right"}]}"#;
    cluster.kubectl(&["patch", "serviceaccount", "default", "-p", through_account]);
    runs(&cluster, "account", &guarded.image(), "");
    absent_images_and_registries_are_told(&cluster, &plain);
}

/// A pod of this image whose pull secret has this name.
fn pod(cluster: &Cluster, name: &str, image: &str, secret: &str) {
    let secrets = match secret {
        "" => String::new(),
        name => format!("imagePullSecrets: [{{name: {name}}}]"),
    };
    cluster.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  {secrets}
  containers:
  - {{name: main, image: '{image}', imagePullPolicy: Always, command: [echo, pulled]}}
"
    ));
}

fn runs(cluster: &Cluster, name: &str, image: &str, secret: &str) {
    pod(cluster, name, image, secret);
    completed(cluster, name);
    let events = events(cluster, name);
    for text in [
        format!("Pulling image \"{image}\""),
        format!("Successfully pulled image \"{image}\" in "),
    ] {
        assert!(events.contains(&text), "no {text:?} in\n{events}");
    }
}

fn completed(cluster: &Cluster, name: &str) {
    cluster.eventually(MINUTE, &["get", "pod", name], |out| {
        out.contains("Completed")
    });
    assert_eq!(cluster.kubectl(&["logs", name]), "pulled\n");
}

fn events(cluster: &Cluster, name: &str) -> String {
    cluster.kubectl(&["events", "--for", &format!("pod/{name}")])
}

/// Waits until the pod's column STATUS shows all of these, one after another.
fn shows(cluster: &Cluster, name: &str, states: &[&str]) {
    for state in states {
        cluster.eventually(MINUTE, &["get", "pod", name], |out| out.contains(state));
    }
}

fn without_credentials_it_is_refused(cluster: &Cluster, registry: &Registry) {
    let image = registry.image();
    pod(cluster, "anonymous", &image, "");
    shows(cluster, "anonymous", &["ErrImagePull", "ImagePullBackOff"]);
    let events = events(cluster, "anonymous");
    for text in [
        format!("Failed to pull image \"{image}\": "),
        format!(
            "pull access denied, repository {} does not exist or may require authorization",
            image.replace(":1.0", "")
        ),
        "Error: ErrImagePull".to_owned(),
        format!("Back-off pulling image \"{image}\""),
        "Error: ImagePullBackOff".to_owned(),
    ] {
        assert!(events.contains(&text), "no {text:?} in\n{events}");
    }
    cluster.kubectl(&["delete", "pod", "anonymous"]);
}

fn wrong_credentials_are_told_and_right_ones_mend_it(cluster: &Cluster, registry: &Registry) {
    registry.secret(cluster, "wrong", "guessed");
    registry.secret(cluster, "right", "secret");
    pod(cluster, "private", &registry.image(), "wrong");
    shows(cluster, "private", &["ErrImagePull", "ImagePullBackOff"]);
    let told = events(cluster, "private");
    assert!(
        told.contains("UNAUTHORIZED: authentication required"),
        "{told}"
    );
    // The pod itself stays; its next try finds the password mended.
    let right = cluster.kubectl(&["get", "secret", "right", "-o", "jsonpath={.data}"]);
    let patch = format!("{{\"data\": {right}}}");
    cluster.kubectl(&["patch", "secret", "wrong", "-p", &patch]);
    completed(cluster, "private");
}

fn absent_images_and_registries_are_told(cluster: &Cluster, registry: &Registry) {
    let absent = format!("{}/team/nonesuch:1.0", registry.address);
    pod(cluster, "absent", &absent, "");
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = nobody.local_addr().expect("an address");
    drop(nobody);
    pod(cluster, "nobody", &format!("{address}/team/app:1.0"), "");
    shows(cluster, "absent", &["ErrImagePull", "ImagePullBackOff"]);
    shows(cluster, "nobody", &["ErrImagePull", "ImagePullBackOff"]);
    let told = events(cluster, "absent");
    assert!(told.contains(&format!("{absent}: not found")), "{told}");
    let told = events(cluster, "nobody");
    assert!(told.contains("Connection refused"), "{told}");
}

/// A registry server with one image, killed when dropped.
struct Registry {
    child: Child,
    address: SocketAddr,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Starts it with all its files in `folder`; with an authority it speaks TLS and wants the
    /// password `secret` of `user`.
    fn start(folder: &Path, authority: Option<&rcgen::KeyPair>) -> Self {
        std::fs::create_dir_all(folder).expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let config = folder.join("config.yml");
        let text = "version: 0.1\nstorage: {filesystem: {}}\nhttp: {}\n";
        std::fs::write(&config, text).expect("writing");
        let mut command = Command::new(REGISTRY);
        command
            .arg("serve")
            .arg(&config)
            .env("REGISTRY_HTTP_ADDR", address.to_string())
            .env(
                "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY",
                folder.join("data"),
            )
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(authority) = authority {
            guard(&mut command, folder, authority);
        }
        let child = command.spawn().expect("docker-registry can be started");
        let registry = Self { child, address };
        let listens = poll(MINUTE, || TcpStream::connect(address).is_ok());
        assert!(listens, "docker-registry does not listen");
        registry.push(folder);
        registry
    }

    fn push(&self, folder: &Path) {
        let archive = image_archive("busybox");
        let output = Command::new(SKOPEO)
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                "--dest-creds=user:secret",
            ])
            .arg(format!(
                "docker-archive:{}:docker.io/library/busybox:latest",
                archive.display()
            ))
            .arg(format!("docker://{}", self.image()))
            .env("TMPDIR", folder)
            .output()
            .expect("skopeo can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }

    fn image(&self) -> String {
        format!("{}/team/hello:1.0", self.address)
    }

    fn secret(&self, cluster: &Cluster, name: &str, password: &str) {
        cluster.kubectl(&[
            "create",
            "secret",
            "docker-registry",
            name,
            &format!("--docker-server={}", self.address),
            "--docker-username=user",
            &format!("--docker-password={password}"),
        ]);
    }
}

fn authority_parameters() -> rcgen::CertificateParams {
    let mut parameters = rcgen::CertificateParams::default();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, "the tests' own authority");
    parameters
}

/// TLS by this authority, and a password.
fn guard(command: &mut Command, folder: &Path, authority: &rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]);
    let issuer = rcgen::Issuer::new(authority_parameters(), authority);
    let certificate = parameters
        .expect("parameters")
        .signed_by(&key, &issuer)
        .expect("a certificate");
    std::fs::write(folder.join("tls.crt"), certificate.pem()).expect("writing");
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).expect("writing");
    let output = Command::new(HTPASSWD)
        .args(["-nbB", "user", "secret"])
        .output()
        .expect("htpasswd can be started");
    std::fs::write(folder.join("htpasswd"), output.stdout).expect("writing");
    command
        .env("REGISTRY_HTTP_TLS_CERTIFICATE", folder.join("tls.crt"))
        .env("REGISTRY_HTTP_TLS_KEY", folder.join("tls.key"))
        .env("REGISTRY_AUTH_HTPASSWD_REALM", "test")
        .env("REGISTRY_AUTH_HTPASSWD_PATH", folder.join("htpasswd"));
}
