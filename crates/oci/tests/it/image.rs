//! An image made of the machine's own programs: no network, no tools.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use oci::images::Digest;

/// Programs of the image, found in the machine's path.
const PROGRAMS: [&str; 15] = [
    "sh", "sleep", "cat", "id", "ls", "stat", "env", "head", "tty", "dd", "grep", "mkdir", "chmod",
    "stty", "mount",
];

/// The name under which the image is imported.
pub const NAME: &str = "localhost/machine:1";

fn find(program: &str) -> PathBuf {
    ["/usr/bin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("this machine has no {program}"))
}

/// Shared libraries of a program, the loader included.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, name, bytes).unwrap();
}

fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    for program in PROGRAMS {
        let path = find(program);
        files.extend(libraries(&path));
        let bytes = std::fs::read(&path).unwrap();
        append(&mut tar, &format!("bin/{program}"), 0o755, &bytes);
    }
    for file in files {
        let inside = file.strip_prefix("/").unwrap().to_string_lossy();
        append(&mut tar, &inside, 0o755, &std::fs::read(&file).unwrap());
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1001:1002::/srv:/bin/sh\n";
    append(&mut tar, "etc/passwd", 0o644, passwd.as_bytes());
    append(&mut tar, "etc/group", 0o644, b"root:x:0:\nextra:x:50:app\n");
    append(&mut tar, "plain", 0o644, b"not a program\n");
    tar.into_inner().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    Digest::of(bytes).hex().to_owned()
}

/// The image as an archive of the kind that `docker save` writes.
pub fn archive() -> Vec<u8> {
    let layer = layer();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": {
            "Env": ["PATH=/bin", "FROM_IMAGE=yes"],
            "Cmd": ["sh", "-c", "echo default"],
            "WorkingDir": "/srv",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let config_name = format!("{}.json", hex(&config));
    let manifest = serde_json::json!([{
        "Config": config_name, "RepoTags": [NAME], "Layers": ["layer.tar"],
    }]);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "layer.tar", 0o644, &layer);
    append(&mut tar, &config_name, 0o644, &config);
    append(&mut tar, "manifest.json", 0o644, &manifest);
    tar.into_inner().unwrap()
}
