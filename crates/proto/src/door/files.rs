//! Artefacts, probes, and how a device becomes a node.

use super::{Breach, Door, TIME_NS_MAX, bytes, count, digest, long, word};
use crate::limits::{
    CERTIFICATE_BYTES_MAX, CHAIN_MAX, CHUNK_BYTES_MAX, CSR_BYTES_MAX, PROBE_BYTES_MAX, TOKEN_BYTES_MAX,
};
use crate::name::NodeName;
use crate::v1::{FetchChunk, FetchRequest, JoinReply, JoinRequest, ProbeChunk, RenewRequest, StatRequest};

impl Door for StatRequest {
    fn check(&mut self) -> Result<(), Breach> {
        digest("the artefact", &mut self.digest).map(drop)
    }
}

impl Door for FetchRequest {
    fn check(&mut self) -> Result<(), Breach> {
        digest("the artefact", &mut self.digest).map(drop)
    }
}

impl Door for FetchChunk {
    fn check(&mut self) -> Result<(), Breach> {
        bytes("a chunk", &self.data, CHUNK_BYTES_MAX)
    }
}

impl Door for ProbeChunk {
    fn check(&mut self) -> Result<(), Breach> {
        for (what, length) in [
            ("padding", self.padding.len() as u64),
            ("padding wanted", self.want_bytes),
            ("padding received", self.received_bytes),
        ] {
            long(what, length, PROBE_BYTES_MAX)?;
        }
        self.received_ns = self.received_ns.min(TIME_NS_MAX);
        Ok(())
    }
}

impl Door for JoinRequest {
    fn check(&mut self) -> Result<(), Breach> {
        bytes("a token", self.token.as_bytes(), TOKEN_BYTES_MAX)?;
        bytes("a certificate signing request", &self.csr_der, CSR_BYTES_MAX)?;
        Ok(NodeName::new(&self.name).map(drop)?)
    }
}

impl Door for RenewRequest {
    fn check(&mut self) -> Result<(), Breach> {
        bytes("a certificate signing request", &self.csr_der, CSR_BYTES_MAX)?;
        chain(&self.certificate_chain)?;
        bytes("a signature", &self.signature, CERTIFICATE_BYTES_MAX)
    }
}

impl Door for JoinReply {
    fn check(&mut self) -> Result<(), Breach> {
        word("the node's identity", &self.node_id, crate::limits::WORD_BYTES_MAX)?;
        chain(&self.certificate_chain)?;
        bytes("a certificate", &self.ca_der, CERTIFICATE_BYTES_MAX)?;
        self.revocations.as_mut().map_or(Ok(()), Door::check)
    }
}

fn chain(chain: &[bytes::Bytes]) -> Result<(), Breach> {
    count("certificates of a chain", chain.len(), CHAIN_MAX)?;
    chain.iter().try_for_each(|certificate| bytes("a certificate", certificate, CERTIFICATE_BYTES_MAX))
}
