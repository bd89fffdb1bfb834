//! Debian's package manager, asked what a set of packages needs on a machine that has none, and for the files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// Packages that others depend on but nothing in an image uses: installers, their scripts' languages, log-in.
const LEFT_OUT: &[&str] = &[
    "adduser",
    "debconf",
    "debianutils",
    "dpkg",
    "gcc-12-base",
    "init-system-helpers",
    "iproute2",
    "libaudit-common",
    "libaudit1",
    "libbpf1",
    "libcap-ng0",
    "libcap2-bin",
    "libdb5.3",
    "libelf1",
    "libfile-find-rule-perl",
    "libgdbm-compat4",
    "libgdbm6",
    "liblocale-gettext-perl",
    "libmnl0",
    "libnumber-compare-perl",
    "libpam-modules",
    "libpam-modules-bin",
    "libpam-runtime",
    "libpam0g",
    "libperl5.36",
    "libsemanage-common",
    "libsemanage2",
    "libsepol2",
    "libtext-glob-perl",
    "libxtables12",
    "lsb-base",
    "mawk",
    "passwd",
    "perl",
    "perl-base",
    "perl-modules-5.36",
    "readline-common",
    "sysvinit-utils",
    "usrmerge",
];

/// apt over an empty list of installed packages, and a folder of downloaded ones.
pub(super) struct Packages {
    cache: PathBuf,
}

/// A package in the version apt chose.
pub(super) struct Package {
    /// File name, e.g. `nginx_1.22.1-9_amd64.deb`.
    pub file: String,
    /// Size in bytes.
    pub size: u64,
}

impl Package {
    fn name(&self) -> &str {
        self.file.split('_').next().unwrap_or(&self.file)
    }

    /// The version, as apt takes it on the command line.
    fn version(&self) -> String {
        let version = self.file.split('_').nth(1).unwrap_or_default();
        version.replace("%3a", ":")
    }
}

impl Packages {
    /// Prepares the folder; fetches apt's lists if there are none.
    pub(super) fn open(cache: &Path) -> Result<Self> {
        let packages = Self {
            cache: cache.to_owned(),
        };
        let empty = cache.join("empty/partial");
        fs::create_dir_all(&empty).with_context(|| format!("create {}", empty.display()))?;
        fs::write(cache.join("status"), "")
            .with_context(|| format!("write in {}", cache.display()))?;
        if !has_lists() {
            println!("fetching the lists of packages");
            checked(apt("apt-get").args(["-q", "update"]))?;
        }
        Ok(packages)
    }

    /// Everything `wanted` needs, itself included, in the order apt would install it.
    pub(super) fn resolve(&self, wanted: &[&str]) -> Result<Vec<Package>> {
        let output = checked(
            apt("apt-get")
                .arg("-o")
                .arg(format!(
                    "Dir::State::status={}",
                    self.cache.join("status").display()
                ))
                .arg("-o")
                .arg(format!(
                    "Dir::Cache::archives={}",
                    self.cache.join("empty").display()
                ))
                .args([
                    "-o",
                    "APT::Install-Recommends=0",
                    "-o",
                    "Debug::NoLocking=1",
                ])
                .args(["--yes", "--print-uris", "install"])
                .args(wanted),
        )?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut packages: Vec<Package> = text.lines().filter_map(parse_uri).collect();
        packages.retain(|p| !LEFT_OUT.contains(&p.name()));
        if packages.is_empty() {
            bail!("apt-get named no file for {}", wanted.join(" "));
        }
        Ok(packages)
    }

    /// Fetches what is not in the folder yet (apt verifies it), and says where each file is.
    pub(super) fn download(&self, packages: &[Package]) -> Result<Vec<PathBuf>> {
        let path = |p: &Package| self.cache.join(&p.file);
        let here = |p: &&Package| fs::metadata(path(p)).is_ok_and(|m| m.len() == p.size);
        let missing: Vec<String> = packages
            .iter()
            .filter(|p| !here(p))
            .map(|p| format!("{}={}", p.name(), p.version()))
            .collect();
        if !missing.is_empty() {
            checked(
                apt("apt-get")
                    .args(["-q", "download"])
                    .args(&missing)
                    .current_dir(&self.cache),
            )
            .context("download packages")?;
        }
        if let Some(package) = packages.iter().find(|p| !here(p)) {
            bail!("apt-get did not download {}", package.file);
        }
        Ok(packages.iter().map(path).collect())
    }
}

/// `'URI' FILE SIZE HASH`.
fn parse_uri(line: &str) -> Option<Package> {
    let mut words = line.strip_prefix('\'')?.split(' ').skip(1);
    let file = words.next().filter(|f| f.ends_with(".deb"))?.to_owned();
    let size = words.next()?.parse().ok()?;
    Some(Package { file, size })
}

fn apt(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Otherwise downloads need a folder that the user _apt may write.
        .args(["-o", "APT::Sandbox::User=root"]);
    command
}

fn has_lists() -> bool {
    let lists = fs::read_dir("/var/lib/apt/lists");
    lists.is_ok_and(|entries| {
        entries
            .flatten()
            .any(|e| e.file_name().to_string_lossy().contains("_Packages"))
    })
}

/// Runs a program to its end; what it complains of becomes the error.
pub(super) fn checked(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Ok(output) => output,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            bail!(
                "{program} is not here: test images are made from Debian packages, on Debian or Ubuntu"
            )
        }
        Err(e) => return Err(e).with_context(|| format!("run {program}")),
    };
    if output.status.success() {
        return Ok(output);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<&str> = text.lines().filter(|l| l.starts_with("E:")).collect();
    let complaints = match complaints[..] {
        [] => text.trim().to_owned(),
        _ => complaints.join("\n"),
    };
    bail!(
        "{program} failed ({}): {complaints}\nis there a network, and does `apt-get update` work? \
         Packages downloaded before are taken from the folder in ${}",
        output.status,
        super::CACHE_VARIABLE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_apt_prints() {
        let line = "'http://mirror/pool/z/zlib1g_1.2.13_amd64.deb' zlib1g_1%3a1.2.13.dfsg-1_amd64.deb 86684 MD5Sum:ec42";
        let package = parse_uri(line).unwrap();
        assert_eq!(package.name(), "zlib1g");
        assert_eq!(package.version(), "1:1.2.13.dfsg-1");
        assert_eq!(package.size, 86684);
        assert!(parse_uri("Reading package lists...").is_none());
    }
}
