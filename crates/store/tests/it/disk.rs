//! Torn and damaged files, and a full disk.
