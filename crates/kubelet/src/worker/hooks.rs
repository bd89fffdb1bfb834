//! postStart and preStop hooks.

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use std::time::Duration;

use crate::cri::Cri;
use crate::probes::http::{self, Target};

/// Longest hook output put into an event, in bytes.
const MAX_OUTPUT: usize = 1024;
/// Time an HTTP hook gets.
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a hook in (or against) a running container.
///
/// # Errors
/// Text for the event.
pub async fn run(
    cri: &Cri,
    pod: &Pod,
    container: &Container,
    id: &str,
    ip: &str,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let done = cri
            .exec_sync(id, &command, Duration::ZERO)
            .await
            .map_err(|e| e.to_string())?;
        if done.exit_code == 0 {
            return Ok(());
        }
        let end = done.output.len().min(MAX_OUTPUT);
        let output = String::from_utf8_lossy(&done.output[..end]);
        let command = command.join(" ");
        return Err(format!(
            "command '{command}' exited with {}: {output}",
            done.exit_code
        ));
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(
            u64::try_from(sleep.seconds).unwrap_or(0),
        ))
        .await;
        return Ok(());
    }
    if let Some(get) = &hook.http_get {
        let target = Target::of(pod, container, get, ip)?;
        let answer = http::get(&target, HTTP_TIMEOUT).await?;
        return if (200..400).contains(&answer.status) {
            Ok(())
        } else {
            Err(format!(
                "HTTP hook failed with statuscode: {}",
                answer.status
            ))
        };
    }
    if hook.tcp_socket.is_some() {
        return Err("tcpSocket hooks are not supported".to_owned());
    }
    Ok(())
}
