//! Whether a member's answer is sure enough to stand.

use tierline_graph::Tensor;

use super::numbers::{TensorsError, named, numbers_of};
use super::{Member, Quality};
use crate::exits::{Judge, Reading};

/// What is said of a member's answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// The least sure example's sureness.
    pub sureness: f64,
    /// Whether it answers.
    pub sure: bool,
}

impl Member {
    /// How the output that is judged is read.
    #[must_use]
    pub fn reading(&self) -> Reading {
        Reading { axis: self.axis, scores: self.scores }
    }

    /// The output that is judged or combined.
    ///
    /// # Errors
    /// When it isn't there, or isn't named and there are several.
    pub fn judged<'t>(&self, outputs: &'t [(String, Tensor)]) -> Result<&'t Tensor, TensorsError> {
        match (&self.judged, outputs) {
            (Some(name), _) => named(outputs, name),
            (None, [(_, only)]) => Ok(only),
            (None, _) => Err(TensorsError::Missing {
                name: "judged".to_owned(),
                known: outputs.iter().map(|(name, _)| format!("`{name}`")).collect(),
            }),
        }
    }

    /// Judges the member's outputs by its rule; one without a rule is never sure.
    ///
    /// # Errors
    /// When there is nothing to judge.
    pub fn judge(&self, outputs: &[(String, Tensor)]) -> Result<Verdict, TensorsError> {
        let Some(rule) = self.rule() else { return Ok(Verdict { sureness: 0.0, sure: false }) };
        let verdict = Judge::default().judge(self.judged(outputs)?, None, self.reading(), rule)?;
        Ok(Verdict { sureness: verdict.sureness, sure: verdict.leaves })
    }
}

/// How a picture is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Picture {
    /// Variance of the Laplacian (0 1 0, 1 -4 1, 0 1 0) of the mean of its channels, where
    /// all its neighbours are (Pech-Pacheco 2000).
    pub sharpness: f64,
    /// The mean of all its values.
    pub brightness: f64,
}

/// How each picture of `[batch, channels, height, width]` is, with `white` for 1.
///
/// # Errors
/// When it holds no pictures.
pub fn pictures(name: &str, tensor: &Tensor, white: f64) -> Result<Vec<Picture>, TensorsError> {
    let &[batch, channels, height, width] = tensor.shape() else {
        let needed = "[batch, channels, height, width]".to_owned();
        return Err(TensorsError::Shape { name: name.to_owned(), shape: tensor.shape().to_vec(), needed });
    };
    let values = numbers_of(name, tensor)?;
    let pixels = height * width;
    let picture = |at: usize| {
        let planes = &values[at * channels * pixels..][..channels * pixels];
        let grey: Vec<f64> = (0..pixels)
            .map(|pixel| planes.iter().skip(pixel).step_by(pixels).sum::<f64>() / (channels as f64 * white))
            .collect();
        let brightness = grey.iter().sum::<f64>() / pixels as f64;
        let inner = |side: usize| 1..side.saturating_sub(1);
        let edges: Vec<f64> = inner(height)
            .flat_map(|y| inner(width).map(move |x| y * width + x))
            .map(|i| grey[i - 1] + grey[i + 1] + grey[i - width] + grey[i + width] - 4.0 * grey[i])
            .collect();
        let mean = edges.iter().sum::<f64>() / edges.len() as f64;
        let sharpness = edges.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / edges.len() as f64;
        Picture { sharpness, brightness }
    };
    Ok(if pixels * channels == 0 { Vec::new() } else { (0..batch).map(picture).collect() })
}

impl Quality {
    /// What is wrong with the pictures of a request, if anything is.
    ///
    /// # Errors
    /// When there are none.
    pub fn poor(&self, inputs: &[(String, Tensor)]) -> Result<Option<&'static str>, TensorsError> {
        let pictures = pictures(&self.input, named(inputs, &self.input)?, self.white)?;
        let any = |poor: &dyn Fn(&Picture) -> bool| pictures.iter().any(poor);
        Ok(if self.blur_min.is_some_and(|least| any(&|p| p.sharpness < least)) {
            Some("blurred")
        } else if self.dark_max.is_some_and(|least| any(&|p| p.brightness < least)) {
            Some("too dark")
        } else if self.bright_min.is_some_and(|most| any(&|p| p.brightness > most)) {
            Some("too bright")
        } else {
            None
        })
    }
}
