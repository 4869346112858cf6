//! Exits of one request on this node: which may answer, what they say, and how
//! deep a caller may go.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tierline_graph::Tensor;
use tierline_graph::exits::{Criterion, Rule};
use tierline_node::Time;
use tierline_node::rate::{Allowance, RateLimiter};
use tierline_node::request::Ran;
use tierline_plan::exits::{Judge, Reading};
use tierline_proto::v1::{Code, ExitRule, Failure};

use crate::device::program::{ActiveExit, Named, Program};
use crate::models::PlacedExits;

/// Below every sureness: an exit with it always answers.
const ALWAYS: f64 = f64::MIN;

/// The exits that may answer a request which asks for one (`wish`, from 1: it
/// answers at the latest; 0: none does), or for none in particular.
///
/// # Errors
/// [`Code::InvalidInput`] when the model has no such exit.
pub fn active(program: &Program, wish: Option<u32>) -> Result<Vec<ActiveExit>, Failure> {
    let ruled = program.ruled_exits();
    let wish = match wish {
        None => return Ok(ruled),
        Some(0) => return Ok(Vec::new()),
        Some(wish) => wish as usize - 1,
    };
    let placed = program.manifest.exits.as_ref();
    let place = placed.and_then(|exits| exits.cuts.get(wish)).filter(|cut| **cut + 1 < program.segments());
    let Some(cut) = place else {
        let count = placed.map_or(0, |exits| exits.cuts.len());
        let text = format!("exit {} is asked for; model `{}` has {count}", wish + 1, program.manifest.name);
        return Err(Failure::new(Code::InvalidInput, text).with_help("ask for exit 0, the model's end, or for none"));
    };
    let before = ruled.into_iter().filter(|exit| exit.index < wish);
    let rule = Rule { criterion: Criterion::Confidence, threshold: ALWAYS };
    Ok(before.chain([ActiveExit { index: wish, segment: cut + 1, rule }]).collect())
}

/// Rules as a parent is told of them: those behind segment `after`. The last
/// one always answers where the request may go no deeper (`capped`).
#[must_use]
pub fn told(exits: &[ActiveExit], after: usize, capped: bool) -> Vec<ExitRule> {
    let rule = |exit: &ActiveExit| ExitRule {
        exit: exit.index as u32 + 1,
        criterion: exit.rule.criterion.name().to_owned(),
        threshold: exit.rule.threshold,
    };
    let mut rules: Vec<ExitRule> = exits.iter().filter(|exit| exit.segment > after).map(rule).collect();
    if let Some(last) = rules.last_mut().filter(|_| capped) {
        last.threshold = ALWAYS;
    }
    rules
}

/// The exits that a child's rules speak of. What isn't known here is passed
/// by: going on is as right.
#[must_use]
pub fn heard(program: &Program, rules: &[ExitRule]) -> Vec<ActiveExit> {
    let Some(exits) = &program.manifest.exits else { return Vec::new() };
    let active = |rule: &ExitRule| {
        let index = rule.exit.checked_sub(1)? as usize;
        let segment = exits.cuts.get(index)? + 1;
        let criterion = Criterion::by_name(&rule.criterion)?;
        Some(ActiveExit { index, segment, rule: Rule { criterion, threshold: rule.threshold } })
    };
    rules.iter().filter_map(active).filter(|exit| exit.segment < program.segments()).collect()
}

/// What exits judged behind some segments came to.
pub struct Judged {
    /// For the request's machine.
    pub ran: Ran,
    /// The exit's answer, as the model's end would give it.
    pub answer: Option<ExitAnswer>,
}

/// An answer of an exit.
pub struct ExitAnswer {
    /// Which exit, from 0.
    pub index: usize,
    /// The outputs of the model's end, from the exit.
    pub outputs: Named,
}

/// Judges a request's exits one after the other.
pub struct Judging {
    exits: Vec<ActiveExit>,
    judge: Mutex<Judge>,
}

impl Judging {
    /// Nothing is judged yet.
    #[must_use]
    pub fn new(exits: Vec<ActiveExit>) -> Arc<Self> {
        Arc::new(Self { exits, judge: Mutex::default() })
    }

    /// Judges the exits behind segment `to`, and takes what belongs to them out
    /// of a run's outputs: the frontier stays.
    ///
    /// # Errors
    /// When an exit's answer can't be judged.
    pub fn judge(&self, program: &Program, to: usize, outputs: &mut Named) -> Result<Judged, Failure> {
        let mut judged = Judged { ran: Ran::On, answer: None };
        let Some(placed) = program.manifest.exits.as_ref().filter(|_| program.exits_at(to).next().is_some()) else {
            return Ok(judged);
        };
        for exit in self.exits.iter().filter(|exit| exit.segment == to) {
            judged = self.judge_one(placed, program, exit, outputs)?;
            if judged.ran == Ran::Sure {
                break;
            }
        }
        let frontier = program.entering(to);
        outputs.retain(|(name, _)| frontier.contains(name));
        Ok(judged)
    }

