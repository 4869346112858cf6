//! Functions compiled more than once, for the widest instructions that the
//! processor turns out to have. Additions keep their order and products aren't
//! fused: every form gives the same bits.

/// Instructions that functions are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) enum Width {
    /// What every processor of the target has.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F.
    Avx512,
}

/// The widest instructions that the processor has.
pub(super) fn width() -> Width {
    #[cfg(test)]
    if let Some(most) = super::tests::WIDTH_MAX.get() {
        return most.min(found());
    }
    found()
}

fn found() -> Width {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Width::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Width::Avx2;
        }
    }
    Width::Portable
}

macro_rules! widest {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $given:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        fn $name($($arg: $type),*) $(-> $given)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $type),*) $(-> $given)? $body
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            {
                #[target_feature(enable = "avx512f")]
                #[allow(clippy::too_many_arguments)]
                fn of_512($($arg: $type),*) $(-> $given)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments)]
                fn of_256($($arg: $type),*) $(-> $given)? {
                    body($($arg),*)
                }
                match $crate::kernels::wide::width() {
                    // SAFETY: the processor has what the function is compiled for.
                    $crate::kernels::wide::Width::Avx512 => return unsafe { of_512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernels::wide::Width::Avx2 => return unsafe { of_256($($arg),*) },
                    $crate::kernels::wide::Width::Portable => {}
                }
            }
            body($($arg),*)
        }
    };
}

pub(super) use widest;

/// Sums kept side by side.
pub(super) const LANES: usize = 16;

/// Elements whose sum is kept in f32, side by side, before it is added to one
/// in f64.
pub(super) const RUN: usize = 1024;
