//! Numbers in messages.

use std::fmt;

/// A number of things: `1 pinhole`, `2 pinholes`, `2 anomalies`.
#[derive(Clone, Copy, Debug)]
pub struct Count<N>(pub N, pub &'static str);

impl<N: fmt::Display + Copy + TryInto<u64>> fmt::Display for Count<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number, thing) = *self;
        match (number.try_into(), thing.strip_suffix('y')) {
            (Ok(1), _) => write!(f, "{number} {thing}"),
            (_, Some(stem)) => write!(f, "{number} {stem}ies"),
            (_, None) => write!(f, "{number} {thing}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_is_singular() {
        let shown = |number: usize| format!("{}, {}", Count(number, "pinhole"), Count(number, "anomaly"));
        assert_eq!(shown(0), "0 pinholes, 0 anomalies");
        assert_eq!(shown(1), "1 pinhole, 1 anomaly");
        assert_eq!(shown(2), "2 pinholes, 2 anomalies");
    }
}
