//! Interactive containers on a terminal of known size, which the user makes larger.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::{Cluster, has_kubectl, kubectl, poll};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn run_and_attach_give_a_terminal_that_follows_the_window() {
    if !has_kubectl("run_and_attach_give_a_terminal_that_follows_the_window") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    run_gives_a_shell_that_is_gone_after_it(&cluster);
    attach_joins_a_running_shell(&cluster);
    run_without_a_terminal_carries_input_and_exit_code(&cluster);
}

fn run_gives_a_shell_that_is_gone_after_it(cluster: &Cluster) {
    let mut window = Terminal::open(
        cluster,
        "run -it --rm --image=busybox --image-pull-policy=IfNotPresent --restart=Never shell -- sh",
    );
    window.until("# ");
    window.says("stty size", "17 91");
    window.resize(33, 101);
    window.says("stty size", "33 101");
    // What the terminal does itself: ^C ends the command, not the session.
    window.write("echo asleep-$((40 + 2)); sleep 1000\n");
    window.until("asleep-42");
    window.write("\u{3}");
    window.says("echo awake", "awake");
    window.write("exit 3\n");
    assert_eq!(window.end(), Some(3));
    let gone = cluster.kubectl_any(&["get", "pod", "shell"]);
    assert!(!gone.status.success(), "--rm left the pod");
}

fn attach_joins_a_running_shell(cluster: &Cluster) {
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: steady}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sh], stdin: true, tty: true}
",
    );
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/steady",
        "--timeout=60s",
    ]);
    let mut first = Terminal::open(cluster, "attach -it steady");
    first.says("x=kept; stty size", "17 91");
    drop(first);
    let mut second = Terminal::open(cluster, "attach -it steady");
    second.says("echo it is $x", "it is kept");
    second.resize(20, 70);
    second.says("stty size", "20 70");
    second.write("exit\n");
    second.end();
    cluster.eventually(MINUTE, &["get", "pod", "steady"], |out| {
        out.contains("Running") && !out.contains(" 0 ")
    });
}

fn run_without_a_terminal_carries_input_and_exit_code(cluster: &Cluster) {
    let kubectl = kubectl().expect("kubectl is there");
    let arguments = "run -i --rm --quiet --image=busybox --image-pull-policy=IfNotPresent --restart=Never \
                     filter -- sh -c";
    let mut arguments: Vec<&str> = arguments.split_whitespace().collect();
    arguments.push("tr a-z A-Z; exit 4");
    let mut child = cluster
        .kubectl_command(&kubectl, &arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl can be started");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"loud\n").expect("typing");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "LOUD\n");
    assert_eq!(output.status.code(), Some(4));
}

/// kubectl in a window of 17 lines of 91 characters.
struct Terminal {
    child: Child,
    stdin: ChildStdin,
    screen: Arc<Mutex<String>>,
    /// Where to look for what comes next.
    seen: usize,
    tty: PathBuf,
}

impl Terminal {
    fn open(cluster: &Cluster, arguments: &str) -> Self {
        let kubectl = kubectl().expect("kubectl is there");
        let name = cluster.folder.path().join("tty");
        let _ = std::fs::remove_file(&name);
        let line = format!(
            "stty cols 91 rows 17; tty > {0}.new; mv {0}.new {0}; exec {1} {arguments}",
            name.display(),
            kubectl.display(),
        );
        let mut child = cluster
            .kubectl_command(Path::new("script"), &["-qefc", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("script can be started");
        let screen = Arc::new(Mutex::new(String::new()));
        let mut output = child.stdout.take().expect("a pipe");
        let filled = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                filled.lock().expect("a lock").push_str(&text);
            }
        });
        assert!(poll(MINUTE, || name.exists()), "no terminal");
        let tty = std::fs::read_to_string(&name).expect("the terminal's name");
        Self {
            stdin: child.stdin.take().expect("a pipe"),
            child,
            screen,
            seen: 0,
            tty: tty.trim().into(),
        }
    }

    fn write(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).expect("typing");
    }

    /// Waits for text on the screen after that found before.
    fn until(&mut self, text: &str) {
        let came = poll(MINUTE, || {
            let screen = self.screen.lock().expect("a lock");
            match screen[self.seen..].find(text) {
                Some(at) => {
                    self.seen += at + text.len();
                    true
                }
                None => false,
            }
        });
        assert!(
            came,
            "{text:?} does not come:\n{}",
            self.screen.lock().expect("a lock")
        );
    }

    /// Types a command until it prints `text` on a line of its own; the size of a window arrives
    /// when it likes.
    fn says(&mut self, command: &str, text: &str) {
        const TRIES: usize = 50;
        for _ in 0..TRIES {
            self.write(command);
            self.write("; echo end-$((1+1))\n");
            let before = self.seen;
            self.until("end-2");
            let screen = self.screen.lock().expect("a lock");
            if screen[before..self.seen].lines().any(|line| line == text) {
                return;
            }
            drop(screen);
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!(
            "{command} never says {text:?}:\n{}",
            self.screen.lock().expect("a lock")
        );
    }

    fn resize(&self, rows: u16, columns: u16) {
        let status = Command::new("stty")
            .arg("-F")
            .arg(&self.tty)
            .args(["rows", &rows.to_string(), "cols", &columns.to_string()])
            .status();
        assert!(status.expect("stty can be started").success());
    }

    /// Waits until kubectl ends; gives its exit code.
    fn end(mut self) -> Option<i32> {
        let mut code = None;
        let ended = poll(MINUTE, || {
            code = self.child.try_wait().expect("a child");
            code.is_some()
        });
        assert!(
            ended,
            "kubectl does not end:\n{}",
            self.screen.lock().expect("a lock")
        );
        code.and_then(|status| status.code())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
