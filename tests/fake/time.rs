//! Clocks, delays, and gates that hold a request.

use std::time::Duration;

use hurdlr_oauth2::testing::{FakeHurdlr, Fault, Gate, Outcome};

use super::{grant, seconds, send_by_socket, socket_client};

#[tokio::test(start_paused = true)]
async fn paused_clock_drives_the_providers_in_memory() {
    let fake = FakeHurdlr::builder().token_life(seconds(60)).in_memory();
    let start = tokio::time::Instant::now();
    let (token, now) = (grant(&fake, "ann").await.get("access_token"), fake.now());
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(fake.now(), now);
    tokio::time::advance(seconds(59)).await;
    assert!(fake.is_alive(&token));
    assert_eq!(fake.now(), now + seconds(59));
    tokio::time::advance(seconds(1)).await;
    assert!(!fake.is_alive(&token));
}

#[tokio::test(start_paused = true)]
async fn delays_follow_the_paused_clock() {
    let fake = FakeHurdlr::in_memory();
    let start = tokio::time::Instant::now();
    fake.fault_next(Fault::Delay(seconds(40)));
    let late = grant(&fake, "ann").await.json()["created_at"].as_u64().unwrap();
    assert_eq!(start.elapsed(), seconds(40));
    fake.fault_next(Fault::DelayAfter(seconds(40)));
    let early = grant(&fake, "ann").await.json()["created_at"].as_u64().unwrap();
    assert_eq!(start.elapsed(), seconds(80));
    assert_eq!(late, early, "one waited before it acted, the other after");
}

#[tokio::test(start_paused = true)]
async fn dripping_answer_takes_time_in_memory() {
    let fake = FakeHurdlr::in_memory();
    let start = tokio::time::Instant::now();
    fake.fault_next(Fault::dripping(seconds(1)));
    let answer = grant(&fake, "ann").await;
    assert_eq!(start.elapsed(), seconds(answer.body.len() as u64));
    assert!(answer.json()["access_token"].is_string());
}

#[tokio::test(start_paused = true)]
async fn departed_client_cancels_delay_not_deed() {
    let fake = FakeHurdlr::in_memory();
    for (fault, alive) in [(Fault::Delay(seconds(9)), 0), (Fault::DelayAfter(seconds(9)), 1)] {
        fake.clear_requests();
        fake.fault_next(fault);
        assert!(tokio::time::timeout(seconds(1), grant(&fake, "ann")).await.is_err());
        tokio::time::advance(seconds(20)).await;
        assert_eq!(fake.tokens_alive("ann"), alive);
        let outcome = (alive == 1).then_some(Outcome::Issued);
        assert_eq!(fake.requests()[0].outcome(), outcome);
    }
}

#[tokio::test]
async fn gate_holds_requests_until_opened() {
    let fake = FakeHurdlr::start().await.unwrap();
    let before = Gate::closed();
    let after = Gate::closed();
    fake.fault_next(Fault::Hold(before.clone()));
    let task = tokio::spawn({
        let (fake, client) = (fake.clone(), socket_client());
        async move { send_by_socket(&client, &fake, "ann").await.unwrap().status() }
    });
    fake.arrived(1).await;
    assert_eq!((fake.requests()[0].outcome(), fake.tokens_alive("ann")), (None, 0));
    before.open();
    assert_eq!(task.await.unwrap(), 200);

    fake.fault_next(Fault::HoldAfter(after.clone()));
    let (answer, ()) = tokio::join!(grant(&fake, "ann"), async {
        fake.arrived(2).await;
        assert_eq!(fake.tokens_alive("ann"), 2);
        after.open();
    });
    assert_eq!(answer.status, 200);
}
