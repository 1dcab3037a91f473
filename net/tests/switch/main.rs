//! A switch in its jail, and guests that speak to it in raw frames, as the kernels of machines do and as ones that would like to
//! be somebody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod attacks;
mod gateway;
mod jail;
mod noise;
mod site;
