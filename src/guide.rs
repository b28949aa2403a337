//! The pages of `docs/`: how to run this crate, and why it behaves as it does.

// Each page is one file, for code hosts and for docs.rs. It names its links and pictures, and
// defines the names at its end as files beside it. Markdown takes the first definition of a name,
// so those that come before a page here lead to modules of this one, and to the pictures' data.

macro_rules! links {
    () => {
        "[calls]: crate::guide::calls
[databases]: crate::guide::databases
[design]: crate::guide::design
[encryption]: crate::guide::encryption
[failures]: crate::guide::failures
[hardening]: crate::guide::hardening
[login-attacks]: crate::guide::login_attacks
[many-processes]: crate::guide::many_processes
[migration]: crate::guide::migration
[operations]: crate::guide::operations
[peers]: crate::guide::peers
[proof]: crate::guide::proof
[retries]: crate::guide::retries
[scale]: crate::guide::scale
[settings]: crate::guide::settings
[stores]: crate::guide::stores
[testing]: crate::guide::testing
[web-login-elsewhere]: crate::guide::web_login_elsewhere
"
    };
}

macro_rules! page {
    ($name:ident, $file:literal) => {
        #[doc = links!()]
        #[doc = include_str!("../docs/pictures.md")]
        #[doc = ""]
        #[doc = include_str!(concat!("../docs/", $file))]
        pub mod $name {}
    };
}

page!(failures, "failures.md");
page!(retries, "retries.md");
page!(settings, "settings.md");
page!(stores, "stores.md");
page!(databases, "databases.md");
page!(many_processes, "many-processes.md");
page!(operations, "operations.md");
page!(hardening, "hardening.md");
page!(scale, "scale.md");
page!(calls, "calls.md");
page!(login_attacks, "login-attacks.md");
page!(web_login_elsewhere, "web-login-elsewhere.md");
page!(testing, "testing.md");
page!(peers, "peers.md");
page!(migration, "migration.md");
page!(design, "design.md");
page!(proof, "proof.md");

/// Encryption of stored tokens: see [`store::Sealed`](crate::store::Sealed).
pub mod encryption {}
