//! Users and passwords of basic authentication.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::HeaderValue;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

/// What a client says who it is.
#[derive(Clone, Debug)]
pub struct Login {
    user: String,
    password: String,
}

impl Login {
    /// From the header `Authorization`.
    #[must_use]
    pub fn read(header: &HeaderValue) -> Option<Self> {
        let (scheme, text) = header.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let text = String::from_utf8(BASE64_STANDARD.decode(text.trim()).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Self {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }
}

/// Wrong logins that are remembered, so that the same one is not hashed again and again.
const REMEMBERED: usize = 100;

/// The users with the bcrypt hashes of their passwords.
#[derive(Debug, Default)]
pub struct Users {
    hashes: BTreeMap<String, String>,
    known: Mutex<Known>,
    /// One password is hashed at a time: many at once would take the processors from everything else.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Results, by a digest of the login. Right ones are apart, so that guesses do not crowd them out.
#[derive(Debug, Default)]
struct Known {
    right: HashSet<[u8; 32]>,
    wrong: HashSet<[u8; 32]>,
}

impl Users {
    /// Of a configuration whose hashes have been checked.
    #[must_use]
    pub fn new(hashes: BTreeMap<String, String>) -> Self {
        Self {
            hashes,
            ..Self::default()
        }
    }

    /// Whether nobody is asked for a password.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether this is a user with the right password.
    pub async fn admit(&self, login: Login) -> bool {
        // A user that does not exist takes as long as one that does.
        let (hash, exists) = match self.hashes.get(&login.user) {
            Some(hash) => (hash, true),
            None => match self.hashes.values().next() {
                Some(other) => (other, false),
                None => return false,
            },
        };
        let digest = digest(&login);
        if let Some(known) = self.remembered(&digest) {
            return known;
        }
        let turn = Arc::clone(&self.turn).lock_owned().await;
        // Somebody may have asked the same while this one waited.
        if let Some(known) = self.remembered(&digest) {
            return known;
        }
        let hash = hash.clone();
        let verified = spawn_blocking(move || {
            let verified = bcrypt::verify(&login.password, &hash);
            drop(turn);
            verified
        });
        let right = exists && matches!(verified.await, Ok(Ok(true)));
        self.remember(digest, right);
        right
    }

    fn remembered(&self, digest: &[u8; 32]) -> Option<bool> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.right.contains(digest) {
            return Some(true);
        }
        known.wrong.contains(digest).then_some(false)
    }

    fn remember(&self, digest: [u8; 32], right: bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if right {
            known.right.insert(digest);
            return;
        }
        if known.wrong.len() >= REMEMBERED {
            known.wrong.clear();
        }
        known.wrong.insert(digest);
    }
}

/// Passwords are not kept, only this.
fn digest(login: &Login) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in [&login.user, &login.password] {
        digest.update(part.len().to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(text: &str) -> Option<Login> {
        let encoded = BASE64_STANDARD.encode(text);
        Login::read(&HeaderValue::from_str(&format!("Basic {encoded}")).expect("a header"))
    }

    fn users() -> Users {
        let hash = bcrypt::hash("a:b", 4).expect("it hashes");
        Users::new([("eve".to_owned(), hash)].into())
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_user_is_taken() {
        let users = users();
        for _ in 0..2 {
            assert!(users.admit(login("eve:a:b").expect("a login")).await);
            for wrong in ["eve:a", "eve:", "bob:a:b", ":a:b", "Eve:a:b"] {
                assert!(!users.admit(login(wrong).expect("a login")).await, "{wrong}");
            }
        }
    }

    #[tokio::test]
    async fn guesses_do_not_crowd_out_the_right_one() {
        let users = users();
        assert!(users.admit(login("eve:a:b").expect("a login")).await);
        for guess in 0..REMEMBERED + 20 {
            users.remember(digest(&login(&format!("eve:{guess}")).expect("a login")), false);
        }
        let known = users.known.lock().expect("not poisoned");
        assert_eq!(known.right.len(), 1);
        assert!(known.wrong.len() <= REMEMBERED);
    }

    #[test]
    fn what_is_no_login_is_none() {
        for header in ["", "Basic", "Basic !", "Bearer eHg6eQ==", "Basic eHg="] {
            assert!(Login::read(&HeaderValue::from_static(header)).is_none(), "{header}");
        }
        let login = Login::read(&HeaderValue::from_static("bAsIc eHg6eQ==")).expect("a login");
        assert_eq!((login.user.as_str(), login.password.as_str()), ("xx", "y"));
    }
}
