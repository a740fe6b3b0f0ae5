//! Generated messages and services of Rug, and their one translation to domain types.
//!
//! The wire is untrusted: [`convert`] is the only place where a missing, odd or oversized field is seen, and it becomes
//! an error there that names the field. Nothing past it handles raw messages. [`document`] reads what people write into messages.

pub mod convert;
pub mod document;

/// Generated code; documented in the `.proto` files.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod admin {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("rug.admin.v1");
    }
}

/// Generated code; documented in the `.proto` files.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod worker {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("rug.worker.v1");
    }
}

/// Encoded `google.protobuf.FileDescriptorSet` of all services, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
