//! What goes with what: settings that are each fine, and together would make
//! another model than they say. docs/guide/federations.md has the table.
//!
//! Start at [`Hop::validate_combination`] for those of one hop; the other is about
//! hops and ends together.

use tierline_codec::update::Pipeline;

use crate::config::EvaluateAt;
use crate::{FederateError, Federation, Hop, Memory, Personal, Rule, Strategy, Timing};

impl Hop {
    pub(crate) fn validate_combination(&self, what: &'static str, up: &Pipeline) -> Result<(), FederateError> {
        self.memory_goes(what, up)?;
        self.rule_goes(what, up)?;
        self.strategy_goes(what, up)
    }

    /// A memory is of changes that are added up, through stages that bring each
    /// time a part of what is there.
    fn memory_goes(&self, what: &'static str, up: &Pipeline) -> Result<(), FederateError> {
        let memory = self.memory();
        if memory == (Memory::None {}) {
            return Ok(());
        }
        if !up.is_contraction() {
            let reason = "qsgd below six bits may lose more than there was, and what is remembered of that grows: name \
                          qsgd:6 or int4, or `memory = { kind = 'none' }`";
            return refuse(what, reason);
        }
        match memory {
            Memory::Dgc { .. } if up.fraction().is_none() => {
                refuse(what, "memory dgc gathers momentum where nothing travels; begin `up` with topk or random")
            }
            Memory::Dgc { momentum, .. } if !(0.0..1.0).contains(&momentum) => {
                refuse(what, "memory.momentum is at least 0 and below 1")
            }
            Memory::Ef21 {} if up.is_lossless() => {
                refuse(what, "memory ef21 is of what is lost, and `up` loses nothing; leave memory out")
            }
            Memory::Ef21 {} if self.rule != Rule::Mean {} => {
                refuse(what, "memory ef21 adds estimates up, which only the mean does; leave rule or memory out")
            }
            Memory::Ef21 {} if !adds_changes(&self.strategy) => {
                let reason = "memory ef21 needs every change to count alike, once a round: take fedavg, fedprox, fedadam, \
                              fedyogi, fedadagrad or diloco, or another memory";
                refuse(what, reason)
            }
            _ => Ok(()),
        }
    }

    /// A rule compares members' changes, number by number.
    fn rule_goes(&self, what: &'static str, up: &Pipeline) -> Result<(), FederateError> {
        if self.rule == (Rule::Mean {}) {
            return Ok(());
        }
        if !up.sends_all() && !matches!(self.rule, Rule::Bounded { .. }) {
            let reason = "with topk, random and powersgd each member sends another part of its change, and where most send \
                          nothing a rule makes nothing of it: name stages that round, such as int8, or rule bounded";
            return refuse(what, reason);
        }
        let behaviour = self.strategy.behaviour();
        if behaviour.local_objective().control || behaviour.server_distils().is_some() {
            let reason = "scaffold's control variates and what feddf learns are made of all members, whatever a rule \
                          chooses: leave rule out, or take fedavg or fedprox";
            return refuse(what, reason);
        }
        let answers = match behaviour.timing() {
            Timing::Round => self.clients.per_round,
            Timing::Buffer { size, .. } => Some(size),
        };
        match answers.map(|has| (self.rule.needs(has), has)) {
            Some((needs, has)) if has < needs => {
                Err(FederateError::TooFew { what, rule: self.rule.name(), needs, has })
            }
            _ => Ok(()),
        }
    }

    fn strategy_goes(&self, what: &'static str, up: &Pipeline) -> Result<(), FederateError> {
        let behaviour = self.strategy.behaviour();
        let (answers, transfers) = (behaviour.members_distil().is_some(), behaviour.transfers().is_some());
        let remembers = self.memory.is_some_and(|memory| memory != Memory::None {});
        if (answers || transfers) && (remembers || !up.sends_all()) {
            let reason = "fedmd sends answers and fedgkt sends features, not changes: name stages that round, such as \
                          int8, and no memory";
            return refuse(what, reason);
        }
        if transfers && (self.rule != Rule::Mean {} || !self.down.is_empty()) {
            return refuse(what, "with fedgkt nothing is averaged and no model comes down; leave rule and down out");
        }
        if behaviour.server_distils().is_some() && !up.sends_all() {
            let reason = "feddf asks each member's model, and a part of its change makes another one: name stages that \
                          round, such as int8";
            return refuse(what, reason);
        }
        Ok(())
    }
}

