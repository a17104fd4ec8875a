//! The spec's nouns. Pure: no I/O, no async.

mod digest;
mod manifest;
mod name;

pub use digest::{Algorithm, AlgorithmInvalid, Digest, DigestInvalid, Hasher};
pub use manifest::{Descriptor, Manifest, ManifestInvalid, OCI_IMAGE, OCI_INDEX};
pub use name::{NameInvalid, Reference, ReferenceInvalid, RepositoryName, Tag, TagInvalid};
