//! Logic shared by `TokenMiddleware` and `TokenLayer`: authorize a call, and handle 401 and 429.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, Method, StatusCode};

use super::partner::{Partner, PartnerUser};
use super::policy::{CallPolicy, ResolvedPolicy};
use crate::client::Hurdlr;
use crate::client::retry::{Attempts, FailureClass, RequestType};
use crate::client::transport::retry_after;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::manager::{SharedToken, TokenManager, UserHandle};
use crate::metrics;
use crate::wire::endpoint::Origin;
use crate::wire::user::UserId;

/// The user whom calls are made for.
#[derive(Clone, Debug)]
pub(crate) enum Principal {
    User(UserHandle),
    Partner(Box<PartnerUser>),
    /// The user of this manager whose handle is among the call's extensions.
    UserOfEachCall(TokenManager),
    /// The user whose id is among the call's extensions.
    PartnerOfEachCall(Box<Partner>),
}

/// Authorizes calls, and handles the answers that concern their authorization.
#[derive(Clone, Debug)]
pub(crate) struct Authorizer {
    principal: Principal,
    pub(super) policy: Arc<ResolvedPolicy>,
}

impl Authorizer {
    pub(crate) fn of_user(user: &UserHandle) -> Self {
        Self::with_tokens(Principal::User(user.clone()), user.hurdlr())
    }

    pub(crate) fn of_each_call(manager: &TokenManager) -> Self {
        Self::with_tokens(Principal::UserOfEachCall(manager.clone()), manager.hurdlr())
    }

    fn with_tokens(principal: Principal, hurdlr: &Hurdlr) -> Self {
        let policy = ResolvedPolicy::new(hurdlr.token_url(), hurdlr.clock().clone());
        let policy = ResolvedPolicy { rng: hurdlr.rng().clone(), ..policy };
        Self { principal, policy: Arc::new(policy) }
    }

    /// Authorizes calls that each name their user by an extension.
    pub(crate) fn of_partner(partner: &Partner) -> Self {
        Self::with_basic(Principal::PartnerOfEachCall(Box::new(partner.clone())), partner)
    }

    pub(crate) fn of_partner_user(user: &PartnerUser) -> Self {
        Self::with_basic(Principal::Partner(Box::new(user.clone())), &user.partner)
    }

    fn with_basic(principal: Principal, partner: &Partner) -> Self {
        let policy = ResolvedPolicy::new(&partner.home, partner.clock.clone());
        Self { principal, policy: Arc::new(policy) }
    }

    pub(crate) fn with_policy(self, policy: CallPolicy) -> Result<Self, Error> {
        let policy = Arc::new(self.policy.with(policy)?);
        Ok(Self { policy, ..self })
    }