/// Whether the next model is made of the plain mean of a round's changes.
fn adds_changes(strategy: &Strategy) -> bool {
    use Strategy::{DiLoCo, FedAdagrad, FedAdam, FedAvg, FedProx, FedYogi};
    matches!(strategy, FedAvg(_) | FedProx(_) | FedAdam(_) | FedYogi(_) | FedAdagrad(_) | DiLoCo(_))
}

impl Federation {
    pub(crate) fn validate_combination(&self) -> Result<(), FederateError> {
        if self.cloud.gossip.is_some() {
            return refuse("federation.cloud.gossip", "it is edges that gossip; move the table to federation.edge");
        }
        self.modifiers_go()?;
        self.personal_goes()?;
        self.edge_goes()
    }

    fn personal_goes(&self) -> Result<(), FederateError> {
        if self.own_models() && self.evaluate_at == Some(EvaluateAt::Cloud) {
            let reason = "each end has a model of its own, which the cloud can't evaluate; leave it out";
            return refuse("federation.evaluate_at", reason);
        }
        let Some(personal) = &self.personal else { return Ok(()) };
        let what = "federation.personal";
        if self.of_ends().strategy.behaviour().members_distil().is_some() {
            return refuse(what, "with fedmd each end has a model of its own anyway; leave this table out");
        }
        if self.transfer().is_some() {
            return refuse(what, "with fedgkt each end has a model of its own anyway; leave this table out");
        }
        let stays = matches!(personal, Personal::FedPer { .. } | Personal::FedBn {});
        if stays && self.cloud.strategy.behaviour().server_distils().is_some() {
            let reason = "with feddf the cloud asks each member's model, of which fedper and fedbn keep a part at home; \
                          take finetune or ditto";
            return refuse(what, reason);
        }
        Ok(())
    }

    fn modifiers_go(&self) -> Result<(), FederateError> {
        let strategy = &self.of_ends().strategy;
        let refused = self.modifiers.iter().find_map(|modifier| modifier.behaviour().refuses(strategy));
        refused.map_or(Ok(()), |reason| refuse("federation.modifiers", reason))
    }

    fn edge_goes(&self) -> Result<(), FederateError> {
        let Some(edge) = &self.edge else { return Ok(()) };
        let (of_cloud, of_edge) = (self.cloud.strategy.behaviour(), edge.strategy.behaviour());
        if of_cloud.transfers().is_some() || of_edge.transfers().is_some() {
            let reason = "what ends send with fedgkt is of their own examples, and nothing that an edge could put together: \
                          name fedgkt for the cloud and leave [federation.edge] out; edges then pass it on";
            return refuse("federation.edge", reason);
        }
        if of_cloud.local_objective().pull != 0.0 || of_cloud.local_objective().control {
            let reason = "edges don't train, they put together; name this strategy for the edges' ends \
                          (federation.edge.strategy) and another one here";
            return refuse("federation.cloud.strategy", reason);
        }
        let what = "federation.edge.strategy";
        if of_edge.members_distil() != of_cloud.members_distil() {
            let reason = "what travels is weights or what models say, on both hops the same: name fedmd for both, with the \
                          same distil";
            return refuse(what, reason);
        }
        if of_edge.server_distils().is_some() {
            return refuse(what, "edges don't train, they put together; name feddf for the cloud");
        }
        if matches!(of_edge.timing(), Timing::Buffer { .. }) {
            return refuse(what, "an edge answers the cloud after rounds of its own; buffer at the cloud instead");
        }
        Ok(())
    }
}

fn refuse(what: &'static str, reason: &str) -> Result<(), FederateError> {
    Err(FederateError::Setting { what, reason: reason.to_owned() })
}
