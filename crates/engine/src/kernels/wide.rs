//! Functions compiled more than once, for the widest instructions that the
//! processor turns out to have. Additions keep their order and products aren't
//! fused: every form gives the same bits.

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
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has what the function is compiled for.
                    return unsafe { of_512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { of_256($($arg),*) };
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
