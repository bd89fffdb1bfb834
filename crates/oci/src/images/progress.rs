//! What an import or pull tells whoever waits for it.

/// A step of an import or pull.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgressEvent {
    /// An image's manifest was read; its layers follow.
    Image {
        /// Its name, or its id if it has none.
        name: String,
        /// How many layers it has.
        layers: usize,
    },
    /// A layer is here already.
    LayerExists {
        /// Digest of the layer.
        digest: String,
    },
    /// Bytes of a layer have arrived.
    LayerBytes {
        /// Digest of the layer.
        digest: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A layer has arrived and is being unpacked.
    LayerUnpacking {
        /// Digest of the layer.
        digest: String,
    },
    /// A layer is unpacked and in place.
    LayerDone {
        /// Digest of the layer.
        digest: String,
    },
    /// An image is ready to be used.
    ImageDone {
        /// Its name, or its id if it has none.
        name: String,
    },
}

/// Hears of progress; called from several threads, and must not block.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn event(&self, event: ProgressEvent);
}

/// Nobody listens.
impl Progress for () {
    fn event(&self, _: ProgressEvent) {}
}

impl<F: Fn(ProgressEvent) + Send + Sync> Progress for F {
    fn event(&self, event: ProgressEvent) {
        self(event);
    }
}