    fn judge_one(
        &self,
        placed: &PlacedExits,
        program: &Program,
        exit: &ActiveExit,
        outputs: &Named,
    ) -> Result<Judged, Failure> {
        let given = |name: &str| -> Result<&Tensor, Failure> {
            let found = outputs.iter().find(|(output, _)| output == name).map(|(_, tensor)| tensor);
            found.ok_or_else(|| {
                let text = format!("exit {} of `{}` gave no `{name}`", exit.index + 1, program.manifest.name);
                Failure::new(Code::Engine, text)
            })
        };
        let missing = |what: &str| Failure::new(Code::Corrupt, format!("exit {} has no {what}", exit.index + 1));
        let stated = placed.stated.exits.get(exit.index).ok_or_else(|| missing("description"))?;
        let own = |end: &String| stated.outputs.get(end).ok_or_else(|| missing("answer"));
        let answer = given(own(&placed.judged)?)?;
        let learned = stated.sureness.as_deref().map(given).transpose()?;
        let reading = Reading { axis: placed.stated.axis, scores: placed.stated.scores };
        let leaves = if exit.rule.threshold <= ALWAYS {
            true
        } else {
            let mut judge = self.judge.lock().unwrap_or_else(PoisonError::into_inner);
            let verdict = judge.judge(answer, learned, reading, exit.rule);
            verdict.map_err(|e| Failure::new(Code::Engine, format!("exit {}: {e}", exit.index + 1)))?.leaves
        };
        let ends = program.manifest.outputs.iter().map(|end| &end.name);
        let outputs = ends.map(|end| Ok((end.clone(), given(own(end)?)?.clone()))).collect::<Result<_, Failure>>()?;
        let ran = if leaves { Ran::Sure } else { Ran::Unsure };
        Ok(Judged { ran, answer: Some(ExitAnswer { index: exit.index, outputs }) })
    }

    /// Segments that have run when the last exit is judged: behind it a request
    /// goes deep.
    #[must_use]
    pub fn last(&self) -> Option<usize> {
        self.exits.iter().map(|exit| exit.segment).max()
    }

    /// All of them.
    #[must_use]
    pub fn exits(&self) -> &[ActiveExit] {
        &self.exits
    }
}

/// How many inferences of each caller may go past the exits: inputs can be
/// made to never leave early, and cost whoever serves them the whole model.
pub struct DeepBudget(Option<Mutex<RateLimiter<Arc<str>>>>);

impl DeepBudget {
    /// So many in a minute, and a minute's worth at once; any number without.
    #[must_use]
    pub fn new(per_minute: Option<u32>) -> Self {
        let allowance = |burst: u32| Allowance { burst, every: Duration::from_secs(60) / burst };
        Self(per_minute.filter(|n| *n > 0).map(|n| Mutex::new(RateLimiter::new(allowance(n)))))
    }

    /// Whether a caller may go deep now.
    pub fn may(&self, now: Time, caller: &Arc<str>) -> bool {
        let limiter = self.0.as_ref().map(|limiter| limiter.lock().unwrap_or_else(PoisonError::into_inner));
        limiter.is_none_or(|limiter| limiter.wait(now, caller).is_zero())
    }

    /// A caller's request went deep. Requests under way at once may exceed the
    /// budget by as many.
    pub fn count(&self, now: Time, caller: Arc<str>) {
        if let Some(limiter) = &self.0 {
            limiter.lock().unwrap_or_else(PoisonError::into_inner).count(now, caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_goes_deep_as_often_as_its_budget_allows() {
        let budget = DeepBudget::new(Some(3));
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let at = |s: u64| Time::ZERO + Duration::from_secs(s);
        let take = |budget: &DeepBudget, s: u64, who: &Arc<str>| {
            let may = budget.may(at(s), who);
            if may {
                budget.count(at(s), Arc::clone(who));
            }
            may
        };
        assert_eq!([0, 0, 0, 0, 1].map(|s| take(&budget, s, &one)), [true, true, true, false, false]);
        assert!(take(&budget, 1, &other));
        assert_eq!([20, 20, 40].map(|s| take(&budget, s, &one)), [true, false, true]);
        let any = DeepBudget::new(None);
        assert!((0..1_000).all(|_| take(&any, 0, &one)));
    }
}
