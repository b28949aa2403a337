//! Law 11: no user whose requests fail for ever starves the others, and none of them is left alone
//! once their requests succeed.

use std::collections::HashSet;

use super::{Broken, Invariant, Sorted};
use crate::record::{Checked, Micros};

pub(super) fn judge(sorted: &Sorted<'_>) -> Vec<Broken> {
    let mut starved = HashSet::new();
    let mut broken = Vec::new();
    for check in &sorted.evidence.checks {
        let is_person = sorted.evidence.population.is_person(check.user);
        let words = match &check.outcome {
            Checked::Starved(why) => why.as_str(),
            Checked::LoginOver if !is_person => "an enterprise user was told to log in",
            _ => continue,
        };
        if starved.insert(check.user) {
            broken.push(Broken {
                invariant: Invariant::NobodyStarves,
                user: Some(check.user),
                at: Micros::MAX,
                words: format!("process {} does not serve them: {words}", check.process),
            });
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::super::made_up::*;
    use super::*;
    use crate::fleet::Check;

    #[test]
    fn starved_user_is_seen_once() {
        let mut evidence = evidence();
        let starved = |process| {
            let outcome = Checked::Starved("unavailable".to_owned());
            Check { process, user: ANN, outcome }
        };
        evidence.checks = vec![starved(1), starved(2)];
        assert_eq!(broken(&evidence), [Invariant::NobodyStarves]);
    }

    #[test]
    fn enterprise_user_never_logs_in() {
        let mut evidence = evidence();
        let enterprise = evidence.population.people;
        let outcome = Checked::LoginOver;
        evidence.checks = vec![Check { process: 1, user: enterprise, outcome }];
        assert_eq!(broken(&evidence), [Invariant::NobodyStarves]);
    }
}
