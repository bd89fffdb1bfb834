//! Clients that no one here wrote, against the API over TLS: stock kubectl, the Python and JavaScript
//! clients, kube-rs.
//!
//! What a machine lacks is left out, and said. What is installed for them is kept below the build
//! folder, so that only the first run pays.

mod kube_rs;
mod kubectl;
mod manifests;
mod scripts;
mod tools;
