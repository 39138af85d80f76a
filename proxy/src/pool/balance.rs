//! Balance policies: in which order the candidates are offered a new session.
//!
//! Every policy yields all candidates, best first, so that a full or failed one is passed over without a second policy.

use std::net::IpAddr;

use super::{Candidate, Candidates};
use crate::config::Balance;

/// Slots of a Maglev table. Prime and far above the number of backends, as Eisenbud et al., "Maglev" (NSDI 2016),
/// section 3.4, ask: with 100 backends the shares differ by about 1 %.
const MAGLEV_SLOTS: usize = 65_537;

/// Turns in a round-robin round at most.
const LONGEST_ROUND: u64 = 4096;

/// The candidates of one tier, best first. `turn` grows by one with each call.
pub fn order(
    balance: Balance,
    candidates: &Candidates,
    tier: u8,
    client: IpAddr,
    turn: usize,
) -> impl Iterator<Item = &Candidate> {
    let mut list: Vec<&Candidate> =
        candidates.list.iter().filter(|candidate| candidate.tier == tier && candidate.weight > 0).collect();
    let count = list.len();
    if count > 1 {
        match balance {
            Balance::First => {}
            Balance::RoundRobin => {
                let owner = candidates.table.get(turn % candidates.table.len().max(1));
                let first = position(&list, candidates, owner).unwrap_or(turn % count);
                list.rotate_left(first);
            }
            Balance::LeastConnections => {
                // Equal ones take turns, or the first would get every session of an idle fleet.
                list.rotate_left(turn % count);
                list.sort_by(|a, b| load_order(a, b));
            }
            Balance::TwoChoices => {
                let random = scramble(turn as u64);
                let (one, two) = ((random as u32 as usize) % count, ((random >> 32) as usize) % (count - 1));
                let two = if two >= one { two + 1 } else { two };
                let best = if load_order(list[one], list[two]).is_le() { one } else { two };
                list.rotate_left(best);
            }
            Balance::SourceHash => {
                // Those of a lower tier have no place in the table; they stand in order.
                let slot = hash_ip(client) as usize % MAGLEV_SLOTS;
                let first = position(&list, candidates, candidates.table.get(slot)).unwrap_or(0);
                list.rotate_left(first);
            }
        }
    }
    list.into_iter()
}

/// Sessions per weight, smaller first, without dividing.
fn load_order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    let load = |of: &Candidate, other: &Candidate| u64::from(of.backend.sessions()) * u64::from(other.weight);
    load(a, b).cmp(&load(b, a))
}

/// Where in `list` the candidate stands that the table names, which has those of the best tier there is.
fn position(list: &[&Candidate], candidates: &Candidates, owner: Option<&u16>) -> Option<usize> {
    let owner = candidates.list.get(usize::from(*owner?))?;
    list.iter().position(|candidate| std::ptr::eq(*candidate, owner))
}

/// The table a policy needs, of indices into `list`; empty for those that need none.
pub fn table(balance: Balance, list: &[Candidate]) -> Vec<u16> {
    match balance {
        Balance::SourceHash => maglev(list),
        Balance::RoundRobin => round(list),
        Balance::First | Balance::LeastConnections | Balance::TwoChoices => Vec::new(),
    }
}

/// One round of turns: each as often as its weight says, spread evenly. With large weights the shares are rounded to
/// turns of a round of [`LONGEST_ROUND`].
fn round(list: &[Candidate]) -> Vec<u16> {
    let active = active(list);
    let total: u64 = active.iter().map(|&i| u64::from(list[i].weight)).sum();
    let mut turns: Vec<(f64, u16)> = Vec::new();
    for i in active {
        let weight = u64::from(list[i].weight);
        let share = if total <= LONGEST_ROUND { weight } else { (weight * LONGEST_ROUND / total).max(1) };
        turns.extend((0..share).map(|nth| ((nth as f64 + 0.5) / share as f64, i as u16)));
    }
    turns.sort_by(|a, b| a.0.total_cmp(&b.0));
    turns.into_iter().map(|(_, index)| index).collect()
}

/// Indices of those that take sessions, of the best tier there is.
fn active(list: &[Candidate]) -> Vec<usize> {
    let Some(best) = list.iter().filter(|one| one.weight > 0).map(|one| one.tier).min() else { return Vec::new() };
    (0..list.len().min(usize::from(u16::MAX))).filter(|&i| list[i].tier == best && list[i].weight > 0).collect()
}

/// Fills the Maglev table for every candidate of the best tier. Few slots move when one of them goes.
fn maglev(list: &[Candidate]) -> Vec<u16> {
    let active = active(list);
    if active.is_empty() {
        return Vec::new();
    }
    let most = active.iter().map(|&i| list[i].weight).max().unwrap_or(1);
    let mut table = vec![u16::MAX; MAGLEV_SLOTS];
    // Each one's permutation of the slots: next(j) = (offset + j * skip) mod slots.
    let mut walks: Vec<(u64, u64)> = active
        .iter()
        .map(|&i| {
            let name = hash_bytes(list[i].backend.address.to_string().as_bytes());
            (name % MAGLEV_SLOTS as u64, scramble(name) % (MAGLEV_SLOTS as u64 - 1) + 1)
        })
        .collect();
    let mut credit = vec![0u64; active.len()];
    let mut filled = 0;
    while filled < MAGLEV_SLOTS {
        for (nth, &index) in active.iter().enumerate() {
            credit[nth] += u64::from(list[index].weight);
            if credit[nth] < u64::from(most) {
                continue;
            }
            credit[nth] -= u64::from(most);
            let (at, skip) = &mut walks[nth];
            while table[*at as usize] != u16::MAX {
                *at = (*at + *skip) % MAGLEV_SLOTS as u64;
            }
            table[*at as usize] = index as u16;
            filled += 1;
            if filled == MAGLEV_SLOTS {
                break;
            }
        }
    }
    table
}

