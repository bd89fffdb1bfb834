//! The protocols against real clients: every stock kubectl found on this machine talks to a little
//! API server that has one pod, whose containers are processes of this machine.

mod kubectl;
mod server;
mod websocket;
