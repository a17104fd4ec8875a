//! Compiles the protocol buffers without protoc, so that `cargo build` needs nothing but cargo.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/state.proto", "proto/peer.proto"], ["proto"])?;
    // Maps with one order, so that equal states are equal bytes.
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