fn hash_ip(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => hash_bytes(&ip.octets()),
        IpAddr::V6(ip) => hash_bytes(&ip.octets()),
    }
}

/// FNV-1a, then mixed. The same on every host and in every version: two proxies agree where a client goes.
fn hash_bytes(bytes: &[u8]) -> u64 {
    let folded = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    scramble(folded)
}

/// The finalizer of SplitMix64.
fn scramble(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{Backend, Place};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    fn candidates(balance: Balance, weights: &[u32]) -> Candidates {
        let list: Vec<Candidate> = weights
            .iter()
            .enumerate()
            .map(|(i, &weight)| {
                let address = format!("10.0.0.{}:6432", i + 1).parse().expect("an address");
                let backend = Arc::new(Backend::new("p", &format!("b{i}"), address));
                Candidate { backend, weight, tier: 0, max_sessions: 0, peer_id: None }
            })
            .collect();
        Candidates { table: table(balance, &list), list, why_empty: String::new() }
    }

    fn first(balance: Balance, from: &Candidates, client: IpAddr, turn: usize) -> String {
        order(balance, from, 0, client, turn).next().map(|c| c.backend.name.clone()).unwrap_or_default()
    }

    fn shares(balance: Balance, from: &Candidates, turns: usize) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        (0..turns).for_each(|turn| *shares.entry(first(balance, from, CLIENT, turn)).or_default() += 1);
        shares
    }

    #[test]
    fn round_robin_gives_each_its_weight_and_not_in_a_row() {
        let from = candidates(Balance::RoundRobin, &[1, 3, 2]);
        assert_eq!(shares(Balance::RoundRobin, &from, 600).into_values().collect::<Vec<_>>(), [100, 300, 200]);
        let run: Vec<String> = (0..6).map(|turn| first(Balance::RoundRobin, &from, CLIENT, turn)).collect();
        assert!(!run.windows(3).any(|w| w[0] == w[1] && w[1] == w[2]), "{run:?}");
    }

    #[test]
    fn least_connections_counts_sessions_per_weight() {
        let from = candidates(Balance::LeastConnections, &[1, 2]);
        let places: Vec<_> = (0..3).filter_map(|_| Place::take(&from.list[1].backend, 0)).collect();
        let one = Place::take(&from.list[0].backend, 0);
        assert_eq!(first(Balance::LeastConnections, &from, CLIENT, 0), "b0", "1/1 is less than 3/2");
        drop(places);
        assert_eq!(first(Balance::LeastConnections, &from, CLIENT, 0), "b1");
        drop(one);
        assert_eq!(shares(Balance::LeastConnections, &from, 100).len(), 2, "an idle fleet takes turns");
    }

    #[test]
    fn two_choices_never_takes_the_busiest() {
        let from = candidates(Balance::TwoChoices, &[1, 1, 1]);
        let _busy: Vec<_> = (0..9).filter_map(|_| Place::take(&from.list[2].backend, 0)).collect();
        let shares = shares(Balance::TwoChoices, &from, 300);
        assert_eq!(shares.get("b2"), None, "{shares:?}");
        assert_eq!(shares.len(), 2);
    }

    #[test]
    fn source_hash_spreads_clients_and_moves_few_when_a_backend_goes() {
        let all = candidates(Balance::SourceHash, &[1, 1, 1, 1]);
        let mut less = candidates(Balance::SourceHash, &[1, 1, 1, 1]);
        less.list.remove(3);
        less.table = maglev(&less.list);
        let (mut moved, mut share) = (0, BTreeMap::<String, usize>::new());
        for n in 0..4000u32 {
            let client = IpAddr::V4(std::net::Ipv4Addr::from(0x0a00_0000 + n));
            let before = first(Balance::SourceHash, &all, client, n as usize);
            let after = first(Balance::SourceHash, &less, client, 0);
            moved += usize::from(before != "b3" && before != after);
            *share.entry(before).or_default() += 1;
        }
        assert!(share.values().all(|&n| (800..1200).contains(&n)), "{share:?}");
        assert!(moved < 250, "{moved} of 3000 clients moved although their backend stayed");
    }

    #[test]
    fn every_policy_offers_everyone_once() {
        for balance in
            [Balance::First, Balance::RoundRobin, Balance::LeastConnections, Balance::TwoChoices, Balance::SourceHash]
        {
            let from = candidates(balance, &[5, 1, 2, 0]);
            for turn in 0..20 {
                let mut names: Vec<_> = order(balance, &from, 0, CLIENT, turn).map(|c| &c.backend.name).collect();
                names.sort();
                assert_eq!(names, ["b0", "b1", "b2"], "{balance:?}: weight 0 takes none");
            }
        }
    }

    #[test]
    fn where_the_best_tier_is_empty_the_next_is_balanced_like_it() {
        for balance in [Balance::RoundRobin, Balance::SourceHash] {
            let mut from = candidates(balance, &[1, 1, 1]);
            from.list.iter_mut().for_each(|one| one.tier = 1);
            from.table = table(balance, &from.list);
            let mut seen = std::collections::BTreeSet::new();
            for n in 0..60u32 {
                let client = IpAddr::V4(std::net::Ipv4Addr::from(0x0a00_0000 + n));
                assert_eq!(order(balance, &from, 0, client, n as usize).count(), 0);
                seen.extend(order(balance, &from, 1, client, n as usize).next().map(|one| one.backend.name.clone()));
            }
            assert_eq!(seen.len(), 3, "{balance:?}");
        }
    }
}
