//! The web login in a real browser, on the pages of `examples/web_login`.
//!
//! The site is at `localhost` and the provider at `127.0.0.1`, which are two sites to a browser.
//! The site's session is `SameSite=Strict`, so that every login goes by the bounce. Pictures of all
//! steps are in `target/screenshots`.

#![allow(clippy::unwrap_used, reason = "a failed expectation is the failure of the test")]
#![allow(clippy::expect_used, reason = "a failed expectation is the failure of the test")]

mod browser;
#[path = "../../examples/web_login/pages.rs"]
mod pages;
#[allow(dead_code, reason = "the real provider is for the example itself")]
#[path = "../../examples/web_login/site.rs"]
mod site;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Html;
use axum::routing::get;
use axum::serve::Listener;
use browser::{Browser, Look};
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{FakeHurdlr, Fault, ManualClock};
use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
use site::{Provider, Site};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;
use url::Url;

/// The site and its provider, and what browsers asked of the site's callback.
#[derive(Clone)]
struct World {
    fake: FakeHurdlr,
    clock: ManualClock,
    manager: TokenManager,
    home: String,
    callbacks: Arc<Mutex<Vec<Callback>>>,
    prefetches: Arc<AtomicUsize>,
    _server: Arc<Server>,
}

#[derive(Clone, Debug)]
struct Callback {
    url: String,
    cookies: String,
    sent_by: String,
}

struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl World {
    async fn new() -> Self {
        Self::over("http").await
    }

    async fn over(scheme: &str) -> Self {
        Self::with(scheme, "Strict", FakeHurdlr::authorize_url).await
    }

    /// Most sites have a session under `SameSite=Lax`, which goes along with links from elsewhere.
    async fn consenting(user: &str) -> Self {
        Self::with("http", "Lax", |fake| fake.consented_url(user)).await
    }

    async fn with(
        scheme: &str,
        same_site: &'static str,
        authorize_url: impl Fn(&FakeHurdlr) -> Url,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let home = format!("{scheme}://localhost:{}/", listener.local_addr().unwrap().port());
        let (fake, clock) = (FakeHurdlr::start().await.unwrap(), ManualClock::new());
        let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
            .environment(fake.base_url())
            .authorize_url(authorize_url(&fake))
            .redirect_uri(format!("{home}hurdlr/callback"))
            .clock(clock.clone())
            .build()
            .unwrap();
        let manager = TokenManager::builder(hurdlr, MemoryStore::with_clock(clock.clone()));
        let manager = manager.build().unwrap();

        let provider = Provider::Embedded { fake: fake.clone(), clock: clock.clone() };
        let site = Site::new(manager.clone(), provider, &vec![1; 64].into(), vec![2; 64].into());
        let site = site.unwrap();
        let callbacks = Arc::<Mutex<Vec<Callback>>>::default();
        let prefetches = Arc::<AtomicUsize>::default();
        let (heard, early) = (Arc::clone(&callbacks), Arc::clone(&prefetches));
        let router = site.router();
        let router = router.route("/prefetching", get(async || Html(PREFETCHING)));
        let router = router.layer(from_fn(move |request: Request, next: Next| {
            let (heard, early) = (Arc::clone(&heard), Arc::clone(&early));
            async move {
                let is_early = request.headers().contains_key("sec-purpose");
                if request.uri().path() == "/hurdlr/callback" {
                    heard.lock().unwrap().push(Callback::of(&request));
                }
                let mut answer = next.run(request).await;
                early.fetch_add(usize::from(is_early), Ordering::SeqCst);
                if let Some(cookie) = answer.headers_mut().get_mut("set-cookie") {
                    let text = cookie.to_str().unwrap().replace("Strict", same_site);
                    *cookie = text.try_into().unwrap();
                }
                answer
            }
        }));
        let server = if scheme == "https" {
            tokio::spawn(serve(Tls::new(listener), router))
        } else {
            tokio::spawn(serve(listener, router))
        };
        Self {
            fake,
            clock,
            manager,
            home,
            callbacks,
            prefetches,
            _server: Arc::new(Server(server)),
        }
    }

    fn exchanges(&self) -> u64 {
        self.fake.count().grant("authorization_code")
    }

    fn prefetches(&self) -> usize {
        self.prefetches.load(Ordering::SeqCst)
    }

    fn callbacks(&self) -> Vec<Callback> {
        self.callbacks.lock().unwrap().clone()
    }

    fn is_connected(&self, user: &str) -> bool {
        self.manager.user(&UserId::new(user).unwrap()).try_token().is_some()
    }

    async fn signs_in(&self, it: &Browser, user: &str) {
        it.goes_to(&self.home).await;
        it.sees("Who are you?", "01-sign-in").await;
        it.clicks(&format!("Sign in as {user}")).await;
        it.sees("Hurdlr is not connected", "02-not-connected").await;
    }

    async fn disconnects(&self, it: &Browser) {
        it.clicks("Disconnect").await;
        it.sees("Disconnect Hurdlr?", "10-asked-again").await;
        it.clicks("Yes, disconnect").await;
        it.sees("Hurdlr is not connected", "11-disconnected").await;
    }

    /// As far as the consent page.
    async fn begins(&self, it: &Browser) {
        it.clicks("Connect Hurdlr").await;
        it.sees(CONSENT, "03-consent").await;
    }
}

