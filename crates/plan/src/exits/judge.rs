//! One request past its exits.

use tierline_graph::Tensor;
use tierline_graph::exits::{Criterion, Rule};

use super::{JudgeError, Reading, classes, sureness};

/// What a rule says of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// The least sure example's sureness; exits in a row that agree for
    /// [`Criterion::Patience`].
    pub sureness: f64,
    /// Whether the request leaves here.
    pub leaves: bool,
}

/// Remembers what the exits of a request said so far, for rules that compare.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    /// Classes that the last exit said, and how many in a row said the same.
    last: Option<(Vec<Vec<Option<usize>>>, u32)>,
}

impl Judge {
    /// Judges the next exit's answer. `learned` holds what the exit's own
    /// sureness output says, for [`Criterion::Learned`]. All examples of a
    /// batch leave together, or none.
    ///
    /// # Errors
    /// [`JudgeError`].
    pub fn judge(
        &mut self,
        answer: &Tensor,
        learned: Option<&Tensor>,
        reading: Reading,
        rule: Rule,
    ) -> Result<Verdict, JudgeError> {
        let sureness = match rule.criterion {
            Criterion::Patience => self.in_a_row(classes(answer, reading)?),
            Criterion::Learned => least(learned.map(said).unwrap_or_default()),
            criterion => least(sureness(answer, reading, criterion)?),
        };
        Ok(Verdict { sureness, leaves: sureness >= rule.threshold })
    }

    /// Exits in a row with these classes; none where there is no class.
    fn in_a_row(&mut self, now: Vec<Vec<Option<usize>>>) -> f64 {
        let known = now.iter().flatten().all(Option::is_some);
        let count = match &self.last {
            Some((before, count)) if *before == now => count + 1,
            _ => 1,
        };
        self.last = known.then_some((now, count));
        if known { f64::from(count) } else { 0.0 }
    }
}

/// What a learned output says of each example.
fn said(output: &Tensor) -> Vec<f64> {
    let values = super::floats(output.elements());
    let value = |v: f64| if (0.0..=1.0).contains(&v) { v } else { 0.0 };
    values.map(|at| (0..output.len()).map(|i| value(at(i))).collect()).unwrap_or_default()
}

/// The least of all examples; nobody is sure of nothing.
fn least(examples: Vec<f64>) -> f64 {
    if examples.is_empty() { 0.0 } else { examples.into_iter().fold(f64::INFINITY, f64::min) }
}

#[cfg(test)]
mod tests {
    use tierline_graph::Elements;
    use tierline_graph::exits::Scores;

    use super::*;

    const READING: Reading = Reading { axis: -1, scores: Scores::Probabilities };

    fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::new(shape, Elements::F32(values.to_vec())).unwrap()
    }

    #[test]
    fn the_least_sure_of_a_batch_decides() {
        let rule = Rule { criterion: Criterion::Confidence, threshold: 0.75 };
        let batch = tensor(&[2, 2], &[1.0, 0.0, 0.25, 0.75]);
        let verdict = Judge::default().judge(&batch, None, READING, rule).unwrap();
        assert_eq!(verdict, Verdict { sureness: 0.75, leaves: true });
        let rule = Rule { threshold: 0.76, ..rule };
        assert!(!Judge::default().judge(&batch, None, READING, rule).unwrap().leaves);
    }

    #[test]
    fn patience_counts_exits_that_agree() {
        let rule = Rule { criterion: Criterion::Patience, threshold: 2.0 };
        let mut judge = Judge::default();
        let (cat, dog) = (tensor(&[1, 2], &[0.6, 0.4]), tensor(&[1, 2], &[0.4, 0.6]));
        let mut say = |answer: &Tensor| judge.judge(answer, None, READING, rule).unwrap().sureness;
        let none = tensor(&[1, 2], &[f32::NAN, 0.4]);
        let said: Vec<f64> = [&cat, &dog, &dog, &dog, &none, &dog].into_iter().map(&mut say).collect();
        assert_eq!(said, [1.0, 1.0, 2.0, 3.0, 0.0, 1.0]);
    }

    #[test]
    fn a_learned_rule_reads_its_own_output() {
        let rule = Rule { criterion: Criterion::Learned, threshold: 0.5 };
        let answer = tensor(&[1, 2], &[0.6, 0.4]);
        let mut judge = Judge::default();
        let mut say = |learned: Option<&Tensor>| judge.judge(&answer, learned, READING, rule).unwrap();
        assert!(say(Some(&tensor(&[1, 1], &[0.5]))).leaves);
        assert!(!say(Some(&tensor(&[1], &[f32::NAN]))).leaves);
        assert!(!say(Some(&tensor(&[1], &[7.0]))).leaves);
        assert!(!say(None).leaves);
    }
}
