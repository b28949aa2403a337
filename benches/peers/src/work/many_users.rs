//! Many users in memory: the memory of each, and reads by id.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::coop::unconstrained;

use crate::endpoint::{Endpoint, HOUR};
use crate::peer::{Peer, Users};
use crate::peers::floor;
use crate::report::{OURS, Report, Rounds, number};
use crate::{Outcome, Size, each_peer};

/// Reads these users, by their number, and tells nanoseconds per read.
type Read = Arc<dyn Fn(&[usize], u32) -> Outcome<f64> + Send + Sync>;

struct Measured {
    name: &'static str,
    users: usize,
    bytes: f64,
    read: Read,
}

pub(crate) async fn measure(endpoint: &Endpoint, size: Size, report: &mut Report) -> Outcome {
    // All stay in memory to the end, so that none gets the memory that another gave back.
    let mut all = each_peer!(P => many::<P>(endpoint, size.users.min(P::USERS)).await?);
    let map = Arc::new(floor::Map::new(size.users)?);
    let look_up: Read = Arc::new(move |users, reads| {
        let ids = users.iter().map(|n| floor::Map::id(*n)).collect::<Outcome<Vec<_>>>()?;
        let map = Arc::clone(&map);
        on_a_runtime(async move { Ok(map.look_up(&ids, reads).await) }, reads)
    });
    all.push(Measured { name: floor::NAME, users: size.users, bytes: 0.0, read: look_up });

    let [mut hot, mut random] = [(); 2].map(|()| Rounds::default());
    for round in 0..size.read_rounds {
        for n in 0..all.len() {
            let peer = &all[(n + round) % all.len()];
            // Where a user is in a map makes a difference, so it is another one each time.
            let one = peer.users * round / size.read_rounds;
            let some: Vec<usize> =
                (0..10_000.min(peer.users)).map(|_| fastrand::usize(..peer.users)).collect();
            for (rounds, users) in [(&mut hot, vec![one]), (&mut random, some)] {
                let read = Arc::clone(&peer.read);
                let time = tokio::task::spawn_blocking(move || read(&users, size.reads / 2));
                rounds.add(peer.name, time.await??);
            }
        }
    }
    for peer in all.iter().filter(|peer| peer.name != floor::NAME) {
        report.figure("bytes_per_user", peer.name, peer.bytes, "bytes");
        report.figure("users_in_memory", peer.name, number(peer.users), "users");
    }
    hot.figures(report, "hot_read_by_id", "ns");
    random.figures(report, "random_read_by_id", "ns");
    let ours = all.iter().find(|peer| peer.name == OURS).map_or(f64::NAN, |peer| peer.bytes);
    report.goal("f_bytes_per_user", ours, 650.0);
    report.goal("f_hot_read_vs_map", hot.ratio(OURS, floor::NAME), 1.5);
    Ok(())
}

async fn many<P: Peer>(endpoint: &Endpoint, users: usize) -> Outcome<Measured> {
    let site = endpoint.account(HOUR).await?.site;
    let before = resident_bytes()?;
    let map = Arc::new(P::many(&site, users).await?);
    let bytes = (resident_bytes()? - before) / number(users);
    let read: Read = Arc::new(move |users, reads| {
        let (map, ids) = (Arc::clone(&map), users.iter().map(|n| P::Users::id(*n)));
        let ids: Vec<_> = ids.collect();
        on_a_runtime(async move { map.read(&ids, reads).await }, reads)
    });
    Ok(Measured { name: P::NAME, users, bytes, read })
}

/// Nanoseconds per read.
fn on_a_runtime(
    reading: impl Future<Output = Outcome<Duration>> + Send + 'static,
    reads: u32,
) -> Outcome<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let time = runtime.block_on(async { tokio::spawn(unconstrained(reading)).await })??;
    Ok(time.as_secs_f64() * 1e9 / f64::from(reads))
}

/// The memory that this process holds.
fn resident_bytes() -> Outcome<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")).ok_or("no VmRSS")?;
    Ok(kibibytes.trim().parse::<f64>()? * 1024.0)
}