const PREFETCHING: &str = "<!doctype html><html lang=en><title>Prefetching</title>\
    <meta name=viewport content='width=device-width'>\
    <link rel=prefetch href=/hurdlr/connect><main><h1>Prefetching</h1>\
    <a href=/hurdlr/connect style='display:block;line-height:3rem'>Connect Hurdlr</a></main>";

const EXPENSES: &str = "Your expenses";

const CONSENT: &str = "fake-client asks for access";

impl Callback {
    fn of(request: &Request) -> Self {
        let header = |name: &str| {
            let values = request.headers().get_all(name).iter();
            values.map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join("; ")
        };
        Self {
            url: request.uri().to_string(),
            cookies: header("cookie"),
            sent_by: header("sec-fetch-site"),
        }
    }

    fn has_cookie(&self, prefix: &str) -> bool {
        self.cookies.split("; ").any(|cookie| cookie.starts_with(prefix))
    }
}

async fn serve<L: Listener<Addr = SocketAddr>>(listener: L, router: Router) {
    axum::serve(listener, router).await.unwrap();
}

/// TLS by a certificate that nobody signed.
struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Tls {
    fn new(listener: TcpListener) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            // A browser that tries a connection and leaves it is nothing to wait for.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// From the first page to the last, with all that the site offers in between.
async fn goes_the_whole_way(world: World, it: Browser, user: &'static str) {
    world.signs_in(&it, user).await;
    world.begins(&it).await;
    it.clicks("Allow").await;
    it.sees(EXPENSES, "04-connected").await;
    assert_eq!(it.client().current_url().await.unwrap().as_str(), world.home);
    let text = it.text().await;
    assert!(text.contains("Office supplies") && text.contains("Total"), "{text}");
    assert!(text.contains("Your users do not see this box."), "{text}");
    assert!(it.fact("Token expires").await.starts_with("in 90 days"));
    assert_eq!(it.fact("Refreshes so far").await, "0");
    assert!(world.is_connected(user));

    let refreshes = world.fake.count().grant("refresh_token");
    it.clicks("Let the token expire").await;
    it.sees(EXPENSES, "05-renewed").await;
    assert!(it.text().await.contains("The token was refreshed"));
    assert_eq!(it.fact("Refreshes so far").await, "1");
    assert_eq!(world.fake.count().grant("refresh_token"), refreshes + 1);

    it.goes_to(&format!("{}nowhere", world.home)).await;
    it.sees("There is no such page", "06-not-found").await;
    it.clicks("Back to the site").await;
    it.sees(EXPENSES, "07-home").await;
    assert!(!it.text().await.contains("refreshed"), "a notice is shown once");

    it.clicks("Disconnect").await;
    it.sees("Disconnect Hurdlr?", "08-asked").await;
    it.clicks("No, stay connected").await;
    it.sees(EXPENSES, "09-still-connected").await;
    assert!(world.is_connected(user));
    world.disconnects(&it).await;
    assert!(it.text().await.contains("Your connection was removed"));
    assert!(!world.is_connected(user));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_connect_call_renew_and_disconnect() {
    let world = World::new().await;
    for (name, look, user) in [
        ("desktop", Look::Desktop, "Ann"),
        ("dark-phone", Look::DarkPhone, "Bob"),
        ("dark-desktop", Look::DarkDesktop, "Ann"),
        ("phone", Look::Phone, "Bob"),
    ] {
        let world = world.clone();
        Browser::used_by(name, look, |it| goes_the_whole_way(world, it, user)).await;
    }
    assert_eq!(world.exchanges(), 4);
    // The provider's redirect came without the session, and one bounce brought it back.
    let callbacks = world.callbacks();
    let told: Vec<_> =
        callbacks.iter().map(|it| (&*it.sent_by, it.has_cookie("session="))).collect();
    assert_eq!(told, [("cross-site", false), ("same-origin", true)].repeat(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_users_disconnect_leaves_the_other_connected() {
    let world = World::new().await;
    Browser::used_by("others", Look::Phone, |it| async move {
        for user in ["Ann", "Bob"] {
            world.signs_in(&it, user).await;
            world.begins(&it).await;
            it.clicks("Allow").await;
            it.sees(EXPENSES, "04-connected").await;
            it.clicks("Sign out").await;
            it.sees("Who are you?", "05-signed-out").await;
        }
        it.clicks("Sign in as Ann").await;
        it.sees(EXPENSES, "06-still-connected").await;
        world.disconnects(&it).await;
        assert!(!world.is_connected("Ann") && world.is_connected("Bob"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn person_who_denies_can_try_again() {
    let world = World::new().await;
    for (name, look) in [("deny-phone", Look::Phone), ("deny-dark", Look::DarkPhone)] {
        let world = world.clone();
        Browser::used_by(name, look, |it| async move {
            world.signs_in(&it, "Ann").await;
            world.begins(&it).await;
            it.clicks("Deny").await;
            it.sees("Hurdlr was not connected", "04-denied").await;
            assert!(it.text().await.contains("You did not allow access."));
            let exchanges = world.exchanges();
            it.clicks("Try again").await;
            it.sees(CONSENT, "05-consent").await;
            it.clicks("Allow").await;
            it.sees(EXPENSES, "06-connected").await;
            assert_eq!(world.exchanges(), exchanges + 1);
            world.disconnects(&it).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_shows_where_one_is() {
    let world = World::new().await;
    Browser::used_by("back", Look::Phone, |it| async move {
        world.signs_in(&it, "Ann").await;
        world.begins(&it).await;
        it.clicks("Allow").await;
        it.sees(EXPENSES, "04-connected").await;

        it.client().back().await.unwrap();
        it.sees(CONSENT, "05-back-at-consent").await;
        it.clicks("Allow").await; // which gives a second code for the state that is used up
        it.sees("You are connected to Hurdlr", "06-allowed-again").await;

        let callback = world.callbacks()[0].url.clone();
        it.goes_to(&format!("{}{}", world.home, &callback[1..])).await; // as from the history
        it.sees("You are connected to Hurdlr", "07-callback-again").await;
        it.client().refresh().await.unwrap();
        it.sees("You are connected to Hurdlr", "08-reloaded").await;
        it.clicks("Continue").await;
        it.sees(EXPENSES, "09-home").await;
        assert_eq!(world.exchanges(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_log_in_at_once() {
    let world = World::new().await;
    Browser::used_by("tabs", Look::Desktop, |it| async move {
        world.signs_in(&it, "Ann").await;
        let first = it.client().window().await.unwrap();
        world.begins(&it).await;
        let second = it.client().new_window(true).await.unwrap().handle;
        it.client().switch_to_window(second.clone()).await.unwrap();
        it.goes_to(&world.home).await;
        it.sees("Hurdlr is not connected", "02-second-tab").await;
        world.begins(&it).await;
        it.client().switch_to_window(first).await.unwrap();
        it.clicks("Allow").await;
        it.sees(EXPENSES, "04-first-tab").await;
        it.client().switch_to_window(second).await.unwrap();
        it.clicks("Allow").await;
        it.sees(EXPENSES, "05-second-tab").await;
        assert_eq!(world.exchanges(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn login_left_11_minutes_must_begin_again() {
    let world = World::new().await;
    Browser::used_by("late", Look::DarkPhone, |it| async move {
        world.signs_in(&it, "Ann").await;
        world.begins(&it).await;
        world.clock.advance(Duration::from_secs(11 * 60));
        it.clicks("Allow").await;
        it.sees("This login is no longer valid", "04-too-late").await;
        assert_eq!(world.exchanges(), 0);
        it.clicks("Try again").await;
        it.sees(CONSENT, "05-consent").await;
        it.clicks("Allow").await;
        it.sees(EXPENSES, "06-connected").await;
        assert_eq!(world.exchanges(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_way_can_be_gone_by_keyboard() {
    let world = World::new().await;
    Browser::used_by("keyboard", Look::Desktop, |it| async move {
        it.goes_to(&world.home).await;
        it.sees("Who are you?", "01-sign-in").await;
        for (name, next) in [
            ("Sign in as Bob", "Hurdlr is not connected"),
            ("Connect Hurdlr", CONSENT),
            ("Deny", "Hurdlr was not connected"),
            ("Try again", CONSENT),
            ("Allow", EXPENSES),
            ("Let the token expire", EXPENSES),
            ("Disconnect", "Disconnect Hurdlr?"),
            ("Yes, disconnect", "Hurdlr is not connected"),
        ] {
            it.reaches_by_keyboard(name).await;
            it.sees(next, &format!("after {name}")).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_sites_page_disconnects_nobody() {
    let world = World::new().await;
    Browser::used_by("cross-site", Look::Phone, |it| async move {
        world.signs_in(&it, "Ann").await;
        world.begins(&it).await;
        it.clicks("Allow").await;
        it.sees(EXPENSES, "04-connected").await;
        let action = format!("{}hurdlr/disconnect", world.home);
        it.goes_to(&format!(
            "data:text/html,<main><form method=post action={action}><button>Win</button></form></main>"
        ))
        .await;
        it.clicks("Win").await;
        it.sees("Nothing was changed", "05-refused").await;
        assert!(world.is_connected("Ann"));
    })
    .await;
}

/// The victim's browser is logged in to the provider as the attacker, who has consented before.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_page_begins_no_login() {
    let world = World::consenting("mallory").await;
    Browser::used_by("foreign", Look::Phone, |it| async move {
        world.signs_in(&it, "Ann").await;
        let connect = format!("{}hurdlr/connect", world.home);
        let attacks = [
            format!("<script>location='{connect}'</script>"),
            format!("<meta http-equiv=refresh content='0;url={connect}'>"),
            format!("<form method=post action={connect}></form><script>document.forms[0].submit()</script>"),
            format!("<script>fetch('{connect}',{{mode:'no-cors',credentials:'include'}}).finally(()=>location='{connect}')</script>"),
        ];
        for (number, attack) in attacks.iter().enumerate() {
            it.goes_to(&format!("data:text/html,{attack}")).await;
            it.sees("Connect Hurdlr?", &format!("03-asked-{number}")).await;
            assert_eq!(world.exchanges(), 0, "{attack}");
        }
        assert!(!world.is_connected("Ann"));
        it.reaches_by_keyboard("Connect Hurdlr").await;
        it.sees(EXPENSES, "04-confirmed").await;
        assert_eq!(world.exchanges(), 1);

        it.goes_to(&format!("data:text/html,{}", attacks[0])).await;
        it.sees("Connect Hurdlr?", "05-asked-again").await;
        it.clicks("Back to the site").await;
        it.sees(EXPENSES, "06-as-it-was").await;
        assert_eq!(world.exchanges(), 1);
    })
    .await;
}

/// A page of the site that has its browser prefetch the link.
#[tokio::test(flavor = "multi_thread")]
async fn prefetched_link_begins_no_login() {
    let world = World::consenting("ann").await;
    Browser::used_by("prefetch", Look::Desktop, |it| async move {
        world.signs_in(&it, "Ann").await;
        let page = format!("{}prefetching", world.home);
        it.goes_to(&page).await;
        it.sees("Prefetching", "03-prefetching").await;
        let prefetched = async {
            while world.prefetches() == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), prefetched).await.expect("the browser prefetches");
        assert_eq!(world.exchanges(), 0);
        it.clicks("Connect Hurdlr").await;
        it.sees(EXPENSES, "04-connected").await;
        assert_eq!(world.exchanges(), 1);
    })
    .await;
}

/// Nor is the visitor signed in to the site as somebody else, whose connection they would make.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_page_signs_nobody_in() {
    let world = World::new().await;
    Browser::used_by("foreign-form", Look::Phone, |it| async move {
        let action = format!("{}sign-in", world.home);
        it.goes_to(&format!(
            "data:text/html,<form method=post action={action}>\
             <button name=user value=Bob>Win</button></form>"
        ))
        .await;
        it.clicks("Win").await;
        it.sees("Nothing was changed", "01-refused").await;
        it.clicks("Back to the site").await;
        it.sees("Who are you?", "02-nobody").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn https_binds_the_cookie_to_its_host() {
    let world = World::over("https").await;
    let there = world.clone();
    Browser::used_by("https", Look::Desktop, |it| goes_the_whole_way(there, it, "Ann")).await;
    let callbacks = world.callbacks();
    assert_eq!(callbacks.len(), 2);
    assert!(callbacks.iter().all(|it| it.has_cookie("__Host-hurdlr_login_")), "{callbacks:?}");
    assert_eq!(world.exchanges(), 1);
}

/// The token cannot be refreshed, and then a call of the API breaks off. Nobody has to log in
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn unreachable_provider_is_a_page() {
    let world = World::new().await;
    for (name, look) in [("unreachable", Look::Phone), ("unreachable-dark", Look::DarkDesktop)] {
        let world = world.clone();
        Browser::used_by(name, look, |it| async move {
            world.signs_in(&it, "Ann").await;
            world.begins(&it).await;
            it.clicks("Allow").await;
            it.sees(EXPENSES, "04-connected").await;
            world.fake.api().fault_plan(|_| Some(Fault::DropBefore));
            it.goes_to(&world.home).await;
            it.sees("Hurdlr cannot be reached", "05-call-broke-off").await;
            world.fake.api().clear_faults();
            it.clicks("Look again").await;
            it.sees(EXPENSES, "06-back").await;

            world.fake.fault_plan(|_| Some(Fault::unavailable_for(Duration::from_secs(90))));
            it.clicks("Let the token expire").await;
            it.sees("Hurdlr cannot be reached", "07-no-token").await;
            world.fake.clear_faults();
            world.clock.advance(Duration::from_secs(100));
            it.clicks("Look again").await;
            it.sees(EXPENSES, "08-refreshed").await;
            assert!(it.text().await.contains("The token was refreshed"));
            world.disconnects(&it).await;
        })
        .await;
    }
    assert_eq!(world.exchanges(), 2);
}