    /// The call to authorize; `None` where the caller did that, or where it goes to an origin that
    /// gets no token.
    pub(crate) fn begin(
        &self,
        origin: Option<&Origin<'_>>,
        method: &Method,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Option<Call>, Error> {
        self.check_extensions(extensions)?;
        if !self.policy.admits(origin) || headers.contains_key(AUTHORIZATION) {
            return Ok(None);
        }
        let named = match &self.principal {
            Principal::UserOfEachCall(_) => {
                let user = extensions.get::<UserHandle>().cloned();
                Some(Principal::User(user.ok_or_else(|| missing_extension("UserHandle"))?))
            }
            Principal::PartnerOfEachCall(partner) => {
                let id = extensions.get::<UserId>().ok_or_else(|| missing_extension("UserId"))?;
                Some(Principal::Partner(Box::new(partner.user(id)?)))
            }
            Principal::User(_) | Principal::Partner(_) => None,
        };
        let waits = self.policy.repeats_every_method || method.is_idempotent();
        Ok(Some(Call { named, waits, began: self.policy.clock.now(), timeout: None }))
    }

    /// Fails for a call that names a user whom this client cannot serve, wherever the call goes to
    /// and whatever authorizes it: the app has mixed up two clients.
    fn check_extensions(&self, extensions: &Extensions) -> Result<(), Error> {
        use Principal::{Partner, PartnerOfEachCall, User, UserOfEachCall};
        let user = extensions.get::<UserHandle>();
        let id = extensions.get::<UserId>();
        let problem = match &self.principal {
            UserOfEachCall(manager) if user.is_some_and(|user| !manager.has_made(user)) => {
                "the call names a user of another TokenManager than the one that made this client"
            }
            User(own) if user.is_some_and(|user| !own.is_same(user)) => {
                "the call names another user than the one this client was made for"
            }
            User(own) if id.is_some_and(|id| id != own.id()) => {
                "the call names another UserId than that of the user this client was made for"
            }
            UserOfEachCall(_) if user.zip(id).is_some_and(|(user, id)| id != user.id()) => {
                "the call names two users: its UserId is not that of its UserHandle"
            }
            Partner(_) | PartnerOfEachCall(_) if user.is_some() => {
                "the call names a user by UserHandle: this client sends the app's own credentials, \
                 not a user's token"
            }
            Partner(own) if id.is_some_and(|id| !own.is(id)) => {
                "the call names another UserId than the one this client was made for"
            }
            _ => return Ok(()),
        };
        Err(Error::config(problem))
    }

    fn principal<'call>(&'call self, call: &'call Call) -> &'call Principal {
        call.named.as_ref().unwrap_or(&self.principal)
    }

    /// The rest of the call's timeout, if it has one.
    fn time_left(&self, call: &Call) -> Option<Duration> {
        let passed = || self.policy.clock.now().since(call.began);
        call.timeout.map(|timeout| timeout.saturating_sub(passed()))
    }

    async fn credential(&self, call: &Call) -> Result<Credential, Error> {
        let Principal::User(user) = self.principal(call) else { return Ok(Credential::Partner) };
        let token = match self.time_left(call) {
            // Boxed to keep the common path's future small.
            Some(left) => Box::pin(user.token_timeout(left)).await?,
            None => user.token().await?,
        };
        Ok(Credential::Token(token.into_shared()))
    }

    async fn send<E: Exchange>(
        &self,
        call: &Call,
        exchange: &mut E,
        credential: &Credential,
    ) -> Result<E::Answer, E::Error> {
        let left = self.time_left(call);
        exchange.send(left, |headers| self.authorize(call, credential, headers)).await
    }

    fn authorize(&self, call: &Call, credential: &Credential, headers: &mut HeaderMap) {
        match (credential, self.principal(call)) {
            (Credential::Token(token), _) => {
                headers.insert(AUTHORIZATION, token.authorization());
            }
            (Credential::Partner, Principal::Partner(user)) => user.authorize(headers),
            (Credential::Partner, _) => {}
        }
    }

    /// Makes the whole call.
    pub(crate) async fn make<E: Exchange>(
        &self,
        call: &Call,
        exchange: &mut E,
    ) -> Result<E::Answer, E::Error> {
        let credential = self.credential(call).await.map_err(E::failed)?;
        let answer = self.send(call, exchange, &credential).await?;
        match E::status(&answer) {
            // Boxed to keep the common path's future small.
            StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS => {
                Box::pin(self.finish(call, exchange, credential, answer)).await
            }
            _ => Ok(answer),
        }
    }

    /// Goes on from the first answer to the one that the caller gets.
    ///
    /// A refused token is replaced, and the call repeated with its successor, once. Where there is
    /// no successor, the call fails with the reason. So a 401 that the caller gets says that the
    /// user has a living token: the call could not be repeated, the refusal was not believed, or
    /// the successor was refused too.
    async fn finish<E: Exchange>(
        &self,
        call: &Call,
        exchange: &mut E,
        mut credential: Credential,
        mut answer: E::Answer,
    ) -> Result<E::Answer, E::Error> {
        let (clock, rng) = (&self.policy.clock, &self.policy.rng);
        // The request type is irrelevant here: `Throttled` is handled alike for all.
        let mut attempts =
            Attempts::new(&self.policy.retry, rng, RequestType::ClientCredentials, None);
        let mut is_renewed = false;
        loop {
            attempts.begin(clock.now().since(call.began));
            match E::status(&answer) {
                StatusCode::UNAUTHORIZED if exchange.is_of_api(&answer) => {
                    let (Credential::Token(token), Principal::User(user)) =
                        (&credential, self.principal(call))
                    else {
                        return Ok(answer); // there is nothing to renew
                    };
                    if is_renewed {
                        // A call never reports the token that it has just obtained.
                        return Ok(answer);
                    }
                    user.report_unauthorized(token);
                    let is_served_on =
                        user.try_token().is_some_and(|served| served.into_shared().is_same(token));
                    if is_served_on {
                        return Ok(answer);
                    }
                    if !exchange.can_repeat() {
                        // Waits for the successor all the same, to tell why there is none. Only a
                        // call whose own time is over gets its 401 without that.
                        return match self.credential(call).await {
                            Err(error) if error.kind() != ErrorKind::TimedOut => {
                                Err(E::failed(error))
                            }
                            _ => Ok(answer),
                        };
                    }
                    // Others can use its connection during the refresh.
                    drop(answer);
                    credential = self.credential(call).await.map_err(E::failed)?;
                    is_renewed = true;
                    metrics::call_healed();
                }
                StatusCode::TOO_MANY_REQUESTS if call.waits && exchange.can_repeat() => {
                    let now = clock.now();
                    let pause = retry_after(E::headers(&answer), now.wall());
                    let again =
                        attempts.next_delay(FailureClass::Throttled, pause, now.since(call.began));
                    let fits =
                        |pause: &Duration| self.time_left(call).is_none_or(|left| *pause < left);
                    let Some(pause) = again.filter(fits) else {
                        return Ok(answer);
                    };
                    // Others can use its connection meanwhile.
                    drop(answer);
                    metrics::call_waited();
                    clock.sleep(pause).await;
                    // The token may have been replaced by then.
                    credential = self.credential(call).await.map_err(E::failed)?;
                }
                _ => return Ok(answer),
            }
            answer = self.send(call, exchange, &credential).await?;
        }
    }
}

fn missing_extension(missing: &str) -> Error {
    Error::config(format!(
        "the call has no {missing} among its extensions: nobody knows whom it is made for"
    ))
}

/// One call, from its first attempt to the answer that its caller gets.
#[derive(Debug)]
pub(crate) struct Call {
    /// The user it is made for, where each call says so.
    named: Option<Principal>,
    /// Whether it may be repeated after a 429.
    waits: bool,
    began: Timestamp,
    /// The time that all of it may take, waits included, if the caller named one.
    pub(crate) timeout: Option<Duration>,
}

/// The authorization of one attempt.
#[derive(Debug)]
enum Credential {
    Token(SharedToken),
    Partner,
}

/// The exchanges of one call: each attempt is a request and its answer.
pub(crate) trait Exchange: Send {
    type Answer: Send;
    type Error: Send;

    /// Whether there is another copy of the request.
    fn can_repeat(&self) -> bool;

    /// Sends the request, with what authorizes it. `timeout` is what is left of the call's.
    fn send(
        &mut self,
        timeout: Option<Duration>,
        authorize: impl FnOnce(&mut HeaderMap) + Send,
    ) -> impl Future<Output = Result<Self::Answer, Self::Error>> + Send;

    fn status(answer: &Self::Answer) -> StatusCode;

    fn headers(answer: &Self::Answer) -> &HeaderMap;

    /// Whether the API answered, and not some other server on the way.
    fn is_of_api(&self, answer: &Self::Answer) -> bool;

    /// The error of a call that gets no answer for want of a token.
    fn failed(error: Error) -> Self::Error;
}
