//! The stores on real infrastructure, on its bad days: poolers, TLS, a primary with a standby
//! behind a load balancer, a network that fails, and servers at their limits.
//!
//! All servers are real ones from the system's packages. They run on loopback and in temporary
//! folders, as an unprivileged user, and end with the test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what fails unexpectedly is the test's failure"
)]
#![allow(clippy::print_stdout, reason = "figures, and what an operator would have read")]

mod balancer;
mod cluster;
mod connections;
mod errors;
mod failover;
mod limits;
mod load;
mod mounts;
mod network;
mod page;
mod pooler;
#[path = "../support/postgres.rs"]
mod postgres;
mod proxy;
mod site;
mod timed;
#[path = "../support/wire.rs"]
mod wire;

use std::pin::Pin;

use libtest_mimic::{Arguments, Trial};

type Test = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

macro_rules! tests {
    ($($module:ident::{$($name:ident,)*})*) => {
        fn tests() -> Vec<(String, Test)> {
            vec![
                $($((
                    concat!(stringify!($module), "::", stringify!($name)).to_owned(),
                    Box::new(|| Box::pin($module::$name())),
                ),)*)*
            ]
        }
    };
}

// The longest ones first.
tests! {
    failover::{
        sync_crash_loses_no_login,
        async_crash_tells_what_was_lost,
        planned_switchover_loses_no_login,
        frozen_standby_loses_no_login,
        restarted_server_costs_no_login,
        balancer_without_server_is_named,
        standby_is_refused_by_name,
    }
    network::{
        blackhole_costs_no_login_or_connection,
        withheld_answers_lose_nothing,
        cut_connections_lose_nothing,
        throttled_network_loses_nothing,
        slow_network_loses_nothing,
    }
    limits::{
        locked_table_piles_up_no_backends,
        full_disk_is_named,
        serializable_isolation_fails_nothing,
        too_many_connections_are_named,
    }
    pooler::{
        session_mode_serves_a_managed_refresh,
        transaction_mode_works_or_is_refused,
        statement_mode_works_or_is_refused,
        missing_startup_setting_is_named,
        restarted_server_behind_pooler_costs_nothing,
    }
    page::{
        page_leads_through_a_failover,
        page_backs_a_file_up,
        every_block_is_followed,
    }
    mounts::{
        fuse_is_refused,
    }
    connections::{
        right_ca_and_name_are_accepted,
        certificate_faults_have_distinct_texts,
        require_with_root_verifies_the_ca,
        right_password_is_accepted,
        wrong_password_is_named,
        unknown_host_is_named,
        unix_socket_serves_a_managed_refresh,
        minimal_rights_are_enough,
        missing_rights_are_named,
    }
}

fn main() {
    let mut arguments = Arguments::from_args();
    // They wait, most of the time.
    arguments.test_threads.get_or_insert(8);
    let trials = tests().into_iter().chain(errors::tests()).map(|(name, test)| {
        Trial::test(name, move || {
            // What blocks in a test, such as starting a server, stops none of its load.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(test());
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    cluster::stop_shared();
    conclusion.exit();
}
