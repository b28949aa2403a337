//! The same tokens in the hands of a manager.

use std::collections::BTreeMap;

use hurdlr_oauth2::manager::{TokenGuard, UserHandle};
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{Fault, Gate};
use hurdlr_oauth2::{Hurdlr, Token, TokenManager, UserId};
use secrecy::ExposeSecret;
use tokio::task::JoinSet;

use crate::narrator::Narrator;
use crate::{DAY, Outcome, World};

const CALLERS: usize = 1_000;

/// Takes a login's token through the three windows of its life.
pub(crate) async fn through_its_life(
    token: Token,
    hurdlr: &Hurdlr,
    world: &World,
    narrator: &Narrator,
) -> Outcome {
    println!(
        "
  A manager takes over the token that ann's login has become. From now on the app
  only reads: the manager refreshes in time, and saves what comes."
    );
    let store = MemoryStore::with_clock(world.clock.clone());
    let manager = TokenManager::builder(hurdlr.clone(), store).build()?;
    let ann = UserId::new("ann")?;
    manager.adopt(&ann, token).await?;
    let ann = manager.user(&ann);
    world.fake.clear_requests();

    println!("\n  FRESH: on the first day {CALLERS} callers ask for her token.");
    show(&ask(&ann, narrator).await?);
    println!("  Nothing was sent.");

    println!("\n  DUE: 80 days later, with 10 days left, {CALLERS} callers ask.");
    // The provider takes its time: it answers when this gate is opened.
    let gate = Gate::closed();
    world.fake.fault_next(Fault::Hold(gate.clone()));
    let mut changes = ann.subscribe();
    world.advance(80 * DAY);
    let answers = ask(&ann, narrator).await?;
    world.fake.arrived(1).await;
    show(&answers);
    println!("  They did not wait: one refresh runs in the background, and has no answer yet.");

    gate.open();
    changes.next().await;
    println!("\n  {CALLERS} more callers ask.");
    show(&ask(&ann, narrator).await?);

    println!("\n  EXPIRED: nobody asks for 90 days, then {CALLERS} callers do.");
    world.advance(90 * DAY);
    let answers = ask(&ann, narrator).await?;
    show(&answers);
    println!("  They all waited for the same answer.");

    println!("\n  Callers: {}. Requests sent: {}.", 4 * CALLERS, world.fake.count().total());
    finish(&manager).await
}

/// Reads the token of a user for whom it is granted, as soon as somebody reads it.
pub(crate) async fn granted_once(user: &UserId, hurdlr: &Hurdlr, narrator: &Narrator) -> Outcome {
    let manager = TokenManager::builder(hurdlr.clone(), MemoryStore::new()).build()?;
    let user = manager.enterprise_user(user);

    println!(
        "\n  {CALLERS} callers ask for the user's token, which the manager does not have yet."
    );
    show(&ask(&user, narrator).await?);
    println!("  They all waited for the same answer.");

    println!("\n  {CALLERS} more callers ask.");
    show(&ask(&user, narrator).await?);
    println!("  Nothing was sent.");
    finish(&manager).await
}

/// What comes last in a program: refreshes under way are waited for, and saved.
async fn finish(manager: &TokenManager) -> Outcome {
    match manager.shutdown().await.len() {
        0 => Ok(()),
        lost => Err(format!("{lost} tokens could not be saved").into()),
    }
}

/// Has many callers read the token at the same time. Returns how many got which.
async fn ask(user: &UserHandle, narrator: &Narrator) -> Outcome<BTreeMap<String, usize>> {
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let user = user.clone();
        callers.spawn(async move { user.token().await.map(TokenGuard::into_shared) });
    }
    let mut answers = BTreeMap::new();
    while let Some(answer) = callers.join_next().await {
        let token = answer??;
        let name = narrator.shown("access_token", token.access_token().expose_secret());
        *answers.entry(name).or_default() += 1;
    }
    Ok(answers)
}

fn show(answers: &BTreeMap<String, usize>) {
    for (token, callers) in answers {
        println!("\n  {callers} got {token}.");
    }
}
