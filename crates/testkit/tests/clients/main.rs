//! Clients that no one here wrote, against the API over TLS: stock kubectl, the Python and JavaScript
//! clients, kube-rs, client-go and controller-runtime, Helm.
//!
//! What a machine lacks is left out, and said. What is installed for them is kept below the build
//! folder, so that only the first run pays.

mod documents;
mod explain;
mod go;
mod helm;
mod kube_rs;
mod kubectl;
mod manifests;
mod plain;
mod scripts;
mod tools;
