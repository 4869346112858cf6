//! What is said of federations: what a parent wants, what a child is at, what
//! stands before an update.

use super::{Breach, Door, bytes, count, digest, digest_or_none, failure, long, node_or_none, word};
use crate::limits::{LEADING_MAX, NEIGHBOURS_MAX, TEXT_BYTES_MAX, UPDATE_BYTES_MAX, URL_BYTES_MAX};
use crate::name::NodeName;
use crate::v1::{
    JobAssignment, JobStatus, JobVerdict, MeetReply, MeetRequest, UpdateHeader, job_assignment, job_status,
};

impl Door for JobAssignment {
    fn check(&mut self) -> Result<(), Breach> {
        use job_assignment::Want;
        digest("the job", &mut self.job)?;
        node_or_none(&self.node)?;
        match &mut self.want {
            Some(Want::Work(order)) => {
                digest_or_none("the model of a task", &mut order.model)?;
                count("differences that lead to a model", order.differences.len(), LEADING_MAX)?;
                for difference in &mut order.differences {
                    digest("a difference that leads to a model", difference)?;
                }
                count("neighbours", order.neighbours.len(), NEIGHBOURS_MAX)?;
                for neighbour in &order.neighbours {
                    NodeName::new(&neighbour.name)?;
                    word("a neighbour's address", &neighbour.url, URL_BYTES_MAX)?;
                }
                Ok(())
            }
            Some(Want::Out(reason)) => reason.check(),
            Some(Want::Wait(_) | Want::Over(_) | Want::Join(_)) | None => Ok(()),
        }
    }
}

impl Door for JobStatus {
    fn check(&mut self) -> Result<(), Breach> {
        use job_status::Status;
        digest("the job", &mut self.job)?;
        node_or_none(&self.node)?;
        word("a node's address", &self.url, URL_BYTES_MAX)?;
        match &mut self.status {
            Some(Status::Unable(reason)) => reason.check(),
            Some(Status::Failed(failed)) => failure(&mut failed.reason),
            Some(Status::Preparing(_) | Status::Examples(_) | Status::Away(_)) | None => Ok(()),
        }
    }
}

impl Door for UpdateHeader {
    /// What is said of the work is for the federation to believe or not.
    fn check(&mut self) -> Result<(), Breach> {
        digest("the job", &mut self.job)?;
        digest("the update", &mut self.digest)?;
        long("an update", self.length, UPDATE_BYTES_MAX)?;
        node_or_none(&self.node)
    }
}

impl Door for JobVerdict {
    fn check(&mut self) -> Result<(), Breach> {
        super::cut(&mut self.reason, TEXT_BYTES_MAX);
        Ok(())
    }
}

impl Door for MeetRequest {
    fn check(&mut self) -> Result<(), Breach> {
        digest("the job", &mut self.job).map(drop)
    }
}

impl Door for MeetReply {
    fn check(&mut self) -> Result<(), Breach> {
        digest("the model that is offered", &mut self.offer)?;
        bytes("a node's name", self.node.as_bytes(), crate::limits::NODE_NAME_BYTES_MAX)?;
        Ok(NodeName::new(&self.node).map(drop)?)
    }
}
